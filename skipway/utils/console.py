"""What a run says while it works: one line a step with time left at a terminal, plain lines in a log.

A closed pipe or a terminal that cannot show a character never stops the work.
"""

import shutil
import sys
import time
from typing import TextIO

from skipway.errors import printable

__all__ = ["Bar", "Console", "duration"]


class Console:
    """Lines to `stream` (standard output); `quiet` keeps them to itself."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self.stream = sys.stdout if stream is None else stream
        self.quiet = quiet or self.stream is None  # Python has no standard output where it was closed at the start

    def print(self, text: str) -> None:
        """One line, whatever stands in it."""
        self._write("\n".join(printable(line) for line in text.split("\n")) + "\n")

    def bar(self, label: str, total: int) -> "Bar":
        """Progress over `total` things."""
        return Bar(self, label, total)

    @property
    def live(self) -> bool:
        """Whether lines can be drawn over: a terminal, not a log."""
        try:
            return not self.quiet and self.stream.isatty()
        except ValueError:  # closed meanwhile
            return False

    def _write(self, text: str) -> None:
        if self.quiet:
            return
        try:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError):  # a closed pipe, a full log disk: the work goes on in silence
            self.quiet = True


class Bar:
    """A line that is drawn over at a terminal and said now and then in a log."""

    LOG_EVERY = 30.0  # seconds

    def __init__(self, console: Console, label: str, total: int):
        self.console, self.label, self.total = console, label, max(total, 1)
        self.begun = self.said = time.monotonic()
        self.first: int | None = None

    def at(self, done: int, note: str = "") -> None:
        """`done` of the total are done."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        every = 0.1 if self.console.live else self.LOG_EVERY
        if now - self.said < every:
            return
        self.said = now
        new = done - self.first
        left = f", {duration((now - self.begun) / new * (self.total - done))} left" if new > 0 else ""
        line = f"{self.label} {done:,}/{self.total:,} ({done / self.total:.0%}{left}){' ' + note if note else ''}"
        self.console._write(f"\r\x1b[K{printable(line)[: _width()]}" if self.console.live else printable(line) + "\n")

    def done(self, text: str = "") -> None:
        """Replace the line by `text`, or by nothing."""
        if self.console.live:
            self.console._write("\r\x1b[K")
        if text:
            self.console.print(text)


def duration(seconds: float) -> str:
    """'48 s', '3 min 20 s', '2 h 5 min'."""
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _width() -> int:
    return shutil.get_terminal_size().columns - 1
