"""Counter of faults and runner of processes, shared by all parts."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HEADER = ["tried", "planned", "done", "lost", "wrong", "executed", "broken", "peak MB", "slowest s", "seconds"]
SKIPWAY = (sys.executable, "-m", "skipway")
SHOWN = 20  # maximum number of reported faults per row
HANG = 300  # seconds after which a command counts as hanging


@dataclass
class Count:
    """Row of the table: trials of a kind and their outcomes.

    Attributes:
        lost: trials in which existing work or files disappeared.
        wrong: trials with results that differ from an undisturbed run and were loaded or written without an error.
        executed: trials in which content of a file was executed.
        broken: crashes, hangs, tracebacks, and undocumented exceptions or exit codes.
    """

    what: str
    planned: int
    minutes: float = 1e9
    seed: int = 0
    done: int = 0
    lost: int = 0
    wrong: int = 0
    executed: int = 0
    broken: int = 0
    peak: float = 0
    slowest: float = 0
    seconds: float = 0
    faults: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[int]:
        """Iterate over the trials until the time limit."""
        begin = time.monotonic()
        for number in range(self.planned):
            start = time.monotonic()
            if start - begin > 60 * self.minutes:
                break
            yield number
            self.done += 1
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.seconds = time.monotonic() - begin
        self.peak = max(self.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    def fault(self, kind: str, text: str) -> None:
        """Count a fault of the kind lost, wrong, executed or broken, and keep the text of the first ones."""
        setattr(self, kind, getattr(self, kind) + 1)
        line = " ".join(f"{self.what}, trial {self.done}: {kind}: {text}".split())[:300]
        print(line, flush=True)
        if len(self.faults) < SHOWN:
            self.faults.append(line)

    @property
    def has_faults(self) -> bool:
        return bool(self.lost or self.wrong or self.executed or self.broken)

    def row(self) -> list[str]:
        """Return the cells of the row, in the order of HEADER."""
        cells = [self.planned, self.done, self.lost, self.wrong, self.executed, self.broken]
        usage = [f"{self.peak:.0f}", f"{self.slowest:.1f}", f"{self.seconds:.0f}"]
        return [self.what, *(f"{cell:,}" for cell in cells), *usage]


@dataclass(frozen=True)
class Settings:
    """Share of the trials to run, seed and time limit."""

    share: float = 1.0
    seed: int = 0
    minutes: float = 1e9  # per row

    def count(self, what: str, planned: int) -> Count:
        """Return the counter of a row with `planned` trials in a full run."""
        return Count(what, max(1, round(planned * self.share)), self.minutes, self.seed)


def isolated(work: Callable[..., Count], count: Count, *arguments: object) -> Count:
    """Run `work(count, ...)` in a separate process, so that a crash is one fault and the peak memory is exact."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, count, *arguments).result()
        except BrokenProcessPool:
            count.fault("broken", "the process that reads the files crashed")
            return count


def start(words: list[str], folder: Path, program: tuple[str, ...] = SKIPWAY, **options: object) -> subprocess.Popen:
    """Start `skipway WORDS`, or another program, in `folder` and a new session, with a pipe for standard error."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **options.pop("variables", {})}
    return subprocess.Popen(
        [*program, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        **options,
    )


def finish(process: subprocess.Popen, seconds: float = HANG) -> tuple[int | None, str]:
    """Wait for a command and its group; return its exit code, None if it hangs, and its standard error."""
    try:
        errors = process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        kill_all(process.pid)
        return None, process.communicate()[1]
    deadline = time.monotonic() + seconds
    while alive(process.pid):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            return None, errors + "its children were still running"
        time.sleep(0.02)
    return process.returncode, errors


def processes_of(command: int) -> list[int]:
    """Return the ids of a command and all its descendants. Those of --nproc are in separate groups."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    numbers = [command]
    for number in numbers:
        numbers += [child for child, parent in parents.items() if parent == number]
    return numbers


def kill_all(command: int) -> None:
    """Kill a command and all its descendants at once, like a power failure."""
    for number in processes_of(command):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def alive(group: int) -> bool:
    """Return True if a process of the group is running."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def run(words: list[str], folder: Path, **options: object) -> tuple[int | None, str]:
    """Run a command; return its exit code and its standard error."""
    return finish(start(words, folder, **options))
