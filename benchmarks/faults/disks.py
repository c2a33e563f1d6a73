"""Disk faults at every system call of a save and a report: full, broken and network disks, and short writes.

strace injects real kernel errors. It attaches to a process before it saves, and lets the k-th call of a name fail, for
k = 1, 2, 3, ... until the process makes fewer calls. The old or the new file must be intact after each fault. Short
writes are simulated in Python, and so are renames that report an error after they succeeded, as on a network disk that
loses a response.
"""

import errno
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from faults.counting import Count, Settings
from skipway.cli import crash_traceback
from skipway.errors import SkipwayError, StorageError
from skipway.report import html
from skipway.runs.train_run import train
from skipway.training import checkpoint
from skipway.utils import atomic_files

_CALLS = ("openat", "write", "fsync", "rename", "mkdir", "fallocate", "ftruncate")
_FAULTS = {
    "ENOSPC": _CALLS,
    "EIO": _CALLS,
    "a network disk: EIO": ("close",),
    "a network disk: EDQUOT": ("write", "close"),
    "a network disk: ESTALE": ("openat", "rename", "fsync"),
    "a network disk: EBUSY": ("rename",),
    "a network disk: EINVAL": ("fsync",),
    "a network disk: EOPNOTSUPP": ("fsync",),
}
_OF_QUICK_REPORTS = ("EIO", "a network disk: ESTALE")
_DOCUMENTED = (0, 2, 4)


@dataclass(frozen=True)
class Work:
    """Operation that writes files, with functions to prepare its folder, to run it and to check the result."""

    what: str
    prepare: Callable[[Path], object]
    run: Callable[[Path], object]
    check: Callable[[Path], bool]

    def is_whole(self, folder: Path) -> bool:
        """Return True if the check passes without an error."""
        try:
            return self.check(folder)
        except (SkipwayError, OSError, UnicodeDecodeError):
            return False


