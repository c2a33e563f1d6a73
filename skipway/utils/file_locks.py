"""Exclusive locks on open files, which the system releases when the process ends: flock, or byte ranges on Windows.

Source of the Windows part: documentation of `_locking`, Microsoft C runtime library.
"""

import errno
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # all other systems
    msvcrt = None  # type: ignore[assignment]

__all__ = ["is_process_alive", "lock_exclusively"]

# Windows locks bytes, which no other process can read meanwhile. This one is behind the content of every file.
_LOCKED_BYTE = 1 << 30
_HELD = (errno.EACCES, errno.EDEADLK, getattr(errno, "EDEADLOCK", errno.EDEADLK))
_QUERY = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
_ACCESS_DENIED = 5
_STILL_ACTIVE = 259


def lock_exclusively(descriptor: int) -> None:
    """Lock an open file until its descriptor is closed.

    Raises:
        BlockingIOError: another descriptor holds the lock.
        OSError: the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        raise
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)


def is_process_alive(pid: int) -> bool:
    """Return True if a process with this id is running on this machine, or if that is unknown."""
    if fcntl is None:
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _is_alive_on_windows(pid: int) -> bool:
    """Ask Windows for the exit code of a process; signal 0 would be Ctrl-C."""
    import ctypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.OpenProcess.restype = ctypes.c_void_p
    handle = kernel.OpenProcess(_QUERY, False, pid)
    if not handle:
        return bool(ctypes.get_last_error() == _ACCESS_DENIED)  # type: ignore[attr-defined]
    code = ctypes.c_ulong(_STILL_ACTIVE)
    kernel.GetExitCodeProcess(ctypes.c_void_p(handle), ctypes.byref(code))
    kernel.CloseHandle(ctypes.c_void_p(handle))
    return code.value == _STILL_ACTIVE
