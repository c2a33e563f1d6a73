"""Limits of the machine: stop and continue, few open files, little memory, small files, clock jumps, power failures.

After a limit ended a run, the same command or --resume without the limit must end with the same bits as an undisturbed
run. SIGKILL at a size of memory simulates the OOM killer, without the permissions that a cgroup needs.

Power failures are simulated. The calls of a save are recorded, and after each call the worst allowed state of the disk
is written: content without fsync is lost. Names without an fsync of their folder exist on one disk and are missing on
another. The old or the new checkpoint must load from both.
"""

import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from faults.counting import Count, Settings, finish, run, start
from faults.kills import digest
from skipway.errors import InputError
from skipway.training import checkpoint
from skipway.utils import atomic_files

_TRAIN = ["train", "wine", "--epochs", "12", "--threads", "1", "--save-every", "0"]
_MB = 2**20
_LIMITS = (
    *((resource.RLIMIT_AS, size * _MB) for size in (300, 600, 900, 1200, 1600, 2400)),
    *((resource.RLIMIT_NOFILE, count) for count in (6, 9, 12, 16, 24, 40)),
    *((resource.RLIMIT_FSIZE, size) for size in (0, 100, 1000, 5000, 20_000, 100_000)),
)
_QUICK_EPOCHS = 100  # of the long run
_DOCUMENTED = (0, 2, 3, 4, 75)
_JUMPS = "import random, time\nreal = time.time\ntime.time = lambda: real() + random.choice((-1e5, 0, 1e5, 1e9))\n"


def parts(settings: Settings) -> Iterator[Count]:
    """Run the trials of each limit."""
    with tempfile.TemporaryDirectory(prefix="skipway-limits-") as name:
        place = Path(name)
        run([*_TRAIN, "-o", str(place), "--name", "whole"], place)
        expected = digest(place / "whole")
        draw = random.Random(settings.seed)
        for work in (stopped, limited, killed_by_size, without_shared_memory, clock_jumps):
            yield work(settings, place, expected, draw)
        yield power_cuts(settings.count("limits: power cuts at every call of a save", 10**6))
        epochs = 5000 if settings.share == 1 else _QUICK_EPOCHS
        yield long_run(Count("limits: epochs without growth", epochs, settings.minutes), place)


def stopped(settings: Settings, place: Path, expected: str, draw: random.Random) -> Count:
    """Send SIGSTOP and SIGCONT at random times."""
    count = settings.count("limits: SIGSTOP and SIGCONT", 20)
    for number in count:
        process = start([*_TRAIN, "-o", ".", "--name", f"stopped-{number}"], place)
        for _ in range(3):
            time.sleep(draw.uniform(0.2, 2))
            for sent in (signal.SIGSTOP, signal.SIGCONT):
                if process.poll() is None:
                    os.kill(process.pid, sent)
                    time.sleep(draw.uniform(0, 0.5))
        judge(count, place / f"stopped-{number}", finish(process), expected, (0,))
    return count


def limited(settings: Settings, place: Path, expected: str, draw: random.Random) -> Count:
    """Limit the memory, the open files or the file size, then repeat the command without the limit."""
    count = settings.count("limits: ulimit -v, -n, -f", len(_LIMITS))
    for number in count:
        kind, value = _LIMITS[(number * 7) % len(_LIMITS)]
        limits = {"preexec_fn": lambda kind=kind, value=value: resource.setrlimit(kind, (value, value))}
        name = f"limited-{number}"
        code, errors = run(command(place, name), place, **limits)
        if code not in _DOCUMENTED or "Traceback" in errors:
            count.fault("broken", f"{name} ended with {code}: {errors[-200:]}")
        judge(count, place / name, run(command(place, name), place) if code else (code, errors), expected, (0,))
    return count


def killed_by_size(settings: Settings, place: Path, expected: str, draw: random.Random) -> Count:
    """Send SIGKILL at a size of memory up to the peak of an undisturbed run, then repeat the command."""
    count = settings.count("limits: SIGKILL at a size of memory", 20)
    peak = _kill_at(start(command(place, "peak"), place), 1e9)
    for number in count:
        name = f"size-{number}"
        _kill_at(start(command(place, name), place), draw.uniform(0.3, 1) * peak)
        judge(count, place / name, run(command(place, name), place), expected, (0,))
    return count


