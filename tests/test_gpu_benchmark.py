"""benchmarks/gpu.py runs in a tiny form without a GPU, and says what it needs in full."""

import sys
from pathlib import Path

import pytest
import torch
from image_folders import split_folders

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402


@pytest.mark.usefixtures("one_thread")
def test_every_part_runs_in_a_tiny_form(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    data = str(split_folders(tmp_path / "data", count=6, splits=("train", "val", "test"), side=20))
    gpu.main(["--dry", "--photographs", data, "--cifar", data, "--target", "0"])
    table = capsys.readouterr().out.split("| ---")[-1]
    for way in ("loop", "workers", "ours, kept", "ours, copied", "ours, uncompiled"):
        assert f"| ResNet-50, images/s: {way} |" in table
    for figure in (
        "seconds to compile ResNet-50",
        "synchronizations per step",
        "idle share",
        "blocked by a checkpoint",
        "seconds: ours",
        "seconds: airbench94",
    ):
        assert figure in table
    assert not list((ROOT / "benchmarks" / "results").glob("*-gpu.md"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_one_line_says_what_it_needs():
    with pytest.raises(SystemExit, match=r"^needs a CUDA GPU with bf16 and 24 GB, got none\. --dry runs .*\.$"):
        gpu.main([])


def test_the_idle_share_is_what_no_kernel_covers():
    assert gpu.idle_share([(9, 10), (0, 4), (2, 5), (3, 4)]) == pytest.approx(0.4)
    assert gpu.idle_share([(0, 1), (1, 3)]) == 0
