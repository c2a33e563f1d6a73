"""Compilation and loading of the C kernels, once per machine, with the installed C compiler.

    ~/.cache/skipway/NAME-SHA256.so          SHA-256 of source, compiler, options and processor
    ~/.cache/skipway/NAME-SHA256.so.sha256   SHA-256 of the library

A library runs with the permissions of the user, and a truncated one kills the process that maps it. Both files are
therefore read through the descriptor of a folder that belongs to the user. A library with a wrong checksum is compiled
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from skipway.errors import printable
from skipway.utils.atomic_files import sync_folder

__all__ = ["call_c", "has_openmp", "library", "missing_reason"]

# No option such as -ffast-math, which would change the order of summation.
_COMPILE = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-c")
# Not linked to an OpenMP runtime: it uses that of torch in the process, because two runtimes slow each other down.
_LINK = ("-shared", "-nostdlib", "-Wl,--unresolved-symbols=ignore-all")
_SECONDS = 60
_OTHERS_WRITE = 0o022
_REASONS: dict[Path, str] = {}  # errors of sources without a library


def has_openmp() -> bool:
    """Return True if the libraries use several threads themselves: Apple's compiler has no OpenMP."""
    return sys.platform != "darwin"


def _flags() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the options of the compiler and those of the linker on this system."""
    if has_openmp():
        return (*_COMPILE, "-march=native", "-fopenmp"), _LINK
    # Apple's compiler knows "native" on its own chips only in later versions; the first of them is the oldest one.
    processor = "-mcpu=apple-m1" if platform.machine() == "arm64" else "-march=native"
    return (*_COMPILE, processor), ("-dynamiclib",)


@cache
def library(source: Path, *options: str) -> ctypes.CDLL | None:
    """Return the shared library of a C file, compiled if it is not in the cache ($XDG_CACHE_HOME or ~/.cache).

    On Linux and macOS. On macOS it runs in one thread, see `has_openmp`.

    Args:
        source: C file. It may use OpenMP, and must be correct with fewer threads than requested.
        options: additional options of the compiler, which is $CC, cc, gcc or clang.

    Returns:
        The library, or None if it cannot be compiled or loaded; see `missing_reason`.
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
    """Return the error for which `library` returned None; "" if it did not, or if there is no C compiler."""
    return _REASONS.get(source, "")


def call_c(function: Callable[..., Any], *values: Any) -> Any:
    """Return what a C function returns for the addresses of tensors, and other values as they are."""
    return function(*(value.data_ptr() if isinstance(value, Tensor) else value for value in values))


def _load(source: Path, options: Sequence[str]) -> ctypes.CDLL | None:
    """Load the library from the cache, and compile it first if it is missing or damaged."""
    if not sys.platform.startswith(("linux", "darwin")):
        raise OSError(f"no C kernels on {sys.platform}")
    compiler = _compiler()
    if compiler is None:
        return None
    code = source.read_bytes()
    name = _library_name(source.stem, code, compiler, options)
    with _cache_folder() as folder:
        with suppress(OSError):  # the library is missing, damaged, or for another system
            return _load_verified(folder, name)
        compiled = _compile(source.name, code, compiler, options)
        _write(folder, f"{name}.sha256", hashlib.sha256(compiled).hexdigest().encode())
        _write(folder, name, compiled)
        sync_folder(_path_of(folder))
        return _load_verified(folder, name)


def _compiler() -> list[str] | None:
    """Return the command of the compiler: $CC if it is installed, else cc, gcc or clang."""
    try:
        command = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise OSError(f"the environment variable CC is not a valid command: {error}") from None
    if command and (path := shutil.which(command[0])):
        return [path, *command[1:]]
    return next(([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _library_name(stem: str, code: bytes, compiler: list[str], options: Sequence[str]) -> str:
    """Return the file name of the library, which depends on source, options, processor and compiler version."""
    program = Path(compiler[0]).stat()
    version = os.path.realpath(compiler[0]), str(program.st_size), str(program.st_mtime_ns)
    flags = [line for line in _processor() if line.startswith(("flags", "Features", "model name"))]
    compile_flags, link_flags = _flags()
    facts = [*compiler, *version, *compile_flags, *options, *link_flags, platform.machine(), *flags[:2]]
    digest = hashlib.sha256("\0".join(facts).encode(errors="surrogateescape") + b"\0" + code).hexdigest()
    return f"{stem}-{digest}.so"


def _processor() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


@contextmanager
def _cache_folder() -> Iterator[int]:
    """Open the cache folder, create it if needed, and yield its descriptor. No other user may write to it."""
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
    """Raise OSError if another user could have changed an open file or folder."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise OSError(f"{name} belongs to another user")
    if status.st_mode & _OTHERS_WRITE:
        raise OSError(f"{name} is writable by other users")


def _path_of(descriptor: int) -> Path:
    """Return a path of an open file or folder."""
    if sys.platform == "darwin":
        import fcntl

        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(f"/proc/self/fd/{descriptor}")


def _load_verified(folder: int, name: str) -> ctypes.CDLL:
    """Load a library after verifying the SHA-256 in the file next to it."""
    recorded = _open(folder, f"{name}.sha256")
    with open(recorded, "rb") as file:
        digest = file.read(1024).decode(errors="replace")
    descriptor = _open(folder, name)
    try:
        with open(descriptor, "rb", closefd=False) as file:
            if hashlib.sha256(file.read()).hexdigest() != digest:
                raise OSError(f"{name} is damaged")
        # On Linux, the path of the descriptor guarantees that the verified file is loaded, even if it was replaced
        # meanwhile. On macOS, only the owner of the folder could replace it.
        return ctypes.CDLL(str(_path_of(descriptor)))
    except OSError:
        os.close(descriptor)
        raise
    # The descriptor stays open, because the loader identifies libraries by path and would reuse its number.


def _open(folder: int, name: str) -> int:
    """Open a file of the cache folder for reading. Refuse special files and files of other users."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a named pipe would block
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{name} is not a regular file")
        _check_owner(descriptor, name)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _compile(name: str, code: bytes, compiler: list[str], options: Sequence[str]) -> bytes:
    """Compile a source called `name` and return the content of the library."""
    with tempfile.TemporaryDirectory(prefix="skipway-") as folder:
        source, compiled, linked = Path(folder) / name, Path(folder) / "library.o", Path(folder) / "library.so"
        source.write_bytes(code)
        compile_flags, link_flags = _flags()
        for arguments in (
            [*compile_flags, *options, str(source), "-o", str(compiled)],
            [*link_flags, str(compiled), "-o", str(linked)],
        ):
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, timeout=_SECONDS)
        return linked.read_bytes()


def _write(folder: int, name: str, data: bytes) -> None:
    """Write a file that only its owner can access. Processes that have an old version mapped keep it."""
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