def _kill_at(process: subprocess.Popen, megabytes: float) -> float:
    """Kill a command when it uses this much memory; return its peak memory in MiB."""
    peak = 0.0
    while process.poll() is None:
        pages = Path(f"/proc/{process.pid}/statm").read_text().split()[1]
        peak = max(peak, int(pages) * 4096 / _MB)
        if peak > megabytes:
            process.kill()
            break
        time.sleep(0.01)
    finish(process)
    return peak


def without_shared_memory(settings: Settings, place: Path, expected: str, draw: random.Random) -> Count:
    """Run one and two processes with a /dev/shm of 64 KB. Without root, no trials are run."""
    count = settings.count("limits: a /dev/shm of 64 KB", 2)
    if os.geteuid():
        count.planned = 0
    for number in count:
        name = f"shared-{number}"
        words = [sys.executable, "-m", "skipway", *command(place, name), *(["--nproc", "2"] if number else [])]
        script = f"mount -t tmpfs -o size=64k tmpfs /dev/shm && exec {shlex.join(words)}"
        result = finish(start(["-c", script], place, program=("unshare", "-m", "sh")))
        judge(count, place / name, result, "" if number else expected, (0,))
    return count


def command(place: Path, name: str) -> list[str]:
    """Return the command that starts a run, or resumes it if its folder exists."""
    if (place / name / "config.yaml").exists():
        return ["train", "--resume", name]
    return [*_TRAIN, "-o", ".", "--name", name]


def clock_jumps(settings: Settings, place: Path, expected: str, draw: random.Random) -> Count:
    """Run with a wall clock that jumps by a day or by years between any two calls."""
    count = settings.count("limits: clock jumps", 10)
    (place / "sitecustomize.py").write_text(_JUMPS)
    for number in count:
        words = [*_TRAIN, "-o", ".", "--name", f"jumps-{number}"]
        paths = f"{place}{os.pathsep}{Path(checkpoint.__file__).parents[2]}"
        result = run(words, place, variables={"PYTHONPATH": paths})
        judge(count, place / f"jumps-{number}", result, expected, (0,))
    return count


def judge(count: Count, folder: Path, result: tuple[int | None, str], expected: str, codes: tuple[int, ...]) -> None:
    """Count a fault if a command ended with an undocumented code, or succeeded with other weights."""
    code, errors = result
    if code not in codes or "Traceback" in errors:
        count.fault("broken", f"{folder.name} ended with {code}: {errors[-200:]}")
    elif code == 0 and expected and digest(folder) != expected:
        count.fault("wrong", f"{folder.name} has other weights")
    shutil.rmtree(folder, ignore_errors=True)


