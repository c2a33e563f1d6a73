"""C beside the package, compiled once for the machine at hand by the C compiler that it has; None where it has none."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

__all__ = ["library"]

# No option that lets sums be taken in another order: what is computed is what is written.
_COMPILE = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-c")
# Without a library of threads of its own it takes torch's, which is in the process: two would wait for each other.
_LINK = ("-shared", "-nostdlib", "-Wl,--unresolved-symbols=ignore-all")
_SECONDS = 60


@cache
def library(source: Path, *options: str) -> ctypes.CDLL | None:
    """The shared library of one C file, compiled with `options` too; None where it cannot be compiled or loaded.

    It may use OpenMP. It is kept in the user's cache folder ($XDG_CACHE_HOME or ~/.cache), by the source, the options
    and the processor. $CC names another compiler than cc, gcc or clang. On Linux alone: elsewhere compilers bring
    threads of their own.
    """
    compiler = _compiler()
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    try:
        path = _library_path(source, compiler, options)
        if not path.exists():
            _compile(source, compiler, options, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str] | None:
    """Return the compiler with its options: that of $CC if it is installed, else one of the common ones."""
    command = shlex.split(os.environ.get("CC", ""))
    if command and (path := shutil.which(command[0])):
        return [path, *command[1:]]
    return next(([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def _library_path(source: Path, compiler: list[str], options: Sequence[str]) -> Path:
    """Return the path of the library for this processor, in a folder of the user that nobody else can write to."""
    flags = [line for line in _processor() if line.startswith(("flags", "Features", "model name"))]
    facts = [source.read_text(), *compiler, *_COMPILE, *options, *_LINK, platform.machine(), *flags[:2]]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipway"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise OSError(f"{folder} can be written to by others")
    return folder / f"{source.stem}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:16]}.so"


def _processor() -> list[str]:
    info = Path("/proc/cpuinfo")
    return info.read_text().splitlines() if info.exists() else []


def _compile(source: Path, compiler: list[str], options: Sequence[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        compiled, linked = Path(folder) / "library.o", Path(folder) / "library.so"
        for arguments in (
            [*_COMPILE, *options, str(source), "-o", str(compiled)],
            [*_LINK, str(compiled), "-o", str(linked)],
        ):
            subprocess.run([*compiler, *arguments], check=True, capture_output=True, timeout=_SECONDS)
        os.replace(linked, path)
