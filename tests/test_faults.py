"""Short forms of `make faults`, and the catalogue of docs/explanation/hostile-input.md: each of its tests exists."""

import random
import re
import sys
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest
import torch
from small_runs import image_folder, quick
from torch.utils.data import DataLoader

from skipway.errors import SkipwayError
from skipway.utils import atomic_files

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from faults import formats, limits, mutations  # noqa: E402
from faults.counting import Count  # noqa: E402

PAGE = (ROOT / "docs" / "explanation" / "hostile-input.md").read_text(encoding="utf-8")
CASES = re.findall(r"^\| ([A-Z]\d+) \|.*\|.*\| (.*) \|$", PAGE, re.M)


def test_the_catalogue_has_every_case_and_its_tests_exist():
    counts = {"C": 18, "I": 29, "T": 9, "N": 8, "P": 11, "M": 9}
    assert [case for case, _ in CASES] == [f"{kind}{i + 1}" for kind, count in counts.items() for i in range(count)]
    assert all("`tests/" in cell for _, cell in CASES)
    names = [name for _, cell in CASES for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) >= 80
    for name in names:
        path, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), name


@pytest.mark.parametrize("kind", [kind for kind in formats.ATTEMPTS if "pickles" not in kind])
def test_damaged_files_are_read_or_refused_in_one_line(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    attempt, draw = formats.ATTEMPTS[kind](tmp_path), random.Random(kind)
    for _ in range(60):
        try:
            attempt(draw)
        except SkipwayError as error:
            assert error.exit_code != 70 and "\n" not in str(error)
    assert not any(tmp_path.parent.rglob(mutations.CANARY))


def test_damage_is_damage():
    draw = random.Random(0)
    data, values = bytes(range(200)), {"a": [1, 2], "b": {"c": "d"}}
    assert sum(mutations.damage(draw, data) == data for _ in range(200)) < 20
    assert sum(mutations.restructure(draw, values) == values for _ in range(200)) < 40
    assert values == {"a": [1, 2], "b": {"c": "d"}}


def test_a_run_has_no_worker_processes_and_no_shared_memory(tmp_path, monkeypatch):
    class Refused(Exception):
        pass

    def refuse(*_, **__):
        raise Refused

    monkeypatch.setattr(BaseProcess, "start", refuse)
    monkeypatch.setattr(SharedMemory, "__init__", refuse)
    for name in ("_new_using_fd_cpu", "_new_using_filename_cpu", "_share_fd_cpu_", "_share_filename_cpu_"):
        monkeypatch.setattr(torch.UntypedStorage, name, refuse)
    for work in (lambda: list(DataLoader([1], num_workers=1)), torch.zeros(1).share_memory_):
        with pytest.raises(Refused):
            work()
    run = quick(image_folder(tmp_path / "kinds"), tmp_path / "runs")
    assert len(run.history) == 2


def test_no_clock_of_the_wall_is_read():
    clocks = re.compile(r"\btime\.(time|time_ns|localtime|gmtime|strftime)\(|\b(datetime|date)\.(now|utcnow|today)\(")
    assert clocks.search("then = time.time()") and clocks.search("datetime.now()")
    readers = [path for path in (ROOT / "skipway").rglob("*.py") if clocks.search(path.read_text(encoding="utf-8"))]
    # The cache compares the age of files with their times, and shows when an entry was used; no run depends on either.
    assert {path.name for path in readers} == {"content_stamps.py", "cache.py"}


def test_a_power_cut_at_any_call_of_a_save_leaves_the_old_step_or_the_new_one():
    count = limits.power_cuts(Count("power cuts", 10**6))
    assert count.done > 50 and not count.has_faults, count.faults


@pytest.mark.parametrize("call", ["sync_folder", "fsync"])
def test_without_a_flush_a_power_cut_would_lose_a_save(call, monkeypatch):
    if call == "fsync":
        monkeypatch.setattr(limits.RecordingOs, "fsync", lambda self, descriptor: None)
    else:
        monkeypatch.setattr(atomic_files, "sync_folder", lambda folder: None)
    assert limits.power_cuts(Count("power cuts", 10**6)).lost
