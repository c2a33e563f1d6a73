"""Memory: an allocator that keeps what was freed, for a process that is ours alone."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of mallopt(3) in glibc's malloc.h
_NEVER = 2**31 - 1


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
        return bool(library.mallopt(_MMAP_MAX, 0)) and bool(library.mallopt(_TRIM_THRESHOLD, _NEVER))
    except (OSError, AttributeError):  # another C library
        return False
