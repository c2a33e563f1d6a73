"""Runs on the GPU of an Apple chip, and what is set for it before torch is loaded."""

import pytest
import torch
from processes import environment, run_python
from small_runs import image_folder, numbers, quick, train

import skipway as sw

IS_AVAILABLE = torch.mps.is_available  # before conftest.py hides the device
needs_mps = pytest.mark.skipif(not IS_AVAILABLE(), reason="no Apple GPU")
SHORT = {"epochs": 1, "batch_size": 8, "device": "mps"}


@pytest.fixture(autouse=True)
def shown_apple_gpu(monkeypatch):
    monkeypatch.setattr(torch.mps, "is_available", IS_AVAILABLE)


@pytest.mark.parametrize(
    "platform, given, expected", [("darwin", None, "1"), ("darwin", "0", "0"), ("linux", None, "None")]
)
def test_operations_that_mps_lacks_run_on_the_cpu(platform, given, expected):
    code = f"import os, sys; sys.platform = {platform!r}; import skipway; assert 'torch' not in sys.modules; "
    variables = environment()
    variables.pop("PYTORCH_ENABLE_MPS_FALLBACK", None)
    if given is not None:
        variables["PYTORCH_ENABLE_MPS_FALLBACK"] = given
    result = run_python(code + "print(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'))", env=variables, check=True)
    assert result.stdout.strip() == expected


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("mps") / "data", count=10)


@needs_mps
@pytest.mark.parametrize(
    "options", [{}, {"model": "resnet9"}, {"optimizer": "muon", "ema": 0.9, "recompute": "stages"}]
)
def test_an_image_run(data, tmp_path, options):
    run = quick(data, tmp_path, **SHORT, **options)
    assert numbers(run.path)["resolved"]["device"] == "mps"
    files = sorted((data / "ant").glob("*.png"))[:3]
    plain = {"engine": "torch", "precision": "fp32"}
    moved, host = (sw.predict(run.path, files, device=device, **plain) for device in ("mps", "cpu"))
    assert [row.top[0][1] for row in moved] == pytest.approx([row.top[0][1] for row in host], abs=1e-3)
    assert sw.evaluate(run.path, data, device="mps").count == 30


@needs_mps
def test_a_table_run(tmp_path):
    run = train("wine", epochs=2, device="mps", output=tmp_path)
    assert sw.evaluate(run.path, "wine", device="mps").loss == pytest.approx(
        sw.evaluate(run.path, "wine").loss, rel=1e-3
    )
