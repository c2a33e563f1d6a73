"""Report an unexpected exception: one line for the user, and the traceback in a temporary file."""

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
    """Print one line about an unexpected exception, write its traceback to a file and return the exit code."""
    if cause := _cause_outside(error):
        print_error(str(cause))
        return cause.exit_code
    try:
        with tempfile.NamedTemporaryFile("w", prefix="skipway-crash-", suffix=".txt", delete=False) as file:
            traceback.print_exc(file=file)
        where = f"Report it with the traceback in {file.name}."
    except OSError:
        where = f"Report it with this last frame: {traceback.extract_tb(error.__traceback__)[-1:]}."
    print_error(f"internal error: {type(error).__name__}: {error}. {where}")
    return 70


def _cause_outside(error: Exception) -> SkipwayError | None:
    """Return the storage or input error behind a library's exception, or None if the exception is a bug."""
    if is_out_of_memory(error):
        return out_of_memory()
    if not isinstance(error, OSError):
        return None
    place = printable(error.filename)[:200] if error.filename is not None else "a file"
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"cannot use {place}...: expected a shorter path, got a name that is too long. Shorten it.")
    if error.errno in STORAGE_ERRNOS:
        return StorageError(f"cannot use {place}: {error.strerror}. Free some space there, or write to another disk.")
    return None
