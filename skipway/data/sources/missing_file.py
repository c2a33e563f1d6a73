"""The error for a file that does not exist, with names in its folder that are nearly the same."""

from itertools import islice
from pathlib import Path

from skipway.errors import InputError, did_you_mean, printable

__all__ = ["missing_file"]

_MOST_NAMES = 10_000  # in the folder, that are compared


def missing_file(path: Path) -> InputError:
    """Return the error for a path at which there is nothing.

    >>> print(missing_file(Path("no/such.csv")))
    cannot find no/such.csv: expected an existing file, got a path that does not exist. Correct the path.
    """
    try:
        names = [entry.name for entry in islice(path.expanduser().parent.iterdir(), _MOST_NAMES)]
    except (OSError, RuntimeError):  # no such folder, no permission, or an unknown home directory
        names = []
    return InputError(
        f"cannot find {printable(path)}: expected an existing file, got a path that does not exist"
        f"{printable(did_you_mean(path.name, names))}. Correct the path."
    )
