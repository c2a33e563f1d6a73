import gc
import os
import shutil
import subprocess

import pytest
import torch
from fake_gpu_backend import register
from hypothesis import settings
from matplotlib.figure import Figure
from PIL import Image

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # nobody answers there: no test reaches the Hub by accident

if not torch.cuda.is_available():
    register()  # now, for autograd starts a thread for each known device at the first backward pass of a process

# The same examples on every machine and in every run: a failure is one of the code, never of the draw.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


# Python looks for cycles after every 700 new objects, and among them all after some more: a sixth of the suite's time.
gc.set_threshold(10_000)


def pytest_collectstart():
    """Seed torch before a module is imported: networks of `parametrize` have the same weights in every run."""
    torch.manual_seed(0)


def pytest_collection_finish():
    """Leave what is imported by now, which stays to the end, out of every search for cycles."""
    gc.freeze()


ABOUT_RUNS = ("runs", "commands", "test_runs_on_fake_gpu.py", "test_docs.py")


def save_blank(figure, path, **_):
    Image.new("RGB", (8, 8), "white").save(path, "PNG")


@pytest.fixture(autouse=True)
def unrendered_figures(request, monkeypatch):
    """Save a blank PNG for each figure of a test that is about runs: rendering takes a tenth of a second, 500 times.

    tests/report renders every kind of figure. Tests of the command line and those marked `rendered` render a run's.
    """
    about_runs = request.path.parent.name in ABOUT_RUNS or request.path.name in ABOUT_RUNS
    if about_runs and not request.node.get_closest_marker("rendered"):
        monkeypatch.setattr(Figure, "savefig", save_blank)


@pytest.fixture
def one_thread():
    """Two threads that wait for each other on a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Keep the cache of this machine out of the tests, which set another one for what is about it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKIPWAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def hidden_apple_gpu():
    """Hide an Apple GPU, whose numbers differ from the CPU's; tests/test_runs_on_mps.py shows it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.mps, "is_available", lambda: False)
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_disk(tmp_path):
    """A real disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.name == "nt" or os.geteuid() or not shutil.which("mount"):
        pytest.skip("mounting a tmpfs needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)
