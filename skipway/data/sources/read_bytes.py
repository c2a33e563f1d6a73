"""Reading of image files, restricted to regular files inside the data folder."""

import os
import stat
from pathlib import Path

from skipway.data.sources.decode import BadImage
from skipway.errors import printable

__all__ = ["MAX_BYTES", "checked_status", "read_head", "read_image_file"]

MAX_BYTES = 1_000_000_000  # more than 50 million pixels (the default of --max-pixels) at 16 bytes each


def read_image_file(
    path: str | Path, root: Path | None = None, *, follow_links: bool = False, inside: dict[str, bool] | None = None
) -> bytes:
    """Read a regular file; other kinds of files raise an error and never block.

    Args:
        path: the file.
        root: data folder that symbolic links must not lead out of; None for no restriction.
        follow_links: True to allow links that lead out of `root`.
        inside: cache of {folder: it is inside `root`}, to share between calls.

    Raises:
        BadImage: the file cannot be read, is empty or too large, or is outside of `root`.
    """
    checked_status(path, root, follow_links=follow_links, inside=inside)
    data = _read(path)
    if not data:
        raise BadImage("empty file")
    return data


def read_head(path: str | Path, count: int, root: Path | None = None, *, follow_links: bool = False) -> bytes:
    """Read at most `count` bytes from the beginning of a regular file of any size.

    See `read_image_file` for the arguments.

    Raises:
        BadImage: the file cannot be read, or is outside of `root`.
    """
    checked_status(path, root, follow_links=follow_links, max_bytes=None)
    return _read(path, count)


def _read(path: str | Path, count: int | None = None) -> bytes:
    """Read a file, or its first `count` bytes."""
    try:
        # O_NONBLOCK, because the file may have been replaced by a FIFO between `stat` and `open`.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        file = os.open(path, flags)
        try:
            status = os.fstat(file)
            _refuse_special(status, MAX_BYTES if count is None else None)
            return _read_all(file, status.st_size) if count is None else os.read(file, count)
        finally:
            os.close(file)
    except BadImage:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise _not_readable(error) from error


def checked_status(
    path: str | Path,
    root: Path | None = None,
    *,
    follow_links: bool = False,
    inside: dict[str, bool] | None = None,
    max_bytes: int | None = MAX_BYTES,
) -> os.stat_result:
    """Return the status of a regular file of at most `max_bytes` that may be read.

    See `read_image_file` for the other arguments.

    Raises:
        BadImage: the file is of another kind, too large or outside of `root`, or its status cannot be read.
    """
    try:
        if root is not None and not follow_links:
            inside = {} if inside is None else inside
            folder = os.fspath(path) if os.path.islink(path) else os.path.dirname(path)
            if folder not in inside:
                inside[folder] = _lies_in(folder, root)
            if not inside[folder]:
                raise BadImage("the symbolic link leads out of the data folder (allow it with --follow-links)")
        status = os.stat(path)
    except BadImage:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise _not_readable(error) from error
    _refuse_special(status, max_bytes)
    return status


def _not_readable(error: OSError | ValueError) -> BadImage:
    return BadImage(f"not readable: {printable(getattr(error, 'strerror', None) or error)}")


def _read_all(file: int, size: int) -> bytes:
    """Read an open file, in one call if `size` is still its size."""
    data = os.read(file, size + 1)
    while len(data) > size or 0 < len(data) < size:  # the file has grown, or the read was partial
        part = os.read(file, 2**20)
        if not part:
            break
        data += part
    return data


def _lies_in(path: str, root: Path) -> bool:
    """Return True if `path` is `root` or inside it, after resolving links."""
    real, home = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, home]) == home


def _refuse_special(status: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise BadImage(f"expected a regular file, got a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}")
    if max_bytes is not None and status.st_size > max_bytes:
        raise BadImage(f"file too large: expected at most {max_bytes:,} bytes, got {status.st_size:,}")
