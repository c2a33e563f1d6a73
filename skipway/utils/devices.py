"""Device, bf16 support and number of CPU threads of this machine, which all commands take from here.

`auto` chooses an accelerator that torch finds: CUDA or ROCm, Intel XPU, Apple MPS. Small tables stay on the CPU.

The number of threads follows from cores, CPU affinity, cgroup quota and load. Threads that share a core delay all
others at the end of each operation: two threads on one core train 40 times slower than one. The number therefore
never exceeds the number of available cores.

Format: `/proc/loadavg`, proc(5).
"""

import contextlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.errors import InputError, printable
from skipway.utils.cgroup_quotas import cgroup_quotas, read_text

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEVICE_FORM",
    "DEVICE_WORDS",
    "LARGE_TABLE",
    "ThreadCount",
    "available_cores",
    "available_threads",
    "current_device",
    "device_exists",
    "device_counts",
    "device_for",
    "device_kind",
    "device_name",
    "device_names",
    "fastest_threads",
    "forked_rng",
    "has_bf16",
    "has_float64",
    "has_fp16",
    "local_processes",
    "refuse_excess_processes",
    "seed_random",
    "set_threads",
]

_VOLTA = (7, 0)  # compute capability of the first GPUs with tensor cores
DEVICE_FORM = r"auto|cpu|mps|(?:cuda|xpu)(?::\d{1,3})?"  # of the option --device
DEVICE_WORDS = "auto, cpu, cuda, cuda:1, xpu or mps"
# Training rows from which `auto` trains a table on an accelerator. The steps of smaller tables are so short that most
# of the time would start kernels. The bound is an estimate, which has not been measured on a GPU.
LARGE_TABLE = 1_000_000
_WITHOUT_FLOAT64 = ("mps",)
_ACCELERATORS = ("cuda", "xpu", "mps")  # in the order in which `auto` prefers them; ROCm is cuda, too

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


def device_counts() -> dict[str, int]:
    """Return the number of devices that torch finds, by kind of accelerator; empty if there is only a CPU."""
    import torch

    modules = {kind: torch.get_device_module(kind) for kind in _ACCELERATORS}
    return {kind: module.device_count() for kind, module in modules.items() if module.is_available()}


def device_for(requested: str, *, rows: int | None = None) -> str:
    """Return the device for the option `requested` on this machine: "cpu", "cuda", "cuda:1", "xpu", "mps" and so on.

    Args:
        requested: a device, or "auto" for an accelerator if torch finds one, else the CPU.
        rows: number of training rows of a table, which "auto" leaves on the CPU below `LARGE_TABLE`; None for images.

    Raises:
        InputError: the text is no device, or torch does not find it on this machine.

    >>> device_for("cpu"), device_for("auto", rows=1000)
    ('cpu', 'cpu')
    """
    if not re.fullmatch(DEVICE_FORM, requested):
        raise InputError(
            f"invalid device: expected {DEVICE_WORDS}, got {printable(requested)[:40]!r}. Choose another --device."
        )
    if requested == "cpu" or (requested == "auto" and rows is not None and rows < LARGE_TABLE):
        return "cpu"
    if requested == "auto":
        return next(iter(device_counts()), "cpu")
    if device_exists(requested):
        return requested
    raise InputError(
        f"cannot use --device {requested}: expected a device that torch finds here ({', '.join(device_names())}), got "
        f"{requested}. Choose one of them, or install torch for that device."
    )


def device_names() -> list[str]:
    """Return the devices of this machine: "cpu", and each accelerator with its index."""
    counts = device_counts().items()
    return ["cpu", *(kind if kind == "mps" else f"{kind}:{i}" for kind, count in counts for i in range(count))]


def device_exists(device: str) -> bool:
    """Return True if torch finds a device, such as "cpu" or "cuda:1", on this machine."""
    kind, _, index = device.partition(":")
    return kind == "cpu" or int(index or 0) < device_counts().get(kind, 0)


