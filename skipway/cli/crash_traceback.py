"""Crash of a command: its traceback goes to a temporary file, one line to the user."""

import tempfile
import traceback

from skipway.errors import is_out_of_memory, out_of_memory
from skipway.utils.console import print_error

__all__ = ["write_crash_traceback"]


def write_crash_traceback(error: Exception) -> int:
    """Print the line of an unforeseen error, whose traceback goes to a file; return its exit code."""
    if is_out_of_memory(error):
        print_error(str(out_of_memory()))
        return out_of_memory().exit_code
    with tempfile.NamedTemporaryFile("w", prefix="skipway-crash-", suffix=".txt", delete=False) as file:
        traceback.print_exc(file=file)
    print_error(
        f"a fault of skipway's own ({type(error).__name__}: {error}); the details are in {file.name}, "
        "please report them"
    )
    return 70
