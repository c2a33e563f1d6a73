"""Number of CPU threads for training, from cores, CPU affinity, cgroup quota and load.

Threads that share a core delay all others at the end of each operation: two threads on one core train 40 times slower
than one. The number of threads therefore never exceeds the number of available cores.

Formats: `/proc/self/cgroup`, `/proc/self/mountinfo` and `/proc/loadavg`, proc(5); `cpu.max`, kernel documentation of
cgroup v2; `cpu.cfs_quota_us` and `cpu.cfs_period_us`, kernel documentation of CFS bandwidth control.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["ThreadCount", "available_cores", "available_threads", "fastest_threads", "local_processes", "set_threads"]

_SYSTEM = Path("/")
_LOAD_SAMPLES = 10
_LOAD_INTERVAL = 0.002  # seconds
_ROUNDS = 6  # including a warm-up round that is not counted
_LAYERS = 4
_TOLERANCE = 1.2
_MEASURING_LIMIT = 0.5  # seconds after which no further round starts


@dataclass(frozen=True)
class ThreadCount:
    """Number of threads or cores, and the reason for it.

    Attributes:
        count: number of threads or cores.
        reason: limit that determines the number, such as "CPU affinity".
    """

    count: int
    reason: str


def available_cores(root: Path = _SYSTEM) -> ThreadCount:
    """Return the number of cores available to this process: the minimum of cores, CPU affinity and cgroup quota.

    A quota is rounded down, to at least 1. If threads exceed the quota, the kernel stops all of them for the rest of
    each period. The remainder is left to threads that load data.

    Args:
        root: root of `proc/` and of the mount points in `proc/self/mountinfo`.
    """
    limits = [ThreadCount(os.cpu_count() or 1, "cores")]
    if allowed := _allowed_cores():
        limits.append(ThreadCount(allowed, "CPU affinity"))
    if quotas := list(_cgroup_quotas(root)):
        limits.append(ThreadCount(max(1, math.floor(min(quotas))), "cgroup CPU quota"))
    return min(limits, key=lambda limit: limit.count)


def available_threads(processes: int = 1, root: Path = _SYSTEM) -> ThreadCount:
    """Return the number of compute threads per process.

    Args:
        processes: number of processes that share the cores of this machine.
        root: see `available_cores`.

    Returns:
        The share of the cores, or `OMP_NUM_THREADS` if it is smaller.
    """
    cores = available_cores(root)
    share = ThreadCount(max(1, cores.count // processes), cores.reason)
    requested = _openmp_threads()
    if requested is not None and requested < share.count:
        return ThreadCount(requested, "OMP_NUM_THREADS")
    return share


def local_processes() -> int:
    """Return LOCAL_WORLD_SIZE: the number of processes of this training on this machine, 1 by default."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_threads(requested: int | None, *, table: bool, say: Callable[[str], None]) -> None:
    """Set the number of threads of torch for a training.

    Args:
        requested: the option `threads`, which takes precedence.
        table: train on a table with 1 thread, because its small layers run slower with several.
        say: prints the number if it was measured.
    """
    import torch

    processes = local_processes()
    if requested or table:
        count = requested or 1
    elif processes > 1:  # simultaneous measurements would disturb each other
        count = available_threads(processes).count
    else:
        available = available_threads()
        threads = fastest_threads(available)
        count = threads.count
        if threads is not available:
            say(f"threads: {count}, because {threads.reason}")
    torch.set_num_threads(count)


def fastest_threads(available: ThreadCount, root: Path = _SYSTEM) -> ThreadCount:
    """Return `available`, or the fastest measured number of threads if the machine is busy.

    All threads, a thread per idle core, and a single thread are timed. The smallest number within 20% of the fastest is
    chosen. Under load, most trainings lose more time to waiting threads than the test step does.

    Args:
        available: number of threads on an idle machine.
        root: see `available_cores`.
    """
    cores = os.cpu_count() or 1
    busy = _busy_cores(root)
    if available.count == 1 or busy + available.count < cores + 0.5:
        return available
    idle = min(available.count, max(1, round(cores - busy)))
    seconds = _measured({available.count, idle, 1})
    longest = _TOLERANCE * min(seconds.values())
    count = min(threads for threads in seconds if seconds[threads] <= longest)
    timings = ", ".join(f"{1000 * seconds[threads]:.0f} ms with {threads}" for threads in sorted(seconds))
    return ThreadCount(count, f"other processes use the cores: a test step takes {timings}")


