"""Let every call of one save and of one report fail: ENOSPC, EIO, and writes that take less than they get.

The errors are the kernel's own: strace attaches to a process that is about to save, and lets the k-th call of a name
fail, k = 1, 2, 3, ... until the work is done before its turn comes. After each, the old or the new file is whole.
"""

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from faults.counting import Count, Settings
from skipway.cli import crash_traceback
from skipway.errors import SkipwayError
from skipway.report import html
from skipway.runs.train_run import train
from skipway.training import checkpoint
from skipway.utils import atomic_files

_CALLS = ("openat", "write", "fsync", "rename", "mkdir", "fallocate", "ftruncate")
_DOCUMENTED = (0, 2, 4)


def parts(settings: Settings) -> Iterator[Count]:
    """Fail every call of a save, of a file of weights and of a report."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="skipway-disks-") as name:
        place = Path(name)
        train("wine", output=place, name="run", epochs=1, threads=1, console=None)
        tensors = {"a": torch.arange(5000.0), "b": torch.zeros(3)}

        def save(folder: Path) -> None:
            checkpoint.save_checkpoint(folder / "last", 2, tensors, {"x": 2})

        def prepare_save(folder: Path) -> None:
            checkpoint.save_checkpoint(folder / "last", 1, tensors, {"x": 1})

        def check_save(folder: Path) -> bool:
            return checkpoint.load_checkpoint(folder / "last").step in (1, 2)

        works = {
            "a save": (prepare_save, save, check_save),
            "a report": (
                lambda folder: shutil.copytree(place / "run", folder, dirs_exist_ok=True),
                html.write,
                lambda folder: (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"),
            ),
        }
        for (what, (prepare, work, check)), error in itertools.product(works.items(), ("ENOSPC", "EIO")):
            count = settings.count(f"disks: {error} at every call of {what}", 10**6)
            fail_each_call(count, error, prepare, work, check)
            yield count
        count = settings.count("disks: short writes in a save", 100)
        for number in count:
            folder = Path(tempfile.mkdtemp(dir=place))
            prepare_save(folder)
            write_in_pieces(number + 1, lambda folder=folder: save(folder))
            if checkpoint.load_checkpoint(folder / "last").step != 2:
                count.fault("lost", f"pieces of {number + 1} calls")
        yield count


def fail_each_call(
    count: Count,
    error: str,
    prepare: Callable[[Path], object],
    work: Callable[[Path], object],
    check: Callable[[Path], bool],
) -> None:
    """Run `work` once for each of its calls, with that one failing."""
    plan = ((call, when) for call in _CALLS for when in range(1, 2000))
    skipped = ""
    for _ in count:
        call, when = next(((c, w) for c, w in plan if c != skipped), ("", 0))
        if not call:
            count.done -= 1
            count.planned = count.done
            break
        with tempfile.TemporaryDirectory(prefix="skipway-disk-") as name:
            folder = Path(name)
            prepare(folder)
            code, was_injected = injected(lambda folder=folder: work(folder), f"{call}:error={error}:when={when}")
            if not was_injected:
                skipped = call  # the work has fewer calls of this name
            if code not in _DOCUMENTED:
                count.fault("broken", f"{call} {when}: exit code {code}")
            try:
                is_whole = check(folder)
            except (SkipwayError, OSError, UnicodeDecodeError):
                is_whole = False
            if not is_whole:
                count.fault("lost", f"{call} {when}: neither the old nor the new one is whole")


def injected(work: Callable[[], object], fault: str) -> tuple[int, bool]:
    """Run `work` in a forked child under strace; return its exit code and whether the fault took place."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        code = 0
        try:
            work()
        except Exception as error:  # as the command line ends
            cause = error if isinstance(error, SkipwayError) else crash_traceback._cause_outside(error)
            code = cause.exit_code if cause else 70
        os._exit(code)
    os.close(ready)
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", log.name, "-e", f"trace={fault.split(':')[0]}", "-e", f"inject={fault}"]
            + ["-p", str(child)],
            stderr=subprocess.DEVNULL,
        )
        while tracer.poll() is None and "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
            time.sleep(0.005)
        os.write(go, b"x")
        os.close(go)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tracer.wait()
        return code, "INJECTED" in log.read()


class PiecewiseOs:
    """`os` whose n-th write takes half of what it gets."""

    def __init__(self, when: int) -> None:
        self.when = when

    def __getattr__(self, name: str) -> object:
        return self._write if name == "write" else getattr(os, name)

    def _write(self, descriptor: int, data: bytes) -> int:
        self.when -= 1
        return os.write(descriptor, data[: max(1, len(data) // 2)] if self.when == 0 else data)


def write_in_pieces(when: int, work: Callable[[], object]) -> None:
    """Run `work` with a disk whose n-th write is short."""
    atomic_files.os = PiecewiseOs(when)
    try:
        work()
    finally:
        atomic_files.os = os
