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
        path = _kept(source, compiler, options)
        if not path.exists():
            _compile(source, compiler, options, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str] | None:
    given = shlex.split(os.environ.get("CC", ""))
    found = next((path for name in [*given[:1], "cc", "gcc", "clang"] if (path := shutil.which(name))), None)
    return None if found is None else [found, *(given[1:] if given and shutil.which(given[0]) else [])]


def _kept(source: Path, compiler: list[str], options: Sequence[str]) -> Path:
    """Where the library of `source` for this processor and user is kept, in a folder that nobody else can write to."""
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
        made, linked = Path(folder) / "made.o", Path(folder) / "made.so"
        for words in ([*_COMPILE, *options, str(source), "-o", str(made)], [*_LINK, str(made), "-o", str(linked)]):
            subprocess.run([*compiler, *words], check=True, capture_output=True, timeout=_SECONDS)
        os.replace(linked, path)