class RecordingOs:
    """Module `os` that records the calls that change a disk."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self._paths: dict[int, str] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def open(self, path: str, flags: int, *mode: int) -> int:
        descriptor = os.open(path, flags, *mode)
        self._paths[descriptor] = str(path)
        if flags & os.O_CREAT:
            self.calls.append(("create", str(path)))
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        count = os.write(descriptor, data)
        self.calls.append(("write", self._paths[descriptor], bytes(data[:count])))
        return count

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)
        self.calls.append(("fsync", self._paths[descriptor]))

    def mkdir(self, path: str, *mode: int) -> None:
        os.mkdir(path, *mode)
        self.calls.append(("mkdir", str(path)))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)
        self.calls.append(("rename", str(source), str(target)))

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)
        self.calls.append(("rename", str(source), str(target)))


def power_cuts(count: Count) -> Count:
    """Simulate a power failure after every call of a second, a repeated and a third save."""
    tensors = {"a": torch.arange(3000.0)}
    cuts = []
    for steps in ((1, 2), (1, 1), (1, 2, 3)):
        folder = Path(tempfile.mkdtemp(prefix="skipway-power-"))
        for step in steps[:-1]:
            checkpoint.save_checkpoint(folder, step, tensors, {"x": step})
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        atomic_files.os = recorder = RecordingOs()
        try:
            checkpoint.save_checkpoint(folder, steps[-1], tensors, {"x": steps[-1]})
        finally:
            atomic_files.os = os
        shutil.rmtree(folder)
        for number in range(len(recorder.calls) + 1):
            cuts += [(folder, before, recorder.calls, number, eager, steps) for eager in (True, False)]
    count.planned = min(count.planned, len(cuts))
    for number in count:
        folder, before, calls, done, eager, steps = cuts[number]
        write_disk(before, calls[:done], eager)
        allowed = steps[-2:] if done < len(calls) else steps[-1:]
        try:
            if checkpoint.load_checkpoint(folder).step not in allowed:
                count.fault("lost", f"{steps}: an old step loaded after {done} of {len(calls)} calls")
        except InputError as error:
            count.fault("lost", f"{steps}: after {done} of {len(calls)} calls ({eager=}): {error}")
        shutil.rmtree(folder, ignore_errors=True)
    return count


def write_disk(before: dict[Path, bytes], calls: list[tuple], eager: bool) -> None:
    """Write the state of the disk after a power failure: synced content, with all names (eager) or the durable ones."""
    contents = {str(path): data for path, data in before.items()}
    pending: list[tuple] = []
    files = dict(contents)  # durable names
    written: dict[str, bytes] = {}
    for call, path, *rest in calls:
        if call == "write":
            written[path] = written.get(path, b"") + rest[0]
        elif call == "fsync" and path in written:
            contents[path] = written[path]  # content belongs to the file, even if its name changes later
            files = {name: contents[path] if name == path else data for name, data in files.items()}
        elif call == "fsync":
            for change in [c for c in pending if os.path.dirname(c[1]) == path]:
                _apply(files, change, contents)
                pending.remove(change)
        else:
            pending.append((call, path, *rest))
    for change in pending if eager else ():
        _apply(files, change, contents)
    for path, data in files.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(data)


def _apply(files: dict[str, bytes], change: tuple, contents: dict[str, bytes]) -> None:
    call, path, *rest = change
    if call == "create":
        files[path] = contents.get(path, b"")
    elif call == "rename":
        for name in [name for name in files if name == path or name.startswith(f"{path}/")]:
            files[rest[0] + name.removeprefix(path)] = files.pop(name)


def long_run(count: Count, place: Path) -> Count:
    """Run thousands of epochs. The files, handles and memory of the process must not grow."""
    words = ["train", "wine", "--epochs", str(count.planned), "--threads", "1", "--save-every", "0", "-o", "."]
    planned, begin = count.planned, time.monotonic()
    process = start([*words, "--patience", str(planned), "--name", "long"], place)
    results = place / "long" / "results.csv"
    first = None
    while process.poll() is None and time.monotonic() - begin < 60 * count.minutes:
        time.sleep(0.5)
        try:
            epochs = results.read_text().count("\n") - 1
            if epochs >= planned:
                continue  # the run evaluates and writes its report
            state = Path(f"/proc/{process.pid}")
            pages = int((state / "statm").read_text().split()[1])
            sample = (len(os.listdir(state / "fd")), pages * 4096 / _MB, sum(1 for _ in (place / "long").rglob("*")))
        except (OSError, ValueError, IndexError):
            continue
        if epochs > max(20, planned // 20) and first is None:
            first = sample
        if first:
            count.done, count.peak = epochs, sample[1]
            grown = [now - then for now, then in zip(sample, first, strict=True)]
    process.terminate()
    code, errors = finish(process)
    count.seconds = time.monotonic() - begin
    if code == 0:
        count.done = planned
    if code not in (0, 75):
        count.fault("broken", f"exit code {code}: {errors[-200:]}")
    if first is None:
        count.fault("broken", "no sample was taken")
    elif grown[0] > 2 or grown[1] > 30 or grown[2] > 8:
        count.fault("broken", f"grew by {grown[0]} handles, {grown[1]:.0f} MB, {grown[2]} files from {first}")
    return count
