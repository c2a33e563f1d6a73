"""A short form of benchmarks/faults/run_folders.py: a damaged file under every command, for every kind of run."""

import os
import random
import sys
from pathlib import Path

import pytest

from skipway.report import html
from skipway.utils import stop_signals

sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
from faults import run_folders  # noqa: E402
from faults.mutations import CANARY  # noqa: E402


@pytest.fixture(scope="module", params=run_folders.KINDS)
def place(tmp_path_factory, request):
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        yield run_folders.Place(tmp_path_factory.mktemp("damaged"), request.param)
    os.chdir(before)


def test_a_damaged_file_of_a_run_is_one_line_and_no_fault_of_ours(place, monkeypatch):
    monkeypatch.setattr(stop_signals, "STOP", stop_signals.STOP)  # each command has its own
    draw = random.Random(len(place.kind.commands) + len(place.files))
    for number, words in enumerate(place.kind.commands):
        if words[0] not in ("export", "grow"):  # which take seconds, and read what others read
            assert place.attempt(draw, number) == ""
    assert not any(place.folder.rglob(CANARY))


def test_what_is_looked_for_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(stop_signals, "STOP", stop_signals.STOP)
    monkeypatch.chdir(tmp_path)
    assert run_folders.run_here(["summary", "nothing"])[0] == 2
    monkeypatch.setattr("skipway.commands.summary.summarize", lambda *_, **__: {}["a"])
    code, errors = run_folders.run_here(["summary", "nothing"])
    assert code == 70 and code not in run_folders.CODES
    assert errors.startswith("skipway: error: internal error: KeyError")
