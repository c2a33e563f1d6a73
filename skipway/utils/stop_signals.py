"""Signals: the first one stops the work in good order, a second one ends the process at once.

Work that is worth saving polls a flag where it is safe to stop; nothing is ever saved from inside a handler. A command
that has nothing to save is interrupted where it is. Python runs handlers between two of its own steps only, so a thread
ends a command whose native code does not come back.
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
_SAME_REQUEST = 0.2  # seconds in which one signal may come twice: timeout(1) signals its child, then its group
_UNWIND_SECONDS = 1.5  # for a command that has nothing to save
_STEP_SECONDS = 20.0  # for a training step in native code, so that the step can be saved


class StopFlag:
    """Whether a stop was asked for. `with StopFlag() as stop:` listens; without `with` it is a flag to set by hand.

    Python hears signals in its main thread alone: in another one `with` listens to nothing. The host's own handlers
    come back after.

    Attributes:
        name: the signal that came first, or nothing.
        interrupts: whether the first signal raises KeyboardInterrupt as well: on the command line, until `defer`.
    """

    def __init__(self) -> None:
        self.name = ""
        self.interrupts = False
        self._first: tuple[int, float] | None = None  # the signal, and when it came on the monotonic clock
        self._exit_code: int | None = None
        self._previous: list[tuple[int, Any]] = []
        self._watched: tuple[int, int] | None = None  # the pipe that the thread reads, its end for signals

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return bool(self.name)

    def request(self, name: str = "a request") -> None:
        """Ask for a stop as a signal would."""
        self.name = self.name or name

    def defer(self) -> None:
        """From here on a signal only sets the flag, for there is work that is saved before the end."""
        self.interrupts = False

    def finish(self, code: int) -> None:
        """From here on a signal ends the process with `code`, for the work is done."""
        self._exit_code = code

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread() and not self._previous:
            for number in _SIGNALS:
                if signal.getsignal(number) is not None:  # None: C code set it, and Python could not put it back
                    self._previous.append((number, signal.signal(number, self._handle)))
            if self.interrupts and os.name != "nt":
                self._watch()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._watched is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._watched[1])  # which ends the thread
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
        """End the process unless this is the first request still; what is on the disk is whole whenever it happens."""
        if number != signal.SIGINT and "WORLD_SIZE" in os.environ:
            return  # the launcher and the scheduler both signal each of its processes
        if number == signal.SIGINT or number != first or time.monotonic() - then > _SAME_REQUEST:
            os._exit(128 + number)

    def _watch(self) -> None:
        """Start the thread that the interpreter tells of each signal, whatever the main thread does."""
        reader, writer = self._watched = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._end_if_stuck, args=(reader,), name="skipway-signals", daemon=True).start()

    def _end_if_stuck(self, reader: int) -> None:
        """End the process at a signal whose handler does not run, or has interrupted a command that does not end."""
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
        return signal.getsignal(number) == self._handle  # a launcher of several processes has its own


def _end_stuck(name: str) -> None:
    line = f"skipway: stopped by {name} within a long computation; what is saved is whole\n"
    with suppress(OSError):
        os.write(2, line.encode())
    os._exit(STOPPED)


STOP = StopFlag()  # of the process: signals set it from the first moment that the command line runs
