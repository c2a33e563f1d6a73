"""Cache folder of this machine: its place, its size limit, and locks by which processes share its files.

A file of the cache is complete when it has its name, and it is locked as long as a process uses it. The kernel releases
the locks of a process that ends. The time of the last use is the modification time of a file.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skipway.errors import InputError
from skipway.utils.atomic_files import make_folder
from skipway.utils.file_locks import lock_exclusively

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "DEFAULT_SIZE",
    "CachedFile",
    "cache_folder",
    "cached_files",
    "clear_cache",
    "default_cache_size",
    "is_temporary",
    "lock_shared",
    "lock_writer",
    "mark_used",
    "remove_unused",
    "sweep_unused",
    "trim_cache",
]

DEFAULT_SIZE = 20.0  # GB
_GB = 10**9
_KINDS = {"decoded": ".decoded", "features": ".features", "stamps": ".stamps"}  # subfolder -> suffix of its files
_POLL = 0.1  # seconds between two attempts to lock


@dataclass(frozen=True)
class CachedFile:
    """A file of the cache: its kind ("decoded", "features" or "stamps"), size in bytes and time of the last use."""

    path: Path
    kind: str
    size: int
    used: float


def cache_folder(kind: str = "") -> Path:
    """Return the cache folder: SKIPWAY_CACHE, else `skipway` in XDG_CACHE_HOME or the user's cache folder.

    Args:
        kind: subfolder, such as "features"; "" for the whole cache.
    """
    if folder := os.environ.get("SKIPWAY_CACHE"):
        return Path(folder) / kind
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else "")
    if home:
        return Path(home) / "skipway" / kind
    return Path(os.path.expanduser("~")) / ".cache" / "skipway" / kind


def default_cache_size() -> float:
    """Return the size limit of the cache in GB: SKIPWAY_CACHE_SIZE, else 20.

    Raises:
        InputError: SKIPWAY_CACHE_SIZE is not a number of at least 0.
    """
    text = os.environ.get("SKIPWAY_CACHE_SIZE", "")
    if not text:
        return DEFAULT_SIZE
    with contextlib.suppress(ValueError):
        if 0 <= (size := float(text)) < float("inf"):
            return size
    raise InputError(
        f"cannot use SKIPWAY_CACHE_SIZE: expected a number of GB of at least 0, got {text[:40]!r}. Set such a number."
    )


def lock_shared(descriptor: int) -> None:
    """Lock an open file for use: no process removes it until the descriptor is closed."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system without locks, on which open files can still be read
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def lock_writer(path: Path, wait: Callable[[], None]) -> Iterator[None]:
    """Lock `path` as a context; only one process of this machine holds it.

    Args:
        path: lock file, which is created and removed again.
        wait: called repeatedly while another process holds the lock; may raise.

    Raises:
        OSError: the lock file cannot be created.
    """
    make_folder(path.parent)
    descriptor = _locked(path, wait)
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # Windows cannot remove an open file, and the next holder uses it again
                os.unlink(path)
            os.close(descriptor)


def _locked(path: Path, wait: Callable[[], None]) -> int | None:
    """Return the descriptor of a locked file, or None on a file system without locks."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            lock_exclusively(descriptor)
            # If the last holder removed the file between open and lock, this lock is on a deleted file.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            wait()
            time.sleep(_POLL)
        except FileNotFoundError:
            os.close(descriptor)
        except OSError:  # a file system without locks: at worst, two processes do the same work
            os.close(descriptor)
            return None


def mark_used(path: Path) -> None:
    """Set the time of the last use to now."""
    with contextlib.suppress(OSError):  # a cache that is shared read-only
        os.utime(path)


def remove_unused(path: Path) -> bool:
    """Remove a file of the cache, unless a process uses it; return True if it was removed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            with contextlib.suppress(BlockingIOError):
                _lock_exclusively(descriptor)
                os.unlink(path)
                return True
            return False
    except OSError:
        return False
    finally:
        os.close(descriptor)
    with contextlib.suppress(OSError):  # Windows refuses to remove an open file
        os.unlink(path)
        return True
    return False


def _lock_exclusively(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks, on which removed files can still be read by those that have them
        pass


def is_temporary(path: Path) -> bool:
    """Return True for a file that is not complete, because its writer is at work or was killed."""
    return path.name.startswith(".tmp-")


def sweep_unused(folder: Path) -> None:
    """Remove the incomplete files of writers that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if is_temporary(Path(name)):
                remove_unused(folder / name)


def cached_files(root: Path | None = None) -> list[CachedFile]:
    """Return all files of the cache, the most recently used first.

    Args:
        root: the cache; default: `cache_folder()`.
    """
    root = root or cache_folder()
    files = []
    for kind, suffix in _KINDS.items():
        for path in (root / kind).rglob("*"):
            if path.suffix != suffix and not is_temporary(path):
                continue
            with contextlib.suppress(OSError):  # another process may remove files at the same time
                status = path.lstat()
                files.append(CachedFile(path, kind, status.st_size, status.st_mtime))
    return sorted(files, key=lambda file: (-file.used, file.path))


def trim_cache(limit: float, root: Path | None = None) -> None:
    """Remove the least recently used files until the cache is within `limit` bytes; files in use stay.

    Args:
        limit: bytes.
        root: the cache; default: `cache_folder()`.
    """
    files = cached_files(root)
    total = sum(file.size for file in files)
    for file in reversed(files):
        if total <= limit:
            return
        if not is_temporary(file.path) and remove_unused(file.path):
            total -= file.size


def clear_cache(root: Path | None = None) -> list[CachedFile]:
    """Remove all files that are not in use, and return those that were removed.

    Args:
        root: the cache; default: `cache_folder()`.
    """
    removed = [file for file in cached_files(root) if remove_unused(file.path)]
    for folder in {file.path.parent for file in removed}:
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
    return removed
