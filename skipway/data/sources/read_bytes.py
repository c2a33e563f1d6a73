"""Image files: the bytes of one, where it is a file that may be read, or a named reason why not."""

import os
import stat
from pathlib import Path

from skipway.data.sources.decode import BadImage
from skipway.errors import printable

__all__ = ["read_image_file"]

_MAX_BYTES = 1_000_000_000  # more than 50 million pixels of 16 bytes each: a file beyond it is not an image of ours


def read_image_file(
    path: Path, root: Path | None = None, *, follow_links: bool = False, inside: dict[str, bool] | None = None
) -> bytes:
    """Return the bytes of a regular file; anything else is refused and never blocks.

    With a `root`, a path that symbolic links lead out of it is refused unless `follow_links`. Who reads many files
    keeps `inside`, which says of folders whether they lie in it.
    """
    try:
        if root is not None and not follow_links:
            inside = {} if inside is None else inside
            folder = os.fspath(path) if os.path.islink(path) else os.path.dirname(path)
            if folder not in inside:
                inside[folder] = _lies_in(folder, root)
            if not inside[folder]:
                raise BadImage("a symbolic link leads out of the data folder (--follow-links allows it)")
        _refuse_special(os.stat(path))
        # Not blocking: between the look and the open, a FIFO may have taken the file's place.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        file = os.open(path, flags)
        try:
            status = os.fstat(file)
            _refuse_special(status)
            data = _read_all(file, status.st_size)
        finally:
            os.close(file)
    except BadImage:
        raise
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise BadImage(f"not readable: {printable(getattr(error, 'strerror', None) or error)}") from error
    if not data:
        raise BadImage("empty file: 0 bytes")
    return data


def _read_all(file: int, size: int) -> bytes:
    """Read an open file, in one call if it has the `size` of its status."""
    data = os.read(file, size + 1)
    while len(data) > size or 0 < len(data) < size:  # it grew meanwhile, or came in parts
        part = os.read(file, 2**20)
        if not part:
            break
        data += part
    return data


def _lies_in(path: str, root: Path) -> bool:
    """Return True if `path` is `root` or below it, once links are followed."""
    real, home = os.path.realpath(path), os.path.realpath(root)
    return os.path.commonpath([real, home]) == home


def _refuse_special(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
        raise BadImage(f"not a regular file but a {kinds.get(stat.S_IFMT(status.st_mode), 'device')}")
    if status.st_size > _MAX_BYTES:
        raise BadImage(f"too large a file: {status.st_size:,} bytes, the limit is {_MAX_BYTES:,}")
