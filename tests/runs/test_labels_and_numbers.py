"""Runs on images with several labels or numbers: what they learn, write, store and refuse."""

import json

import numpy as np
import pytest
from many_targets import LABELS, label_source, number_source
from sklearn.metrics import average_precision_score, f1_score, r2_score
from small_runs import QUICK, Words, quick, same_runs, table

from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs import cross_validation, datamodule
from skipway.runs.pooled_metrics import pool_metrics
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_weights
from skipway.utils.stop_signals import StopFlag

OPTIONS = {"epochs": 6, "augment": "none"}


class StopWhenTrained(StopFlag):
    """A signal that comes once the first epoch of a run is finished."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.name = folder, "SIGTERM"

    @property
    def requested(self):
        return (self.folder / "results.csv").is_file()


@pytest.fixture(scope="module")
def opened():
    """A function that makes the next run read a source."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda source: patch.setattr(datamodule, "open_recipe_data", lambda recipe: source)


@pytest.fixture(scope="module")
def labels(opened, tmp_path_factory):
    opened(label_source())
    words = Words()
    return quick("squares", tmp_path_factory.mktemp("labels"), console=words, balance="weights", **OPTIONS), words


@pytest.fixture(scope="module")
def numbers(opened, tmp_path_factory):
    opened(number_source())
    words = Words()
    return quick("squares", tmp_path_factory.mktemp("numbers"), console=words, **OPTIONS), words


def test_labels_are_learned_and_their_metrics_are_those_of_the_predictions(labels):
    run, words = labels
    rows = table(run.path / "predictions.csv")
    true = np.array([[name in row["label"].split("|") for name in LABELS] for row in rows])
    predicted = np.array([[name in row["predicted"].split("|") for name in LABELS] for row in rows])
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in LABELS] for row in rows])
    assert run.metrics["test_map"] == pytest.approx(average_precision_score(true, probabilities), abs=1e-4)
    assert run.metrics["test_map"] > 0.5
    assert run.metrics["test_macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"))
    assert rows[4]["label"] == "" and {row["split"] for row in rows} == {"test"}
    low, high = run.metrics["test_map_interval"]
    assert low < run.metrics["test_map"] < high and run.metrics["test_constant_answer"]["exceeded"]
    assert "final val map" in words and "4 labels" in words
    history = table(run.path / "results.csv")
    assert {"train_lrap", "val_map"} < set(history[0])


def test_thresholds_are_chosen_on_validation_and_stored_in_the_best_weights(labels):
    run, _ = labels
    spec = load_weights(run.path / "weights" / "best.safetensors")[1]["spec"]
    rows = table(run.path / "per_class.csv")
    assert [float(row["threshold"]) for row in rows] == pytest.approx(spec["thresholds"])
    assert spec["thresholds"] != [0.5] * 4 and run.network().spec.thresholds == tuple(spec["thresholds"])
    for row in table(run.path / "predictions.csv"):
        chosen = [n for n, t in zip(LABELS, spec["thresholds"], strict=True) if float(row[f"probability_{n}"]) >= t]
        assert row["predicted"] == "|".join(chosen)


def test_balance_weighs_rare_labels_and_smoothing_is_off(labels):
    resolved = labels[0].metrics["resolved"]
    counts = label_source().targets["train"].sum(axis=0)
    assert resolved["class_weights"] == pytest.approx((96 - counts) / counts) and resolved["label_smoothing"] == 0


def test_a_resumed_run_has_the_same_weights_and_thresholds(labels, opened, tmp_path):
    opened(label_source())
    with pytest.raises(Interrupted):
        quick("squares", tmp_path, stop=StopWhenTrained(tmp_path / "part"), name="part", balance="weights", **OPTIONS)
    run = train(resume=tmp_path / "part")
    assert same_runs(run.path, labels[0].path)
    specs = [load_weights(r.path / "weights" / "best.safetensors")[1]["spec"] for r in (run, labels[0])]
    assert specs[0] == specs[1]


