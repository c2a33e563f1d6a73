"""Files that survive a crash: written beside, flushed to the disk, renamed into place. And one run per folder.

Order is the whole promise: write, fsync the file, rename, fsync the folder. Whoever is killed or runs out of disk at
any point of it leaves the old file or the new one, never a mixture and never nothing.
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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from skipway.errors import InputError, NotFiniteError, StorageError, printable

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
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "make it writable for this user",
    errno.EPERM: "make it writable for this user",
    errno.EROFS: "mount that disk writable",
    errno.ESTALE: "mount that network disk again",
    errno.ENOENT: "create the folder first",
    errno.ENXIO: "move it away",
    errno.EEXIST: "move away the file that stands where a folder is needed",
    errno.ENOTDIR: "move away the file that stands where a folder is needed",
}
_NO_SUCH_CALL = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def sha256(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def free_bytes(path: Path) -> int:
    """Bytes free on the disk that holds `path`, or would hold it; 0 where nobody can tell."""
    for place in (Path(path), *Path(path).parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(place).free
    return 0


@contextlib.contextmanager
def storing(path: Path, needed: int) -> Iterator[None]:
    """Within it an OSError becomes a StorageError with `path`, the bytes needed, the bytes free and the fix."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(
                f"{printable(path)[:200]}...: cannot be written: the name is too long. Take a shorter one."
            ) from error
        fix = _FIXES.get(error.errno or 0, "check that disk")
        raise StorageError(
            f"{printable(path)}: cannot be written: {printable(error.strerror or error)}; {needed} bytes needed, "
            f"{free_bytes(path)} bytes free on that disk; {fix}, {_ELSEWHERE}"
        ) from error


def allocate(file: IO[bytes], size: int) -> None:
    """Give an open file `size` bytes of the disk: one that fills up later would kill a process that has it mapped."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    if os.name == "nt":  # cannot open a folder; NTFS journals its names by itself
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # some network file systems flush files alone
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and every missing folder above it, so that their names survive a power cut."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        os.mkdir(folder)
    except FileExistsError:
        if not folder.is_dir():  # another process may have been quicker
            raise
    sync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """`source` becomes `target`, which must be free, and its folder is flushed."""
    os.rename(source, target)
    sync_folder(target.parent)


def temporary_path(path: Path) -> Path:
    """Return a name next to `path` that nobody can guess; `sweep` removes it after this process."""
    return path.with_name(f"{_temporary_stem(path)}{secrets.token_hex(8)}-{os.getpid()}")


def make_new_folder(folder: Path) -> None:
    """Create a folder that is not there yet; its name is flushed by whoever renames it."""
    os.mkdir(folder)


def _temporary_stem(path: Path) -> str:
    return f".tmp-{path.name[:40]}-"


def write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet and flush it; its name is flushed by whoever renames it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        rest = memoryview(data)
        while rest:  # one call writes at most 2 GiB, and less where the disk fills
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`: after a crash at any moment the old file is there, or the new one, whole."""
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
    """Raise OSError if a folder or a device is at `path`, or behind a link there: root's rename would replace it."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():
        raise OSError(errno.ENXIO, "expected a plain file, got a device, pipe or socket")


def to_json(values: Any, what: str, indent: int | None = 1) -> bytes:
    """Strict JSON in UTF-8, in the order of insertion; `what` names the values in an error."""
    try:
        text = json.dumps(values, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, RecursionError) as error:
        raise InputError(f"{what} does not fit into JSON: {printable(error)}; give it plain values") from error
    except ValueError as error:
        raise NotFiniteError(
            f"{what} does not fit into strict JSON: {printable(error)}; JSON has no NaN, no infinity and no cycles"
        ) from error
    try:
        return text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8 holds lone surrogates, which JSON can only escape
        return json.dumps(values, indent=indent, allow_nan=False).encode()


def from_json(data: bytes) -> Any:
    """What `to_json` wrote; a ValueError for anything that it would not write."""
    try:
        return json.loads(
            data.decode(),
            object_pairs_hook=_reject_duplicate_keys,
            parse_constant=_parse_finite,
            parse_float=_parse_finite,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key stands in it twice")
    return values


def _parse_finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:20]} in it is not finite")
    return number


def write_json(path: Path, values: Any) -> None:
    """`values` as strict, readable JSON at `path`, as durable as `write_file` makes it."""
    write_file(path, to_json(values, printable(path)))


def discard(path: Path) -> None:
    """Remove a file or folder so that it is wholly there or gone: it loses its name first, then its content."""
    doomed = temporary_path(path)
    os.rename(path, doomed)
    try:
        sync_folder(path.parent)
    finally:
        _remove(doomed)


def sweep(folder: Path, prefix: str) -> None:
    """Remove what dead writers left in `folder` as `prefix...-<pid>`; only tidies, so it never fails.

    This process's own number counts as dead (call it when nothing of yours is under way): in a container every run may
    be process 1, and what the run before it left would stay for ever.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            pid = name.rpartition("-")[2]
            if name.startswith(prefix) and pid.isascii() and pid.isdigit():
                if int(pid) == os.getpid() or not _alive(int(pid)):
                    _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        os.unlink(path)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 is Ctrl-C there
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def check_writable(folder: Path) -> None:
    """Prove before the first step that files can be kept in `folder`: create it, write one, flush it, remove it."""
    folder = Path(folder)
    probe = temporary_path(folder / "probe")
    with storing(folder, len(_PROBE)):
        make_folder(folder)
        try:
            write_new(probe, _PROBE)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(probe)


_PROBE = b"skipway was here\n" * 256  # 4 KiB: a full disk still takes an empty file


class Lock:
    """`with Lock(folder):` holds `folder` for this run; a second run is refused with the first one's pid and host.

    The lock is the kernel's (flock), so it vanishes with its process, however that ends. Where there is no flock the
    file's being there is the lock, and it is taken over when its process is known to be dead.
    """

    def __init__(self, folder: Path):
        self.path = Path(os.path.abspath(folder)) / ".lock"  # absolute: the working directory may change under us
        self._descriptor = -1
        self._owner = -1

    def __enter__(self) -> "Lock":
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        with storing(self.path, len(note)):
            make_folder(self.path.parent)
            descriptor = _create_exclusively(self.path) if fcntl is None else _open_with_flock(self.path)
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
        if fcntl is None:  # Windows cannot remove an open file; nobody can take the lock between the two
            os.close(self._descriptor)
        if os.getpid() == self._owner:  # a forked child leaves its parent's lock alone
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        if fcntl is not None:
            os.close(self._descriptor)


def _open_with_flock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the file between our two calls: then ours is nobody's lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise _make_taken_error(path) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _create_exclusively(path: Path) -> int:
    for _ in range(2):
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            pid, host = _read_holder(path)
            if host != socket.gethostname() or not isinstance(pid, int) or _alive(pid):
                break
            os.unlink(path)
    raise _make_taken_error(path)


def _read_holder(path: Path) -> tuple[Any, Any]:
    try:
        note = from_json(path.read_bytes()[:4096])
        return note["pid"], note["host"]
    except (OSError, ValueError, KeyError, TypeError):  # its holder is just writing it, or it is not ours
        return "unknown", "unknown"


def _make_taken_error(path: Path) -> InputError:
    pid, host = (printable(value) for value in _read_holder(path))
    return InputError(
        f"{printable(path.parent)}: another run is writing there (process {pid} on host {host}); wait for it, "
        f"or take another --name{'' if fcntl else f'; if it is dead, delete {printable(path)}'}"
    )
