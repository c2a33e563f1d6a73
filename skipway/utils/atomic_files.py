"""Atomic, crash-safe file operations, and a lock that allows one process per run folder.

Each write has this order: write a temporary file, fsync it, rename it, fsync the folder. A process that is killed or
runs out of disk space at any point leaves either the complete old file or the complete new one.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from skipway.errors import InputError, NotFiniteError, StorageError, printable
from skipway.utils.file_locks import is_process_alive, lock_exclusively

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Lock",
    "allocate",
    "check_writable",
    "discard",
    "free_bytes",
    "from_json",
    "make_folder",
    "make_new_folder",
    "rename",
    "sha256",
    "storing",
    "sweep",
    "sync_folder",
    "temporary_path",
    "to_json",
    "write_file",
    "write_json",
    "write_new",
]

_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag
_ELSEWHERE = "or write to another folder with -o"
_FIXES = {
    errno.ENOSPC: "Free disk space",
    errno.EDQUOT: "Free disk quota",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "Make it writable for this user",
    errno.EPERM: "Make it writable for this user",
    errno.EROFS: "Remount the disk writable",
    errno.ESTALE: "Remount the network disk",
    errno.ENOENT: "Create the folder first",
    errno.ENXIO: "Move it away",
    errno.EEXIST: "Move away the file that has the name of a folder in this path",
    errno.ENOTDIR: "Move away the file that has the name of a folder in this path",
}
_NO_SUCH_CALL = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sha256(data: bytes) -> str:
    """Compute the SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def free_bytes(path: Path) -> int:
    """Return the free bytes on the disk of `path`, which need not exist; 0 if they are unknown."""
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


