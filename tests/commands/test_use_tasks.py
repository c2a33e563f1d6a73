"""What else is done with runs on labels and on numbers: int8, probe, export and compare."""

import numpy as np
import pytest
from many_targets import squares

import skipway as sw
from skipway.commands.export import export_run
from skipway.commands.probe import probe_run
from skipway.data.sources.in_memory import hold_data
from skipway.utils.console import Console

QUICK = {"model": "resnet20", "epochs": 2, "batch_size": 16, "threads": 1, "precision": "fp32", "name": "run"}


def labels_of(random):
    labels = (random.random((60, 4)) < 0.5).astype(int)
    return squares(labels), labels, "multilabel"


def numbers_of(random):
    shares = random.random((60, 2))
    return squares(np.repeat(shares[:, :1], 4, axis=1)), shares * [10, 1000], "regression"


@pytest.fixture(scope="module", params=[labels_of, numbers_of], ids=["labels", "numbers"])
def trained(request, tmp_path_factory):
    """A run on several labels, then on several numbers, whose data stay open."""
    pixels, targets, task = request.param(np.random.default_rng(0))
    with pytest.MonkeyPatch.context() as patch, hold_data(pixels, targets) as name:
        patch.setattr("skipway.report.html.write", lambda folder: folder / "report.html")
        yield sw.train(name, task=task, output=tmp_path_factory.mktemp("runs"), **QUICK), pixels


def test_int8_is_measured_by_the_metric_of_the_task(trained, capsys, monkeypatch):
    run, pixels = trained
    monkeypatch.setattr("skipway.commands.inference_engine._MAX_LOSS", 1.0)
    found = sw.predict(run.path, list(pixels[:3]), engine="torch", precision="int8", console=Console())
    metric = "mean average precision" if run.network().spec.task == "multilabel" else "R2"
    assert all(prediction.usable for prediction in found) and f"int8: {metric} " in capsys.readouterr().out


def test_probe_uses_the_loss_of_the_task(trained):
    run, _ = trained
    values = probe_run(run.path, only=["flow", "lesion", "landscape"], samples=12, points=3).values
    validation = values["flow"]["trained"]["loss"]
    assert 0 < validation < 5 and next(iter(values["lesion"].values()))["measure"] == "loss"
    center = next(iter(values["landscape"]["landscape"].values()))["losses"][1]
    assert center == pytest.approx(run.metrics["val_loss"], rel=1e-4)


def test_a_run_is_exported_and_its_file_returns_what_predict_does(trained, tmp_path):
    torch = pytest.importorskip("torch")
    run, pixels = trained
    written = export_run(run.path, "pt2", tmp_path / "run.pt2")
    found = torch.export.load(written.paths[0]).module()(torch.from_numpy(pixels[:4])).detach().numpy()
    network = run.network()
    images = [image for image in pixels[:4]]
    expected = network.predict_proba(images) if network.spec.task == "multilabel" else network.predict(images)
    assert written.check.difference < 1e-4 and found.shape == expected.shape
    assert np.abs((found - expected) / np.array(network.spec.target_std or (1.0,))).max() < 0.02  # rounding of pixels


def test_runs_are_compared_by_the_metric_of_their_task(trained, tmp_path):
    run, _ = trained
    key = "val_map" if run.network().spec.task == "multilabel" else "val_r2"
    compared = sw.compare([run.path, run.path], tmp_path / "c.png")
    assert compared.metrics[0][key] == run.metrics[key] and key.replace("_", " ") in str(compared)


def test_check_describes_labels_and_numbers_of_images():
    pixels, labels, _ = labels_of(np.random.default_rng(0))
    text = str(sw.check(pixels, y=labels))
    assert ": 4 labels, " in text and f"  0  train {labels[:, 0].sum()}" in text
    pixels, numbers, _ = numbers_of(np.random.default_rng(0))
    text = str(sw.check(pixels, y=numbers))
    first = numbers[:, 0]
    assert "(regression), " in text
    assert f"train {first.min():.4g} to {first.max():.4g}, mean {first.mean():.4g}" in text
