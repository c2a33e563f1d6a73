"""Decide how many CPU threads to compute with.

A thread that has no core of its own makes the others wait for it at the end of every operation: two threads on one
core train 40 times slower than one. The count therefore never exceeds the cores that this process may use.

Formats: `/proc/self/cgroup`, `/proc/self/mountinfo` and `/proc/loadavg` as in proc(5); `cpu.max` as in the kernel's
documentation of cgroup v2, `cpu.cfs_quota_us` and `cpu.cfs_period_us` as in its documentation of CFS bandwidth control.
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
_ROUNDS = 6  # the first of them warms up and is not counted
_LAYERS = 4
_TOLERANCE = 1.2
_MEASURING_LIMIT = 0.5  # seconds, after which no further round begins


@dataclass(frozen=True)
class ThreadCount:
    """A number of threads or cores, and the limit that it comes from."""

    count: int
    reason: str


def available_cores(root: Path = _SYSTEM) -> ThreadCount:
    """Return how many cores this process may use: the least of cores, CPU affinity and cgroup quota.

    A quota is rounded down, to at least 1: threads that together exceed it are all stopped for the rest of each period,
    and waiting for one another uses it up as computing does. The rest is left to threads that load data.

    Args:
        root: the folder that holds `proc/`, and the mount points that `proc/self/mountinfo` names.
    """
    limits = [ThreadCount(os.cpu_count() or 1, "cores")]
    if allowed := _allowed_cores():
        limits.append(ThreadCount(allowed, "CPU affinity"))
    if quotas := list(_cgroup_quotas(root)):
        limits.append(ThreadCount(max(1, math.floor(min(quotas))), "cgroup CPU quota"))
    return min(limits, key=lambda limit: limit.count)


def available_threads(processes: int = 1, root: Path = _SYSTEM) -> ThreadCount:
    """Return how many threads each of `processes` on this machine may compute with.

    The processes share the cores. `OMP_NUM_THREADS` counts for each of them, as it does for torch.
    """
    cores = available_cores(root)
    share = ThreadCount(max(1, cores.count // processes), cores.reason)
    requested = _openmp_threads()
    if requested is not None and requested < share.count:
        return ThreadCount(requested, "OMP_NUM_THREADS")
    return share


def local_processes() -> int:
    """Return how many processes of this training run on this machine, as the launcher has set it."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def set_threads(requested: int | None, *, table: bool, say: Callable[[str], None]) -> None:
    """Set the number of torch's threads for a training.

    Args:
        requested: the `threads` option, which wins.
        table: train on a table, with one thread: layers that small spend their time waiting for a second one.
        say: prints the choice, if it was measured.
    """
    import torch

    processes = local_processes()
    if requested or table:
        count = requested or 1
    elif processes > 1:  # they would measure one another, and have to agree
        count = available_threads(processes).count
    else:
        available = available_threads()
        threads = fastest_threads(available)
        count = threads.count
        if threads is not available:
            say(f"threads: {count}, because {threads.reason}")
    torch.set_num_threads(count)


def fastest_threads(available: ThreadCount, root: Path = _SYSTEM) -> ThreadCount:
    """Return `available`, or on a busy machine the count that is measured to be fastest.

    Timed are all threads, as many as there are idle cores, and one. The fewest that are about as fast as the fastest
    are chosen: under load, most trainings lose more to waiting threads than the test step does.
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
    if hasattr(os, "process_cpu_count"):  # Python 3.13; -X cpu_count and PYTHON_CPU_COUNT count too
        return os.process_cpu_count()
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return None


def _openmp_threads() -> int | None:
    """Return `OMP_NUM_THREADS`, or the first of a list for nested regions; None if it is no positive number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() and int(first) > 0 else None


def _cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of the process's own cgroup and of each one above it that is visible."""
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
    """Return the path of the process's cgroup by controller of v1; "" is v2."""
    groups: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", maxsplit=2)
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _folders(mount_point: Path, top: str, group: str) -> list[Path]:
    """Return the folder of `group` and those above it, of a file system whose root is the cgroup `top`.

    A container may see its cgroup by the host's path, or by one that leaves its namespace ("/../other"). If that is not
    below `top`, the mount point is the container's own cgroup.
    """
    path = PurePosixPath(group)
    if not path.is_relative_to(top) or ".." in path.parts:
        return [mount_point]
    relative = path.relative_to(top)
    return [mount_point / folder for folder in (relative, *relative.parents)]


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of one cgroup in cores, if it has one: of v2 in one file, of v1 in two."""
    words = _text(folder / "cpu.max").split()
    if not words:
        words = [*_text(folder / "cpu.cfs_quota_us").split(), *_text(folder / "cpu.cfs_period_us").split()]
    if len(words) == 2 and words[0].isdigit():  # else "max", or -1
        quota, period = map(int, words)
        yield quota / period


def _text(file: Path) -> str:
    """Return the content of `file`, or "" if this system has no such file."""
    try:
        return file.read_text(encoding="ascii", errors="surrogateescape")  # names of folders are any bytes
    except OSError:
        return ""


def _busy_cores(root: Path) -> float:
    """Return how many cores other threads of the machine want now.

    Linux counts the threads that are running or waiting for a core, without delay; one of them is this one. Elsewhere
    there is only the load average of the last minute. Both are of the whole machine, also in a container.
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
    """Time a training step of a few small convolutions with each number of threads; return the mean seconds.

    The counts take turns, so that a change of the load hits all of them. The tensors are private and not random: the
    training that follows is the same with and without it.
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
