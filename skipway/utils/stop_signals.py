"""Signal handling: the first signal requests a clean stop, a second one ends the process at once.

Training polls a flag at points where it can save its progress; signal handlers never save. A command without progress
to save is interrupted immediately. Python runs handlers only between bytecode instructions, so a thread ends commands
that are stuck in native code.
"""

import os
import select
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

__all__ = ["STOP", "STOPPED", "StopFlag"]

STOPPED = 75  # exit code of a command that a signal stopped
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
_SAME_REQUEST = 0.2  # seconds in which a repeated signal is ignored: timeout(1) signals its child, then its group
_UNWIND_SECONDS = 1.5  # time to stop for a command without progress to save
_STEP_SECONDS = 20.0  # time to stop for a training step in native code, so that the step can be saved


class StopFlag:
    """Flag for a requested stop. As a context manager it handles signals, and restores the handlers on exit.

    Python handles signals in its main thread only. In another thread the context manager has no effect.

    Attributes:
        name: name of the first signal, or an empty string.
        interrupts: if True, the first signal raises KeyboardInterrupt; set on the command line until `defer`.

    >>> stop = StopFlag()
    >>> stop.request("SIGTERM")
    >>> stop.requested, stop.name
    (True, 'SIGTERM')
    """

    def __init__(self) -> None:
        self.name = ""
        self.interrupts = False
        self._first: tuple[int, float] | None = None  # first signal and its time on the monotonic clock
        self._exit_code: int | None = None
        self._previous: list[tuple[int, Any]] = []
        self._watched: tuple[int, int] | None = None  # pipe between the signal handler (write) and the thread (read)

    @property
    def requested(self) -> bool:
        """True after the first signal or request."""
        return bool(self.name)

    def request(self, name: str = "a request") -> None:
        """Request a stop, like a signal does."""
        self.name = self.name or name

    def defer(self) -> None:
        """Let signals only set the flag from now on, because there is progress to save."""
        self.interrupts = False

    def finish(self, code: int) -> None:
        """Let a signal end the process with exit code `code` from now on, because the work is done."""
        self._exit_code = code

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in _SIGNALS:
                if signal.getsignal(number) is not None:  # None is a handler of C code, which Python cannot restore
                    self._previous.append((number, signal.signal(number, self._handle)))
            if self.interrupts and os.name != "nt":
                self._watch()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watched is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._watched[1])  # ends the thread
            self._watched = None
        while self._previous:
            signal.signal(*self._previous.pop())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._exit_code is not None:
            os._exit(self._exit_code)
        if self._first is not None:
            self._end_if_second(number, *self._first)
            return
        self._first = (number, time.monotonic())
        self.request(signal.Signals(number).name)
        if self.interrupts:
            raise KeyboardInterrupt

    def _end_if_second(self, number: int, first: int, then: float) -> None:
        """End the process unless the signal repeats the first request. Files on the disk are always intact."""
        if number != signal.SIGINT and "WORLD_SIZE" in os.environ:
            return  # the launcher and the scheduler both signal each process
        if number == signal.SIGINT or number != first or time.monotonic() - then > _SAME_REQUEST:
            os._exit(128 + number)

    def _watch(self) -> None:
        """Start the thread that receives signals through a pipe, independent of the main thread."""
        reader, writer = self._watched = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._end_if_stuck, args=(reader,), name="skipway-signals", daemon=True).start()

    def _end_if_stuck(self, reader: int) -> None:
        """End the process if the handler of a signal does not run, or the interrupted command does not end."""
        first: tuple[int, float] | None = None
        wait: float | None = None
        while True:
            if not select.select([reader], [], [], wait)[0]:
                wait = None
                if first is not None and self._is_ours(first[0]) and (self.interrupts or self._first is None):
                    _end_stuck(self.name or signal.Signals(first[0]).name)
                continue
            numbers = os.read(reader, 64)
            if not numbers:
                os.close(reader)
                return
            for number in filter(self._is_ours, numbers):
                if self._exit_code is not None:
                    os._exit(self._exit_code)
                if first is None:
                    first, wait = (number, time.monotonic()), _UNWIND_SECONDS if self.interrupts else _STEP_SECONDS
                else:
                    self._end_if_second(number, *first)

    def _is_ours(self, number: int) -> bool:
        return signal.getsignal(number) == self._handle  # the launcher of several processes replaces the handler


def _end_stuck(name: str) -> None:
    line = f"skipway: stopped by {name} within a long computation; saved files are intact\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(STOPPED)


STOP = StopFlag()  # flag of the process, which the command line uses from its start