def _allowed_cores() -> int | None:
    if hasattr(os, "process_cpu_count"):  # Python 3.13; respects -X cpu_count and PYTHON_CPU_COUNT
        return os.process_cpu_count()
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return None


def _openmp_threads() -> int | None:
    """Return the first number in `OMP_NUM_THREADS`, a list for nested regions; None if it is not positive."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the cgroup of this process and of its visible parents."""
    groups = _cgroups(root)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        _, _, _, top, mount_point, *_ = mount.split()
        kind, _, options = file_system.split(maxsplit=2)
        controllers = options.split(",")
        if kind == "cgroup2":
            group = groups.get("", "/")
        elif kind == "cgroup" and "cpu" in controllers:
            group = groups.get("cpu", "/")
        else:
            continue
        for folder in _folders(root / mount_point.lstrip("/"), top, group):
            yield from _quota(folder)


def _cgroups(root: Path) -> dict[str, str]:
    """Return the path of the cgroup of this process by controller; "" is cgroup v2."""
    groups: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", maxsplit=2)
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _folders(mount_point: Path, top: str, group: str) -> list[Path]:
    """Return the folders of `group` and its parents in a file system whose root is the cgroup `top`.

    In a container, the path may be that of the host, or lead out of its namespace ("/../other"). If it is not below
    `top`, the mount point itself is the cgroup of the container.
    """
    path = PurePosixPath(group)
    if not path.is_relative_to(top) or ".." in path.parts:
        return [mount_point]
    relative = path.relative_to(top)
    return [mount_point / folder for folder in (relative, *relative.parents)]


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of a cgroup in cores if it has one. It is in one file for v2, and in two files for v1."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    if len(words) == 2 and words[0].isdigit():  # no quota is "max" or -1
        quota, period = map(int, words)
        yield quota / period


def _text(file: Path) -> str:
    """Return the content of `file`, or "" if it does not exist."""
    try:
        return file.read_text(encoding="ascii", errors="surrogateescape")  # folder names can hold any bytes
    except OSError:
        return ""


def _busy_cores(root: Path) -> float:
    """Return the number of cores that other threads of the machine request now.

    Linux reports the number of runnable threads, which includes this one. Other systems only have the load average of
    the last minute. Both values cover the whole machine, also in a container.
    """
    running = []
    for _ in range(_LOAD_SAMPLES):
        words = _text(root / "proc/loadavg").split()
        if not words:
            break
        running.append(int(words[3].partition("/")[0]))
        time.sleep(_LOAD_INTERVAL)
    if running:
        return max(0.0, sum(running) / len(running) - 1)
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _measured(counts: set[int]) -> dict[int, float]:
    """Measure the mean seconds of a training step of a few small convolutions for each number of threads.

    The numbers alternate, so that a change of the load affects all of them. No random numbers are drawn, so that the
    measurement does not change the training that follows.
    """
    import torch
    from torch.nn.functional import conv2d, relu

    images = torch.linspace(-1, 1, 64 * 32 * 16 * 16, device="cpu").reshape(64, 32, 16, 16)
    weight = torch.linspace(-0.1, 0.1, 32 * 32 * 3 * 3, device="cpu").reshape(32, 32, 3, 3).requires_grad_()
    seconds: dict[int, list[float]] = {count: [] for count in sorted(counts)}
    begin = time.perf_counter()
    for completed in range(_ROUNDS):
        if completed > 1 and time.perf_counter() - begin > _MEASURING_LIMIT:
            break
        for count, timings in seconds.items():
            torch.set_num_threads(count)
            step_begin = time.perf_counter()
            hidden = images
            for _ in range(_LAYERS):
                hidden = relu(conv2d(hidden, weight, padding=1))
            torch.autograd.grad(hidden.sum(), weight)
            timings.append(time.perf_counter() - step_begin)
    return {count: sum(timings[1:]) / len(timings[1:]) for count, timings in seconds.items()}
