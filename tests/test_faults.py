"""Short forms of `make faults`, and the catalogue of docs/hostile_input.md: each of its tests exists."""

import random
import re
import sys
from pathlib import Path

import pytest

from skipway.errors import SkipwayError
from skipway.utils import atomic_files

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from faults import formats, limits, mutations  # noqa: E402
from faults.counting import Count  # noqa: E402

PAGE = (ROOT / "docs" / "hostile_input.md").read_text(encoding="utf-8")
CASES = re.findall(r"^\| ([A-Z]\d+) \|.*\|.*\| (.*) \|$", PAGE, re.M)


def test_the_catalogue_has_every_case_and_its_tests_exist():
    counts = {"C": 18, "I": 25, "T": 9, "N": 8, "P": 11, "M": 9}
    assert [case for case, _ in CASES] == [f"{kind}{i + 1}" for kind, count in counts.items() for i in range(count)]
    names = [name for _, cell in CASES for name in re.findall(r"`([^`]+)`", cell)]
    assert len(names) >= 80
    for name in names:
        path, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text(encoding="utf-8"), re.M), name


def test_a_case_without_a_test_says_why():
    bare = re.findall(r"^\| ([A-Z]\d+) \|.*\| - \|$", PAGE, re.M)
    assert bare == ["P3", "P4", "P6"]


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
