"""`evaluate` on a run's own weights and images, or rows, has the run's own metrics."""

import numpy as np
import pytest
from small_runs import image_folder, quick

import skipway as sw
from skipway.commands.evaluate import evaluate
from skipway.report import html
from skipway.runs.train_run import train
from skipway.utils.console import Console

METRICS = ("accuracy", "loss", "balanced_accuracy", "macro_f1", "auroc", "ece")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def assert_equal_metrics(evaluation, metrics, names):
    for name in names:
        assert evaluation.metrics[name] == pytest.approx(metrics[f"val_{name}"], rel=1e-6), name


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "fp32", "tta": True}], ids=str)
def test_images_have_the_metrics_of_their_run(tmp_path, monkeypatch, options):
    # Also on hardware on which `predict` computes in bfloat16 by default.
    monkeypatch.setattr("skipway.commands.inference_engine.has_bf16", lambda device: True)
    data = image_folder(tmp_path / "d", 16, ("train", "val"))
    run = quick(data, tmp_path / "runs", **options)
    assert_equal_metrics(evaluate(run.path, data, tta=options.get("tta", False)), run.metrics, METRICS)
    assert_equal_metrics(sw.evaluate(run.network(), data, tta=options.get("tta", False)), run.metrics, METRICS)


def test_another_precision_is_used_if_it_is_asked_for(tmp_path):
    data = image_folder(tmp_path / "d", 16, ("train", "val"))
    run = quick(data, tmp_path / "runs")
    lines = []
    console = Console(quiet=True)
    console.print = lines.append
    evaluate(run.path, data, engine="torch", precision="bf16", console=console)
    assert lines == ["engine: torch (bf16)"]


def test_rows_have_the_metrics_of_their_run(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 80), ("val", 40)):
        x = rng.standard_normal((count, 3))
        kind = np.where(x[:, 0] + x[:, 1] > 0, "up", "down")
        rows = [",".join([*(f"{v:.6f}" for v in row), k]) for row, k in zip(x, kind, strict=True)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["a,b,c,kind", *rows]) + "\n")
    run = train(tmp_path, target="kind", output=tmp_path / "runs", epochs=2, threads=1)
    assert_equal_metrics(evaluate(run.path, tmp_path, split="val"), run.metrics, METRICS)
