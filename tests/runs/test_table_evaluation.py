"""The result of a table is measured on rows that chose nothing, and its probabilities are calibrated."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import make_classification
from small_runs import Words, same_runs
from table_files import homes

import skipway as sw
from skipway.data.sources.in_memory import hold_data
from skipway.report import html
from skipway.runs import table_datamodule
from skipway.runs.datamodule import open_datamodule
from skipway.runs.defaults import settings_for
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from skipway.training.loop import fit
from skipway.training.trainer import Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag
from skipway.utils.uncertainty import wilson_interval

NOISE_RUNS, NOISE_ROWS = 20, 60
LEAD = {"name": "gradient boosting", "val_accuracy": 1.0, "seconds": 0.1}


@pytest.fixture
def fast_report(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def noise_accuracies(seed):
    """The validation accuracy of the epoch that a run keeps, and the highest one, on classes drawn by lot."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.normal(size=(NOISE_ROWS, 6))).add_prefix("x")
    frame["y"] = rng.permutation(np.repeat(["a", "b"], NOISE_ROWS // 2))
    with hold_data(frame) as name:
        recipe = Recipe(data=name, target="y", seed=seed, val_fraction=0.4, epochs=30, threads=1)
        datamodule = open_datamodule(recipe, new=True, epochs_given=True)
        torch.manual_seed(seed)
        network, _ = datamodule.network(Console(quiet=True))
        settings = settings_for(recipe, network.plan, 32, targets=datamodule.target_counts(), is_table=True)
        datamodule.setup(network, 32, "cpu", None)
        trainer = Trainer(network, settings, task=datamodule.task(settings))
        state = fit(
            trainer,
            datamodule.batches("train", train=True),
            datamodule.batches("val"),
            None,
            on_epoch=lambda state, weights: None,
            facts={},
            console=Console(quiet=True),
            stop=StopFlag(),
        )
    return state.best["val_accuracy"], max(row["val_accuracy"] for row in state.history), datamodule.count("val")


def test_the_accuracy_on_noise_is_that_of_chance():
    kept, highest, counts = zip(*(noise_accuracies(seed) for seed in range(NOISE_RUNS)), strict=True)
    low, high = wilson_interval(float(np.mean(kept)), sum(counts))
    assert low < 0.5 < high
    assert wilson_interval(float(np.mean(highest)), sum(counts))[0] > 0.5  # the best of 30 epochs would look better


def test_a_run_keeps_the_last_epoch_with_calibrated_probabilities(tmp_path):
    words = Words()
    run = train(homes(100), target="dear", ignore="price", output=tmp_path, epochs=4, console=words)
    metrics, (tensors, header) = run.metrics, load_weights(run.best)
    last = load_checkpoint(run.path / "weights" / "last").tensors
    temperature = metrics["temperature"]
    assert metrics["best_epoch"] == 4 and metrics["resolved"]["kept_epoch"] == "last"
    assert header["temperature"] == temperature != 1 and header["metrics"]["epoch"] == 4
    for name, tensor in tensors.items():
        factor = temperature if name.startswith("head.") else 1.0
        assert torch.equal(tensor, last[f"network.{name}"] / factor)
    assert "last epoch 4 of 4" in words and "*" not in "".join(words.lines)
    assert "evaluated on the same 20 validation rows, which selected nothing but the temperature of the prob" in words
    page = (run.path / "report.html").read_text()
    assert "Last epoch" in page and "Best epoch" not in page and "which selected nothing but the temperature" in page
    evaluation = sw.evaluate(run.path, homes(100))
    assert evaluation.count == 100 and evaluation.split == "all"


def test_a_finished_run_is_calibrated_once(tmp_path, fast_report):
    run = train("wine", output=tmp_path, epochs=2)
    weights = run.best.read_bytes()
    again = train(resume=run.path)
    assert run.best.read_bytes() == weights and again.metrics["temperature"] == run.metrics["temperature"]
    more = train(resume=run.path, epochs=3)
    assert more.metrics["best_epoch"] == 3 and load_weights(run.best)[1]["temperature"] == more.metrics["temperature"]


def test_training_does_not_see_the_temperature(tmp_path, fast_report):
    whole = train("wine", output=tmp_path, epochs=3, schedule="constant", ema=0.9)
    short = train("wine", output=tmp_path, epochs=2, schedule="constant", ema=0.9)
    assert same_runs(whole.path, train(resume=short.path, epochs=3).path)


def test_folds_are_calibrated_and_not_optimistic(tmp_path, fast_report):
    words = Words()
    result = train("wine", output=tmp_path, epochs=2, folds=2, console=words)
    assert all(run.metrics["temperature"] > 0 for run in result.runs)
    assert result.metrics["kept_epoch"] == "last" and "slightly optimistic" not in words
    assert result.metrics["baseline"]["mean"] == pytest.approx(
        np.mean([run.metrics["baseline"]["val_accuracy"] for run in result.runs])
    )


def test_patience_selects_an_epoch_and_says_so(tmp_path, fast_report):
    words = Words()
    run = train("wine", output=tmp_path, epochs=3, patience=2, console=words)
    assert run.metrics["resolved"]["kept_epoch"] == "best"
    assert "which also selected the epoch: the result is optimistic. Add a test table, or drop --patience" in words


def test_a_run_of_an_earlier_version_keeps_its_best_epoch(tmp_path, fast_report):
    run = train("wine", output=tmp_path, epochs=2)
    last = run.path / "weights" / "last"
    checkpoint = load_checkpoint(last)
    state = {**checkpoint.state, "settings": dict(checkpoint.state["settings"])}
    for name in ("kept_epoch", "calibrate"):
        del state["settings"][name]
    save_checkpoint(last, state["state"]["step"], checkpoint.tensors, state)
    for epochs in (2, 3, 4):
        again = train(resume=run.path, epochs=epochs)
        assert again.metrics["resolved"]["kept_epoch"] == "best" and again.metrics["resolved"]["calibrate"] is False


def test_patience_of_a_resumed_run_selects_an_epoch(tmp_path, fast_report):
    run = train("wine", output=tmp_path, epochs=2)
    again = train(resume=run.path, epochs=3, patience=5)
    assert again.metrics["resolved"]["kept_epoch"] == "best" and again.metrics["temperature"] > 0


def test_boosting_that_is_ahead_is_named_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(table_datamodule, "baseline", lambda rows: LEAD)
    words = Words()
    run = train("wine", output=tmp_path, epochs=1, console=words)
    accuracy = f"{run.metrics['val_accuracy']:.2%}"
    points = f"{100 * (1 - run.metrics['val_accuracy']):.1f} points"
    lead = f"radient boosting is ahead by {points} on the 36 validation rows: accuracy 100.00% against {accuracy}"
    assert f"\nwarning: g{lead}, above the 95% interval of the model\n" in words
    page = (run.path / "report.html").read_text()
    assert f'<p class="reading lead">G{lead}' in page and page.index(f"G{lead}") < page.index("Validation accuracy")


def test_rare_positives_have_their_base_rate(tmp_path, fast_report):
    x, y = make_classification(1500, 8, n_informative=4, weights=[0.98], flip_y=0.005, random_state=0)
    frame = pd.DataFrame(x).add_prefix("x").assign(y=np.where(y == 1, "yes", "no"))
    run = train(frame, target="y", output=tmp_path, epochs=6)
    shares = [dict(prediction.top)["yes"] for prediction in sw.predict(run.path, frame)]
    assert np.mean(shares) == pytest.approx((y == 1).mean(), abs=0.01)
    assert run.metrics["resolved"]["label_smoothing"] == 0


def test_json_of_a_finished_run_names_the_temperature(tmp_path, fast_report):
    run = train("diabetes", output=tmp_path, epochs=1)
    assert "temperature" not in json.loads((run.path / "metrics.json").read_text())
    assert "temperature" not in load_weights(run.best)[1] and run.metrics["resolved"]["calibrate"] is False
