"""Errors that skipway raises on purpose, each with the exit code of the command line.

Every message is one line: what failed and where, what was expected, and how to fix it.
"""

import difflib
import errno
import unicodedata
from collections.abc import Iterable, Mapping

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
    "reason_of",
]


# Reported by the system if a disk, a permission or the number of open files is the cause, also through a library.
STORAGE_ERRNOS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES, errno.EPERM),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
    *(errno.ESTALE, errno.EBUSY, errno.ENODEV, errno.ENXIO),  # from network disks, and from disks that were removed
}
# Messages of Python and torch, of cuBLAS and of cuDNN.
_OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed"),
    *("cudnn_status_internal_error_host_allocation_failed", "cudnn_status_internal_error_device_allocation_failed"),
)
_NO_MEMORY = ("cannot allocate memory", "failed to map segment")  # messages of the shared-library loader


class SkipwayError(Exception):
    """Base class of all errors that skipway raises on purpose.

    Attributes:
        exit_code: the exit code of the command line.
        source: the layer that raised the error and the message without its path; None if no layer did.

    >>> SkipwayError("cannot read a.png").at("epoch 2")
    SkipwayError('epoch 2: cannot read a.png')
    """

    exit_code = 70
    source: tuple[object, str] | None = None

    def at(self, where: str) -> "SkipwayError":
        """Return an error of the same class with `where` in front of its message."""
        return type(self)(f"{where}: {self}")


class InputError(SkipwayError, ValueError):
    """Raised if data, an option or an argument from the user cannot be used."""

    exit_code = 2


class ShapeError(InputError):
    """Raised if two shapes that must agree differ."""


class MissingExtra(InputError, ImportError):
    """Raised if an optional dependency is not installed."""

    def __init__(self, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the extra '{extra}', which is not installed. Run: pip install 'skipway[{extra}]'"
        )


class NotFiniteError(SkipwayError, ArithmeticError):
    """Raised if a loss, a gradient or a weight is NaN or infinite."""

    exit_code = 3


class StorageError(SkipwayError, OSError):
    """Raised if a file or folder cannot be written, or if the data read back differ from the data written."""

    exit_code = 4


class Interrupted(SkipwayError):
    """Raised if a signal stopped the run after its work was saved."""

    exit_code = 75


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of Python, torch, the system or its shared-library loader reports a lack of memory."""
    if isinstance(error, ImportError | OSError):
        no_memory = any(words in str(error).lower() for words in _NO_MEMORY)
        return no_memory or getattr(error, "errno", None) == errno.ENOMEM
    message = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(words in message for words in _OUT_OF_MEMORY)


def out_of_memory() -> StorageError:
    """Return the error to raise if training or inference runs out of memory and cannot recover."""
    return StorageError("out of memory. Use a smaller model, smaller images, or a machine with more memory.")


def did_you_mean(name: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """Return ' (did you mean a, b?)' with up to three known names close to `name`, or an empty string.

    Args:
        name: unknown name.
        known: known names.
        aliases: names of other libraries, each with the known name to suggest instead.

    >>> did_you_mean("resnet8", ["resnet18", "mobilenetv2_100"])
    ' (did you mean resnet18?)'
    """
    aliases = aliases or {}
    alias = aliases.get(name, aliases.get(name.lower()))
    close = [alias] if alias else difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def reason_of(error: BaseException) -> str:
    """Return the first line of the message of another library's error, without its period, or the type of the error.

    >>> reason_of(ValueError("no such axis.\\nHere is a long traceback"))
    'no such axis'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].rstrip(".:"))


def printable(text: object) -> str:
    r"""Return `text` on one line, with control, direction and undecodable characters escaped.

    The result is safe to print on a terminal or in a log.

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
