"""Compile the package's C files once for the machine at hand, with the C compiler that it has, and load them.

    ~/.cache/skipway/NAME-SHA256.so          by the source, the compiler, the options and the processor
    ~/.cache/skipway/NAME-SHA256.so.sha256   SHA-256 of the library's content

A library runs with the user's rights, and one that is cut short kills the process that maps it. So both files are read
through a descriptor of a folder that is the user's own, and a library whose content is not as recorded is compiled
again.
"""

import ctypes
import hashlib
import os
import platform
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from skipway.errors import printable
from skipway.utils.atomic_files import sync_folder

__all__ = ["library", "missing_reason"]

# No option that lets sums be taken in another order: what is computed is what is written.
_COMPILE = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c")
# Without a library of threads of its own it takes torch's, which is in the process: two would wait for each other.
_LINK = ("-shared", "-nostdlib", "-Wl,--unresolved-symbols=ignore-all")
_SECONDS = 60
_OTHERS_WRITE = 0o022
_REASONS: dict[Path, str] = {}  # why a source has no library


@cache
def library(source: Path, *options: str) -> ctypes.CDLL | None:
    """Return the shared library of one C file, compiled with `options` too; None if it cannot be compiled or loaded.

    It may use OpenMP, and has to be right with fewer threads than it asks for. It is kept in the user's cache folder
    ($XDG_CACHE_HOME or ~/.cache). $CC names another compiler than cc, gcc or clang. On Linux alone: elsewhere
    compilers bring threads of their own.
    """
    _REASONS.pop(source, None)
    try:
        return _load(source, options)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").splitlines()
        text = next((line for line in lines if "error" in line), f"exit code {error.returncode}")
        _REASONS[source] = f"the C compiler failed: {printable(text)[:200]}"
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _REASONS[source] = printable(error)[:200] or type(error).__name__
    return None


def missing_reason(source: Path) -> str:
    """Return why `library` returned None for a C file, or "" if it did not, or if there is no C compiler."""
    return _REASONS.get(source, "")


def _load(source: Path, options: Sequence[str]) -> ctypes.CDLL | None:
    """Load the kept library if it is whole, else compile it first."""
    if not sys.platform.startswith("linux"):
        raise OSError(f"no C kernels on {sys.platform}")
    compiler = _compiler()
    if compiler is None:
        return None
    code = source.read_bytes()
    name = _library_name(source.stem, code, compiler, options)
    with _cache_folder() as folder:
        with suppress(OSError):  # it is not there, not whole, or made for another system
            return _load_verified(folder, name)
        compiled = _compile(source.name, code, compiler, options)
        _write(folder, f"{name}.sha256", hashlib.sha256(compiled).hexdigest().encode())
        _write(folder, name, compiled)
        sync_folder(_path_of(folder))
        return _load_verified(folder, name)


def _compiler() -> list[str] | None:
    """Return the compiler with its options: that of $CC if it is installed, else one of the common ones."""
    try:
        command = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise OSError(f"CC in the environment is no command: {error}") from None
    if command and (path := shutil.which(command[0])):
        return [path, *command[1:]]
    return next(([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _library_name(stem: str, code: bytes, compiler: list[str], options: Sequence[str]) -> str:
    """Return the name of the library, by source, options, processor and compiler; an upgraded compiler is another."""
    program = Path(compiler[0]).stat()
    version = os.path.realpath(compiler[0]), str(program.st_size), str(program.st_mtime_ns)
    flags = [line for line in _processor() if line.startswith(("flags", "Features", "model name"))]
    facts = [*compiler, *version, *_COMPILE, *options, *_LINK, platform.machine(), *flags[:2]]
    digest = hashlib.sha256("\0".join(facts).encode(errors="surrogateescape") + b"\0" + code).hexdigest()
    return f"{stem}-{digest}.so"


def _processor() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


@contextmanager
def _cache_folder() -> Iterator[int]:
    """Open the folder of compiled libraries, which no other user can write to; yield its descriptor."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (base if base.is_absolute() else Path.home() / ".cache") / "skipway"
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.mkdir(folder, mode=0o700)
    if os.path.islink(folder):
        raise OSError(f"{folder} is a link")
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_owner(descriptor, str(folder))
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(descriptor: int, name: str) -> None:
    """Refuse an open file or folder that another user could have changed."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise OSError(f"{name} belongs to another user")
    if status.st_mode & _OTHERS_WRITE:
        raise OSError(f"{name} can be written to by others")


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}")


def _load_verified(folder: int, name: str) -> ctypes.CDLL:
    """Load a library whose content has the SHA-256 that is recorded beside it."""
    recorded = _open(folder, f"{name}.sha256")
    with open(recorded, "rb") as file:
        digest = file.read(1024).decode(errors="replace")
    descriptor = _open(folder, name)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                raise OSError(f"{name} is damaged")
        # What was checked is what is loaded, whatever stands under the name by now.
        return ctypes.CDLL(str(_path_of(descriptor)))
    except OSError:
        os.close(descriptor)
        raise
    # The descriptor stays open: the loader takes two libraries of one path for the same.


def _open(folder: int, name: str) -> int:
    """Open a file of the cache folder for reading if it is a plain file that no other user could have changed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # a named pipe would keep it waiting
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{name} is no file")
        _check_owner(descriptor, name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _compile(name: str, code: bytes, compiler: list[str], options: Sequence[str]) -> bytes:
    """Return the content of the library of a source called `name`."""
    with tempfile.TemporaryDirectory(prefix="skipway-") as folder:
        source, compiled, linked = Path(folder) / name, Path(folder) / "library.o", Path(folder) / "library.so"
        source.write_bytes(code)
        for arguments in (
            [*_COMPILE, *options, str(source), "-o", str(compiled)],
            [*_LINK, str(compiled), "-o", str(linked)],
        ):
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, timeout=_SECONDS)
        return linked.read_bytes()


def _write(folder: int, name: str, data: bytes) -> None:
    """Put a file that only its owner can write to at `name`; a process that has the old one mapped keeps it."""
    temporary = f".{name}.tmp-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        os.unlink(temporary, dir_fd=folder)
        raise
