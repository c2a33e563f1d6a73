"""What can go wrong, each with the exit code that the command line ends with.

Every message is one line: what happened and where, what was expected, how to mend it.
"""

import difflib
import errno
import unicodedata
from collections.abc import Iterable

__all__ = [
    "STORAGE_ERRNOS",
    "InputError",
    "Interrupted",
    "MissingExtra",
    "NotFiniteError",
    "ShapeError",
    "SkipwayError",
    "StorageError",
    "did_you_mean",
    "is_out_of_memory",
    "out_of_memory",
    "printable",
]


# What the system reports where a disk, a right or a number of open files is the cause, also through a library.
STORAGE_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.EBUSY, errno.ENODEV, errno.ENXIO),  # of network disks, and of disks that were taken away
}
_NO_MEMORY = ("cannot allocate memory", "failed to map segment")  # of the loader of shared libraries


class SkipwayError(Exception):
    """Base of all errors that skipway raises on purpose; `exit_code` is what the command line ends with."""

    exit_code = 70
    source: tuple[object, str] | None = None  # the layer that it came from and what it said, where one did

    def at(self, where: str) -> "SkipwayError":
        """The same error with the place in front of its text."""
        return type(self)(f"{where}: {self}")


class InputError(SkipwayError, ValueError):
    """Something the user gave cannot be used."""

    exit_code = 2


class ShapeError(InputError):
    """Two shapes that must agree do not."""


class MissingExtra(InputError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the extra '{extra}': pip install 'skipway[{extra}]'")


class NotFiniteError(SkipwayError, ArithmeticError):
    """A loss, gradient or weight is NaN or infinite."""

    exit_code = 3


class StorageError(SkipwayError, OSError):
    """A file or folder could not be written, or what was written is not what is read back."""

    exit_code = 4


class Interrupted(SkipwayError):
    """A signal stopped the run after its work was saved."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch, the system or its loader of libraries says that there is no more memory."""
    if isinstance(error, ImportError | OSError):
        no_memory = any(words in str(error).lower() for words in _NO_MEMORY)
        return no_memory or getattr(error, "errno", None) == errno.ENOMEM
    message = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or "out of memory" in message or "can't allocate memory" in message


def out_of_memory() -> StorageError:
    """The error that such a one becomes where nothing can be done about it."""
    return StorageError("memory ran out; take a smaller network, smaller images, or a machine with more memory")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """' (did you mean a, b?)' for names close to `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def printable(text: object) -> str:
    r"""`text` on one line with control, direction and undecodable characters spelt out, safe for a terminal or a log.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\\x0a'
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(_spell(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text)


def _spell(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
