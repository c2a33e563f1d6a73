"""Memory: an allocator that keeps what was freed and finds it again, for a process that is ours alone."""

import ctypes
import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["keep_freed_memory", "paused_collection", "restart_gathering"]

_FAST, _TRIM_THRESHOLD, _MMAP_MAX = 1, -1, -4  # numbers of mallopt(3) in glibc's malloc.h
_NEVER = -1  # read as the largest size there is
_GATHERING = "glibc.malloc.tcache_count=0"


@contextmanager
def paused_collection() -> Iterator[None]:
    """Search for no cycles of objects while modules are imported, nor later among what they hold.

    Importing torch and matplotlib makes a million objects that stay; searching them took 0.3 s of the 1.7 s that
    importing all of a training takes. Like `keep_freed_memory`, the command line does this, the library does not.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks instead of giving them back to the system; whether that was possible.

    A training step frees and takes the same tens of megabytes again and again, and fresh pages cost more than the
    arithmetic on them: a step of ResNet-9 (batch 512, bf16, 2 cores) took 530 and 600 ms without this and 481 and 462
    with it, alternating. The setting holds for the whole process: the command line makes it, the library does not.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        library = ctypes.CDLL(None)
        if _GATHERING in os.environ.get("GLIBC_TUNABLES", ""):
            library.mallopt(_FAST, 0)
        return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))
    except (OSError, AttributeError):  # another C library
        return False


def restart_gathering() -> None:
    """Begin this process anew, as it was begun, with a glibc that gathers what is freed; nothing where it does already.

    glibc keeps small freed pieces apart, and pieces of that kind are left between large blocks: of the memory that
    recomputation frees most is then in gaps that are not found again. A training step of 1001 layers (batch 64, 32 px)
    needs 10.2 GB without recomputation, 3.6 GB with it, and 1.4 GB with it and this. glibc can only be told so before
    it begins.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if platform.libc_ver()[0] != "glibc" or "glibc.malloc.tcache_count" in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = f"{tunables}:{_GATHERING}" if tunables else _GATHERING
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
