"""Signals: the first asks for a stop in good order, a second one ends the process at once.

A flag is set and the work polls it where it is safe to stop; nothing is ever saved from inside a handler.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["STOP", "StopFlag"]

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class StopFlag:
    """Whether a stop was asked for. `with StopFlag() as stop:` listens; without `with` it is a flag to set by hand.

    Python hears signals in its main thread alone: in another one `with` listens to nothing. The host's own handlers
    come back after.
    """

    def __init__(self) -> None:
        self.name = ""
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """True from the first signal on."""
        return bool(self.name)

    def request(self, name: str = "a request") -> None:
        """Ask for a stop as a signal would."""
        self.name = self.name or name

    def __enter__(self) -> "StopFlag":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not None:  # None: C code set it, and Python could not put it back
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            os._exit(130)  # asked twice: the checkpoints on disk are whole whenever this happens
        self.request(signal.Signals(number).name)


STOP = StopFlag()  # of the process: signals set it from the first moment that the command line runs
