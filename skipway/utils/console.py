"""Console output: progress of a run, the result of a command, and errors as single lines on standard error.

Progress is a live line on a terminal and plain lines in a log. A closed pipe or a character that the terminal cannot
show does not stop a run. A result that cannot be written is an error.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TextIO

from skipway.errors import StorageError, printable
from skipway.utils.finite_values import finite_values

__all__ = ["Console", "ProgressBar", "duration", "print_error", "print_json", "print_result", "print_warning"]


class Console:
    """Prints the progress of a run.

    Args:
        quiet: print nothing.
        stream: output, default standard output.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None):
        self.stream = sys.stdout if stream is None else stream
        self.quiet = quiet or self.stream is None  # Python has no standard output if it was closed at the start
        self._header = ""  # header of the last printed table

    def print(self, text: str) -> None:
        """Print lines, with control characters escaped."""
        self.write("\n".join(printable(line) for line in text.split("\n")) + "\n")

    def print_under(self, header: str, row: str) -> None:
        """Print a row of a table, after `header` if the last printed row has another header."""
        if header != self._header:
            self.print(header)
            self._header = header
        self.print(row)

    def bar(self, label: str, total: int) -> "ProgressBar":
        """Return a progress bar over `total` items."""
        return ProgressBar(self, label, total)

    @property
    def live(self) -> bool:
        """True if the stream is a terminal, on which a line can be overwritten."""
        try:
            return not self.quiet and self.stream.isatty()
        except ValueError:  # the stream was closed
            return False

    def write(self, text: str) -> None:
        """Write text unchanged. If the stream fails, the console becomes quiet."""
        if self.quiet:
            return
        try:
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stream.flush()
        except (OSError, ValueError):  # a closed pipe or a full disk must not stop the run
            self.quiet = True


class ProgressBar:
    """Progress line: updated in place on a terminal, printed at intervals in a log.

    Args:
        console: output.
        label: text before the progress.
        total: number of items.
    """

    LIVE_EVERY = 0.1  # seconds
    LOG_EVERY = 30.0  # seconds

    def __init__(self, console: Console, label: str, total: int):
        self.console, self.label, self.total = console, label, max(total, 1)
        self.start = self.last_print = time.monotonic()
        self.first: int | None = None

    def at(self, done: int, note: str | Callable[[], str] = "") -> None:
        """Show that `done` items are complete, followed by `note`: a text, or a function that is called to show it."""
        now = time.monotonic()
        if self.first is None:
            self.first = done
        if now - self.last_print < (self.LIVE_EVERY if self.console.live else self.LOG_EVERY):
            return
        self.last_print = now
        new = done - self.first
        left = f", {duration((now - self.start) / new * (self.total - done))} left" if new > 0 else ""
        note = note if isinstance(note, str) else note()
        line = f"{self.label} {done:,}/{self.total:,} ({done / self.total:.0%}{left}){' ' + note if note else ''}"
        line = printable(line)
        self.console.write(f"\r\x1b[K{line[: _width()]}" if self.console.live else f"{line}\n")

    def done(self, text: str = "") -> None:
        """Remove the line, and print `text` if it is not empty."""
        if self.console.live:
            self.console.write("\r\x1b[K")
        if text:
            self.console.print(text)


def print_result(text: str) -> None:
    """Print the result of a command to standard output.

    Raises:
        StorageError: standard output cannot be written.
        BrokenPipeError: the reader of a pipe has ended.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot write standard output: {error.strerror}. Free disk space, or redirect it to another disk."
        ) from None


def print_json(values: Mapping[str, Any]) -> None:
    """Print the result of a command as one JSON object; numbers that are not finite become null.

    Raises:
        StorageError: standard output cannot be written.
        BrokenPipeError: the reader has closed it.
    """
    print_result(json.dumps(finite_values(values), indent=1, ensure_ascii=False, allow_nan=False))


def print_error(text: str, label: str = "error") -> None:
    """Print a line on standard error, prefixed with the name of the program, `label` and the rank."""
    with suppress(AttributeError, OSError, ValueError):
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # removes a live progress line
        rank = int(os.environ.get("RANK", "0"))
        parts = ["skipway", label, f"process {rank}" if rank else "", printable(text)]
        line = clear + ": ".join(part for part in parts if part) + "\n"
        sys.stderr.write(line)  # print writes the newline separately, which mixes the lines of several processes


def print_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning of Python as one line on standard error; takes the arguments of `warnings.showwarning`.

    torch warns so of operations that a device lacks and that run on the CPU instead.
    """
    text = " ".join(str(message).split())
    print_error(text.partition(" (Triggered internally at ")[0], "warning")


def duration(seconds: float) -> str:
    """Format seconds as text.

    >>> duration(48), duration(200), duration(7500)
    ('48 s', '3 min 20 s', '2 h 5 min')
    """
    whole = round(seconds)
    if whole < 100:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _width() -> int:
    return shutil.get_terminal_size().columns - 1