def parts(settings: Settings) -> Iterator[Count]:
    """Inject a fault at every call of a save and a report."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="skipway-disks-") as name:
        place = Path(name)
        train("wine", output=place, name="run", epochs=1, threads=1, console=None)
        tensors = {"a": torch.arange(5000.0), "b": torch.zeros(3)}
        save = Work(
            "a save",
            lambda folder: checkpoint.save_checkpoint(folder / "last", 1, tensors, {"x": 1}),
            lambda folder: checkpoint.save_checkpoint(folder / "last", 2, tensors, {"x": 2}, keep=1),
            lambda folder: checkpoint.load_checkpoint(folder / "last").step in (1, 2),
        )
        report = Work(
            "a report",
            lambda folder: shutil.copytree(place / "run", folder, dirs_exist_ok=True),
            html.write,
            lambda folder: (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"),
        )
        for work, fault in itertools.product((save, report), _FAULTS):
            if work is save or settings.share == 1 or fault in _OF_QUICK_REPORTS:
                yield fail_each_call(settings, work, fault)
        for work in (save, report):
            yield mislead(settings, work)
        yield shorten(settings, save)


def fail_each_call(settings: Settings, work: Work, fault: str) -> Count:
    """Run the work once per call of the given names, with that call failing; every tenth call for a share of 0.1."""
    calls, error = _FAULTS[fault], fault.rpartition(" ")[2]
    names = "call" if calls == _CALLS else " and ".join(calls)
    count = Count(f"disks: {fault} at every {names} of {work.what}", 10**6, settings.minutes)
    plan = ((call, when) for call in calls for when in range(1, 2000, round(1 / settings.share)))
    skipped = ""
    for _ in count:
        call, when = next(((c, w) for c, w in plan if c != skipped), ("", 0))
        if not call:
            count.planned = count.done
            break
        with tempfile.TemporaryDirectory(prefix="skipway-disk-") as name:
            folder = Path(name)
            work.prepare(folder)
            code, was_injected = injected(partial(work.run, folder), f"{call}:error={error}:when={when}")
            if not was_injected:
                skipped = call  # the work has fewer calls of this name
                count.done -= 1
            if code not in _DOCUMENTED:
                count.fault("broken", f"{call} {when}: exit code {code}")
            if not work.is_whole(folder):
                count.fault("lost", f"{call} {when}: neither the old nor the new file is intact")
    return count


def mislead(settings: Settings, work: Work) -> Count:
    """Run the work once per rename, with that rename reported as failed although it succeeded."""
    count = Count(f"disks: a network disk: every rename of {work.what} is reported as failed", 10**6, settings.minutes)
    for number in count:
        with tempfile.TemporaryDirectory(prefix="skipway-disk-") as name:
            folder = Path(name)
            work.prepare(folder)
            try:
                took_place = with_fault(("rename", "replace"), number + 1, fail_after, partial(work.run, folder))
            except StorageError:
                took_place = True
            if not work.is_whole(folder):
                count.fault("lost", f"rename {number + 1}: neither the old nor the new file is intact")
        if not took_place:
            count.planned = number
            break
    return count


def shorten(settings: Settings, save: Work) -> Count:
    """Shorten each of the three writes of a save to 0% to 99% of its data."""
    count = settings.count("disks: short writes in a save", 100)
    for number in count:
        with tempfile.TemporaryDirectory(prefix="skipway-disk-") as name:
            folder = Path(name)
            save.prepare(folder)
            took_place = with_fault(
                ("write",), number % 3 + 1, partial(write_part, number % 100), partial(save.run, folder)
            )
            if not took_place or checkpoint.load_checkpoint(folder / "last").step != 2:
                count.fault("lost", f"{number % 100}% of write {number % 3 + 1}")
    return count


def injected(work: Callable[[], object], fault: str) -> tuple[int, bool]:
    """Run `work` in a forked child under strace; return its exit code, and True if the fault was injected."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(go)
        os.read(ready, 1)
        code = 0
        try:
            work()
        except Exception as error:  # like the command line
            cause = error if isinstance(error, SkipwayError) else crash_traceback._cause_outside(error)
            code = cause.exit_code if cause else 70
        os._exit(code)
    os.close(ready)
    with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", log.name, "-e", f"trace={fault.split(':')[0]}", "-e", f"inject={fault}"]
            + ["-p", str(child)],
            stderr=subprocess.PIPE,
            text=True,
        )
        while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
            if tracer.poll() is not None:
                os.kill(child, signal.SIGKILL)
                raise RuntimeError(f"strace ended: {tracer.stderr.read()}")
            time.sleep(0.005)
        os.write(go, b"x")
        os.close(go)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        tracer.communicate()
        return code, "INJECTED" in log.read()


class FaultyOs:
    """Module `os` that replaces the n-th call of the given names by `fault(call, *arguments)`."""

    def __init__(self, names: tuple[str, ...], when: int, fault: Callable[..., object]) -> None:
        self.names, self.when, self.fault = names, when, fault

    def __getattr__(self, name: str) -> object:
        call = getattr(os, name)
        if name not in self.names:
            return call

        def counted(*arguments: object) -> object:
            self.when -= 1
            return self.fault(call, *arguments) if self.when == 0 else call(*arguments)

        return counted


def write_part(percent: int, write: Callable[[int, bytes], int], descriptor: int, data: bytes) -> int:
    """Write the first `percent` of the data, at least 1 byte."""
    return write(descriptor, data[: max(1, len(data) * percent // 100)])


def fail_after(call: Callable[..., object], *arguments: object) -> None:
    """Make the call, then raise an error as if it had failed."""
    call(*arguments)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def with_fault(names: tuple[str, ...], when: int, fault: Callable[..., object], work: Callable[[], object]) -> bool:
    """Run `work` with the n-th call of the given names replaced by `fault`; return True if there was such a call."""
    atomic_files.os = faulty = FaultyOs(names, when, fault)
    try:
        work()
    finally:
        atomic_files.os = os
    return faulty.when <= 0