@contextlib.contextmanager
def storing(path: Path, needed: int) -> Iterator[None]:
    """Convert an OSError in the context to a StorageError with the path, the needed and free bytes, and a fix."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"cannot write {printable(path)[:200]}...: the name is too long. Choose a shorter one."
            ) from error
        fix = _FIXES.get(error.errno or 0, "Check the disk")
        raise StorageError(
            f"cannot write {printable(path)}: {printable(error.strerror or error)} ({needed} bytes needed, "
            f"{free_bytes(path)} bytes free). {fix}, {_ELSEWHERE}."
        ) from error


def allocate(file: IO[bytes], size: int) -> None:
    """Reserve `size` bytes for an open file: a full disk would later kill a process that has the file mapped."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def sync_folder(folder: Path) -> None:
    """Flush the directory entries of `folder` to the disk."""
    if os.name == "nt":  # Windows cannot open a folder, and NTFS journals directory entries
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        _flush_drive(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # some network file systems cannot flush folders
            raise
    finally:
        os.close(descriptor)


def _flush_drive(descriptor: int) -> None:
    """Flush the cache of the drive on macOS, whose fsync only hands the data over to it (fsync(2) of macOS)."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with contextlib.suppress(OSError):  # network file systems have no such call
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, and flush their directory entries."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():  # another process may have created the folder
            raise
    sync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Rename `source` to `target`, which must not exist, and flush the folder."""
    os.rename(source, target)
    sync_folder(target.parent)


def temporary_path(path: Path) -> Path:
    """Return an unpredictable temporary name next to `path`, which `sweep` recognizes as one of this process."""
    return path.with_name(f"{_temporary_stem(path)}{secrets.token_hex(8)}-{os.getpid()}")


def make_new_folder(folder: Path) -> None:
    """Create a folder that must not exist. The caller renames it, which flushes its directory entry."""
    os.mkdir(folder)


def _temporary_stem(path: Path) -> str:
    return f".tmp-{path.name[:40]}-"


def write_new(path: Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write and flush a file that must not exist. The caller renames it, which flushes its directory entry."""
    blocks = [data] if isinstance(data, bytes) else data
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        for block in blocks:
            rest = memoryview(block)
            while rest:  # a call writes at most 2 GiB, and less if the disk is full
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        _flush_drive(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically: after a crash, either the complete old file or the complete new one exists.

    Raises:
        StorageError: the file cannot be written.
        InputError: its name is too long.
    """
    path = Path(path)
    with storing(path, len(data)):
        _refuse_special(path)
        temporary = temporary_path(path)
        try:
            write_new(temporary, data)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        sync_folder(path.parent)
    sweep(path.parent, _temporary_stem(path))


def _refuse_special(path: Path) -> None:
    """Raise OSError if `path` is a folder or a device, or links to one: a rename by root would replace it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.ENXIO, "expected a regular file, got a device, pipe or socket")


def to_json(values: Any, what: str, indent: int | None = 1) -> bytes:
    """Encode plain values as strict JSON in UTF-8, with keys in order of insertion. Errors name the values as `what`.

    Raises:
        InputError: a value has another type.
        NotFiniteError: a number is NaN or infinite.
    """
    try:
        text = json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise InputError(f"cannot encode {what} as JSON: {printable(error)}. Pass plain values.") from error
    except ValueError as error:
        raise NotFiniteError(
            f"cannot encode {what} as strict JSON: {printable(error)}. Pass finite values without cycles."
        ) from error
    try:
        return text.encode()
    except UnicodeEncodeError:  # file names that are not UTF-8 have lone surrogates, which must be escaped
        return json.dumps(values, indent=indent, allow_nan=False).encode()


def from_json(data: bytes) -> Any:
    """Decode the output of `to_json`.

    Raises:
        ValueError: `data` is not strict JSON, or a key occurs twice in an object.

    >>> from_json(to_json({"epochs": 3}, "the config"))
    {'epochs': 3}
    """
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
        )
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key occurs twice")
    return values


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} is not finite")
    return number


def write_json(path: Path, values: Any) -> None:
    """Write values to a file as strict, indented JSON. See `write_file` and `to_json`."""
    write_file(path, to_json(values, printable(path)))


def discard(path: Path) -> None:
    """Remove a file or folder atomically: rename it first, then delete its content."""
    doomed = temporary_path(path)
    os.rename(path, doomed)
    try:
        sync_folder(path.parent)
    finally:
        _remove(doomed)


def sweep(folder: Path, prefix: str) -> None:
    """Remove temporary files `prefix...-<pid>` of ended processes from `folder`. Errors are ignored.

    Files of this process id are removed too, so this process must not be writing. In a container, every run may have
    process id 1, and files of an earlier run would never be removed otherwise.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            pid = name.rpartition("-")[2]
            if name.startswith(prefix) and pid.isascii() and pid.isdigit():
                if int(pid) == os.getpid() or not is_process_alive(int(pid)):
                    _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def check_writable(folder: Path) -> None:
    """Create `folder`, then write, flush and remove a file in it. Raise StorageError if this fails."""
    folder = Path(folder)
    probe = temporary_path(folder / "probe")
    with storing(folder, len(_PROBE)):
        make_folder(folder)
        try:
            write_new(probe, _PROBE)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)


_PROBE = b"skipway was here\n" * 256  # 4 KiB, because an empty file fits on a full disk


class Lock:
    """Context manager that locks a run folder. A second process gets an error with the holder's process id and host.

    The lock is an flock, or a byte range on Windows. The system releases it when the process ends.

    Args:
        folder: created if it does not exist.
    """

    def __init__(self, folder: Path):
        self.path = Path(os.path.abspath(folder)) / ".lock"  # absolute, because the working directory may change
        self._descriptor = -1
        self._owner = -1

    def __enter__(self) -> "Lock":
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with storing(self.path, len(note)):
            make_folder(self.path.parent)
            descriptor = _open_locked(self.path)
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, note)
            except OSError:
                os.close(descriptor)
                raise
        self._descriptor, self._owner = descriptor, os.getpid()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if fcntl is None:  # Windows cannot remove an open file, neither this one nor that of the next holder
            os.close(self._descriptor)
        if os.getpid() == self._owner:  # a forked child must not release the lock of its parent
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        if fcntl is not None:
            os.close(self._descriptor)


def _open_locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock_exclusively(descriptor)
            # If the last holder removed the file between open and lock, this lock is on a deleted file.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise _make_taken_error(path) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _read_holder(path: Path) -> tuple[Any, Any]:
    try:
        note = from_json(path.read_bytes()[:4096])
        return note["pid"], note["host"]
    except (OSError, ValueError, KeyError, TypeError):  # its holder is still writing, or it is another program's file
        return "unknown", "unknown"


def _make_taken_error(path: Path) -> InputError:
    pid, host = (printable(value) for value in _read_holder(path))
    return InputError(
        f"cannot lock {printable(path.parent)}: another run is using it (process {pid} on host {host}). Wait for it, "
        "or choose another --name."
    )
