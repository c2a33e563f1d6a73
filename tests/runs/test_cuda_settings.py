"""Deterministic algorithms, the settings of cuDNN, and what a run records about its GPU."""

import json
import os

import pytest
import torch
from fake_gpu import fake_gpu
from small_runs import Words, image_folder, quick, train

from skipway.errors import InputError
from skipway.runs import cuda_settings as module
from skipway.runs.cuda_settings import cuda_settings, gpu_facts, refuse_nondeterministic
from skipway.runs.environment import describe_environment
from skipway.runs.recipe import Recipe
from skipway.training.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="the fake GPU takes the place of the real one"),
]


def state():
    flags = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    return *flags, os.environ.get("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.parametrize(
    "device, deterministic, expected",
    [
        ("cuda", True, (True, False, ":4096:8")),
        ("cuda:0", False, (False, True, None)),
        ("cpu", True, (False, False, None)),
        ("mps", False, (False, False, None)),
    ],
)
def test_the_algorithms_of_cuda_are_set_for_the_run_only(device, deterministic, expected, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with pytest.raises(KeyError), cuda_settings(device, deterministic=deterministic):
        assert state() == expected
        raise KeyError
    assert state() == before == (False, False, None)


def test_a_workspace_that_is_set_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with cuda_settings("cuda", deterministic=True):
        assert state() == (True, False, ":16:8")
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_an_operation_without_a_deterministic_algorithm_is_named():
    message = "cannot train with --deterministic: expected .*, got reflection_pad2d_backward_cuda, which has none."
    with pytest.raises(InputError, match=message), refuse_nondeterministic():
        raise RuntimeError("reflection_pad2d_backward_cuda does not have a deterministic implementation, but you set")
    with pytest.raises(RuntimeError, match="of another kind"), refuse_nondeterministic():
        raise RuntimeError("an error of another kind")


def test_a_run_that_meets_such_an_operation_ends_in_one_line(tmp_path, monkeypatch):
    def backward(self, loss):
        raise RuntimeError("adaptive_max_pool2d_backward_cuda does not have a deterministic implementation, but")

    monkeypatch.setattr(Trainer, "backward", backward)
    with pytest.raises(InputError, match="got adaptive_max_pool2d_backward_cuda, which has none. Choose another"):
        quick(image_folder(tmp_path / "data", count=10), tmp_path, epochs=1)


def test_a_run_records_its_gpu_and_resuming_on_another_one_reports_it(tmp_path, monkeypatch):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\nGCC version: 12\n")
    monkeypatch.setattr(module, "_DRIVER", driver)
    data = image_folder(tmp_path / "data", count=10)
    with fake_gpu():
        facts = gpu_facts("cuda")
        assert facts["gpu"] == "Fake GPU" and facts["driver"] == "550.54.15" and facts["tf32"] == "convolutions"
        lines = Words()
        run = quick(data, tmp_path, epochs=1, batch_size=8, deterministic=True, console=lines)
        assert "deterministic: a resumed run is exact to the bit" in lines
        recorded = json.loads((run.path / "env.json").read_text())
        assert recorded["driver"] == facts["driver"] and recorded["cudnn"] == facts["cudnn"]
        lines = Words()
        train(resume=run.path, epochs=2, console=lines)
        assert "a GPU without" not in lines and "gpu changed" not in lines
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Other GPU")
        lines = Words()
        train(resume=run.path, epochs=3, deterministic=False, console=lines)
        assert "gpu changed from Fake GPU to Other GPU" in lines and "a GPU without --deterministic" in lines


def test_the_cpu_has_no_facts_of_a_gpu(monkeypatch, tmp_path):
    assert gpu_facts("cpu") == gpu_facts("auto") == {}
    assert not {"driver", "cudnn", "tf32"} & set(describe_environment(Recipe(), "cpu", "fp32", ""))
    monkeypatch.setattr(module, "_DRIVER", tmp_path / "none")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "A")
    assert gpu_facts("cuda:1")["driver"] == "unknown"


def test_the_option_has_no_effect_on_the_cpu_and_says_so(tmp_path):
    lines = Words()
    quick(image_folder(tmp_path / "data", count=10), tmp_path, epochs=1, deterministic=True, console=lines)
    assert "deterministic: no effect, because runs on the CPU are exact without it" in lines
