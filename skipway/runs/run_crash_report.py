"""Crash handling of a run: an internal error becomes crash.txt in its folder and one line on the console."""

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
    """Write the traceback of an internal error to crash.txt in `folder`, and raise a one-line error with its path.

    Args:
        folder: run folder.

    Raises:
        Interrupted: another process of the training ended or does not respond.
        StorageError: a library could not write to disk, or memory ran out.
        SkipwayError: any other error.
    """
    try:
        yield
    except SkipwayError:
        raise
    except Exception as error:
        if interrupted := explain_peer(error, printable(folder)):
            raise interrupted from None
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:  # from a library that writes files
            raise StorageError(
                f"cannot write to {printable(folder)}: {error.strerror}. The last checkpoint is intact: free disk "
                f"space or repair the disk, then resume with --resume {printable(folder)}."
            ) from error
        if is_out_of_memory(error):
            raise out_of_memory() from error
        try:
            write_file(folder / "crash.txt", traceback.format_exc().encode("utf-8", "backslashreplace"))
        except StorageError:
            raise error from None  # the command line writes the traceback elsewhere
        raise SkipwayError(
            f"internal error ({type(error).__name__}: {printable(error)}). Please report it with the traceback in "
            f"{printable(folder / 'crash.txt')}."
        ) from error
