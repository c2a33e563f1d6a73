"""The terminal: what a command was asked for goes out whole or is an error, complaints are one line."""

import os
import sys
from contextlib import suppress

from skipway.errors import StorageError, printable
from skipway.utils.signals import StopFlag

__all__ = ["STOP", "print_error", "print_result"]

STOP = StopFlag()  # that of the process: signals set it from the first moment on


def print_result(text: str) -> None:
    """What a command was asked for; unlike progress it may not get lost unsaid."""
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(
            f"standard output cannot be written: {error.strerror}; free some space there or send it elsewhere"
        ) from None


def print_error(text: str) -> None:
    """Say what went wrong, on one line of standard error."""
    with suppress(AttributeError, OSError, ValueError):
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""  # a live line may stand there, cut short by the error
        rank = int(os.environ.get("RANK", "0"))  # of several processes that train together
        print(f"{clear}skipway: {f'process {rank}: ' if rank else ''}{printable(text)}", file=sys.stderr)
