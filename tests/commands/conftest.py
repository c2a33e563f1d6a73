"""A small run with its data, and its weights alone, for the tests of several commands."""

import shutil

import pytest
from small_runs import image_folder, quick

from skipway.report import html


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("use")
    image_folder(place / "kinds", 12)
    write, html.write = html.write, lambda folder: folder / "report.html"
    quick(place / "kinds", place / "runs", name="run", epochs=6)
    html.write = write
    return place


@pytest.fixture
def weights(place, tmp_path, monkeypatch):
    """Nothing but the file of weights, in a folder of its own, which is also where we are."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "runs" / "run" / "weights" / "best.safetensors", "alone.safetensors")
    return "alone.safetensors"
