"""Crash handling of a run: an unforeseen error becomes crash.txt in its folder and one line for the user."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

from skipway.distributed.collectives import explain_peer
from skipway.errors import STORAGE_ERRNOS, SkipwayError, StorageError, is_out_of_memory, out_of_memory, printable
from skipway.utils.atomic_files import write_file

__all__ = ["crash_report"]


@contextlib.contextmanager
def crash_report(folder: Path) -> Iterator[None]:
    """Write the traceback of an unforeseen error to crash.txt in `folder`, and raise one line that names the file.

    Raises:
        Interrupted: another process of the training ended or does not answer.
        StorageError: a library met a full or broken disk, or memory ran out.
        SkipwayError: anything else that is no SkipwayError already.
    """
    try:
        yield
    except SkipwayError:
        raise
    except Exception as error:
        if interrupted := explain_peer(error, printable(folder)):
            raise interrupted from None
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:  # from a library that writes by itself
            raise StorageError(
                f"{printable(folder)}: cannot be written: {error.strerror}; what is saved is whole: mend that disk and "
                f"go on with --resume {printable(folder)}"
            ) from error
        if is_out_of_memory(error):
            raise out_of_memory() from error
        try:
            write_file(folder / "crash.txt", traceback.format_exc().encode("utf-8", "backslashreplace"))
        except StorageError:
            raise error from None  # the command line has another place for it
        raise SkipwayError(
            f"a fault of skipway's own ({type(error).__name__}: {printable(error)}); the details are in "
            f"{printable(folder / 'crash.txt')}, please report them"
        ) from error