def device_kind(device: str) -> str:
    """Return the kind of a device: "cuda" for "cuda:1"."""
    return device.partition(":")[0]


def device_name(device: str) -> str:
    """Return the name of an accelerator as its driver reports it, or its kind: "cpu" for a CPU."""
    import torch

    kind = device_kind(device)
    return torch.get_device_module(kind).get_device_name(device) if kind in ("cuda", "xpu") else kind


@contextlib.contextmanager
def current_device(device: str) -> Iterator[None]:
    """Make the device of an index, such as "cuda:1", the current one of its kind until the context ends."""
    kind, _, index = device.partition(":")
    if not index:
        yield
        return
    import torch

    module = torch.get_device_module(kind)
    before = module.current_device()
    module.set_device(int(index))
    try:
        yield
    finally:
        module.set_device(before)


def has_bf16(device: str) -> bool:
    """Return True if the hardware multiplies bfloat16 matrices natively (AMX, AVX512-BF16, recent GPUs).

    MPS computes in bfloat16 from macOS 14 on, but whether it is faster has not been measured: False.
    """
    import torch

    kind = device_kind(device)
    if kind in ("cuda", "xpu"):
        return torch.get_device_module(kind).is_bf16_supported(including_emulation=False)
    return kind == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def has_fp16(device: str) -> bool:
    """Return True if the device is a GPU that multiplies float16 matrices fast (Volta and later)."""
    import torch

    return device_kind(device) == "cuda" and torch.cuda.get_device_capability(device) >= _VOLTA


def has_float64(device: str) -> bool:
    """Return True if the device computes in float64, which MPS does not."""
    return device_kind(device) not in _WITHOUT_FLOAT64


def forked_rng(device: "torch.device") -> contextlib.AbstractContextManager[None]:
    """Return a context that restores the random generators of the CPU and of `device` when it ends."""
    import torch

    if device.type not in _ACCELERATORS:
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def seed_random(seed: int, device: "torch.device") -> None:
    """Seed the random generators of torch that `device` uses.

    `torch.manual_seed` also formats the stack for each kind of accelerator that is not initialized, which takes as long
    as a small layer.
    """
    import torch

    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def refuse_excess_processes(processes: int, requested: str) -> None:
    """Raise an error if the processes of a training on this machine cannot have a device each.

    Args:
        processes: number of processes on this machine.
        requested: the option `device`. If it is "auto", an accelerator is used if there is one.

    Raises:
        InputError: there are more processes than devices of the kind, or all would share the device of an index.
    """
    device = device_for(requested)
    if processes == 1 or device == "cpu":
        return
    kind, _, index = device.partition(":")
    if index:
        raise InputError(
            f"cannot train in {processes} processes on {device}: expected a kind of device, because each process has "
            f"its own, got an index. Use --device {kind}."
        )
    count = device_counts()[kind]
    if processes > count:
        raise InputError(
            f"cannot train in {processes} processes on {kind}: expected at most as many as devices, which are {count} "
            f"here. Use --nproc {count}, or --device cpu."
        )


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
    if quotas := list(cgroup_quotas(root)):
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


def set_threads(requested: int | None, *, table: bool, report: Callable[[str], None]) -> None:
    """Set the number of threads of torch for a training.

    Args:
        requested: the option `threads`, which takes precedence.
        table: train on a table with 1 thread, because its small layers run slower with several.
        report: prints the number if it was measured.
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
            report(f"threads: {count}, because {threads.reason}")
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


def _busy_cores(root: Path) -> float:
    """Return the number of cores that other threads of the machine request now.

    Linux reports the number of runnable threads, which includes this one. Other systems only have the load average of
    the last minute. Both values cover the whole machine, also in a container.
    """
    running = []
    for _ in range(_LOAD_SAMPLES):
        words = read_text(root / "proc/loadavg").split()
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