def test_several_numbers_are_learned_and_reported_one_by_one(numbers):
    run, words = numbers
    rows = table(run.path / "predictions.csv")
    values = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if "_" in key}
    scores = {name: r2_score(values[f"target_{name}"], values[f"predicted_{name}"]) for name in ("top", "all")}
    per_target = {row["target"]: float(row["r2"]) for row in table(run.path / "per_target.csv")}
    assert per_target == pytest.approx(scores, abs=1e-4)
    assert run.metrics["test_r2"] == pytest.approx(np.mean(list(scores.values())), abs=1e-4)
    assert run.metrics["test_r2"] > 0.5
    assert values["error_all"] == pytest.approx(values["predicted_all"] - values["target_all"], abs=1e-3)
    assert "target top, all (regression)" in words
    assert len(table(run.path / "plots" / "worst.csv")) == 16 and (run.path / "plots" / "predicted.png").is_file()


def test_one_number_has_the_columns_of_tables(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    opened(number_source(names=("top",)))
    run = quick("squares", tmp_path, mixup=0.3, epochs=1)
    columns = list(table(run.path / "predictions.csv")[0])
    assert columns == ["file", "split", "target", "predicted", "error"]


def test_reports_show_labels_and_numbers(labels, numbers):
    page = (labels[0].path / "report.html").read_text()
    for text in (
        "Test mAP",
        "Per-label metrics",
        "Precision and recall",
        "Average precision",
        "Frequency of each label",
    ):
        assert text in page
    assert "Confusion matrix" not in page and "accuracy" not in page.lower().replace("subset accuracy", "")
    page = (numbers[0].path / "report.html").read_text()
    for text in ("Predicted and true top", "Metrics of each target", "Highest-loss images", "Largest errors"):
        assert text in page


@pytest.mark.parametrize(
    ("make", "said", "metric"),
    [
        (label_source, "head: logistic regression per label, L2 penalty", "val_map"),
        (number_source, "head: ridge regression, L2 penalty", "val_r2"),
    ],
)
def test_the_head_of_trained_weights_is_fitted(make, said, metric, labels, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    opened(make())
    words = Words()
    options = {**QUICK, "epochs": 1, "model": "auto", "pretrained": str(labels[0].path)}
    run = train("squares", output=tmp_path, console=words, **options)
    assert said in words and run.history[0]["lr"] == 0 and run.metrics[metric] > 0.6
    stored = json.loads((run.path / "metrics.json").read_text())
    assert stored["resolved"]["head"] == "regression"


def test_options_of_classes_are_refused_for_numbers_of_images(opened, tmp_path):
    opened(number_source())
    with pytest.raises(InputError, match="cannot use --balance with the target 'top, all': expected classes or labels"):
        quick("squares", tmp_path, balance="weights")


def test_sampling_makes_the_rarest_labels_equally_frequent(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    opened(label_source(shares=(0.9, 0.9, 0.9, 0.05)))
    assert quick("squares", tmp_path, balance="sampling", epochs=1).metrics["status"] == "finished"


def test_a_run_on_other_labels_is_not_resumed(opened, tmp_path):
    opened(label_source())
    with pytest.raises(Interrupted):
        quick("squares", tmp_path, stop=StopWhenTrained(tmp_path / "part"), name="part", **OPTIONS)
    opened(number_source())
    with pytest.raises(InputError, match="cannot resume: expected the labels ant, bee, cow, dog, got the targets top"):
        train(resume=tmp_path / "part", allow_changed_data=True)


@pytest.mark.parametrize(("make", "metric"), [(label_source, "map"), (number_source, "r2")])
def test_folds_are_pooled(make, metric, opened, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    for module in (datamodule, cross_validation):
        monkeypatch.setattr(module, "open_recipe_data", lambda recipe: make({"train": 60}))
    result = quick("squares", tmp_path, folds=2, epochs=1)
    values = json.loads((result.path / "folds.json").read_text())
    assert values["count"] == 60 and values[f"{metric}_interval"][0] <= values[metric] and len(values["folds"]) == 2
    assert len(table(result.path / "predictions.csv")) == 60


def test_folds_of_more_labels_than_columns_have_no_pooled_map(tmp_path):
    rows = [{"file": f"{i}", "label": "a|b", "predicted": "a", "loss": 0.5} for i in range(4)]
    values = pool_metrics(tmp_path, rows, "map", "")
    assert "map" not in values and values["micro_f1"] == pytest.approx(2 / 3) and values["loss"] == 0.5
