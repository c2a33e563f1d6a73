"""Crash of a command: its traceback goes to a temporary file, one line to the user."""

import errno
import tempfile
import traceback

from skipway.errors import (
    STORAGE_ERRNOS,
    InputError,
    SkipwayError,
    StorageError,
    is_out_of_memory,
    out_of_memory,
    printable,
)
from skipway.utils.console import print_error

__all__ = ["write_crash_traceback"]


def write_crash_traceback(error: Exception) -> int:
    """Print the line of an unforeseen error, whose traceback goes to a file; return its exit code."""
    if cause := _cause_outside(error):
        print_error(str(cause))
        return cause.exit_code
    try:
        with tempfile.NamedTemporaryFile("w", prefix="skipway-crash-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        where = f"the details are in {file.name}"
    except OSError:
        where = f"no file could take the details; they end with {traceback.extract_tb(error.__traceback__)[-1:]}"
    print_error(f"a fault of skipway's own ({type(error).__name__}: {error}); {where}, please report them")
    return 70


def _cause_outside(error: Exception) -> SkipwayError | None:
    """Return the error of the machine or of the user that a library's error stands for, if it is one."""
    if is_out_of_memory(error):
        return out_of_memory()
    if not isinstance(error, OSError):
        return None
    place = printable(error.filename)[:200] if error.filename is not None else "a file"
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"cannot use {place}...: expected a shorter path, got a name that is too long. Shorten it.")
    if error.errno in STORAGE_ERRNOS:
        return StorageError(f"{place}: cannot be used: {error.strerror}; free some space there, or write elsewhere")
    return None
