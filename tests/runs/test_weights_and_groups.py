"""Runs with groups, times and sample weights, and cross-validation with all tasks."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn import metrics as oracle
from small_runs import Words, table
from table_files import written

from skipway.errors import InputError
from skipway.runs.train_run import train


def visits(count=120):
    """Patients with four visits each, whose two illnesses and dose follow two measurements."""
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 2))
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "who": [f"p{i // 4}" for i in range(count)]})
    frame["day"] = [f"2024-{1 + i // 28:02}-{1 + i % 28:02}" for i in range(count)]
    frame["w"] = random.choice([0.0, 1.0, 2.0, 5.0], count)
    frame["flu"], frame["flea"] = (x[:, 0] > 0).astype(int), (x[:, 1] > 0.3).astype(int)
    frame["dose"], frame["ill"] = (x @ [2.0, -1.0]).round(3), np.where(x[:, 0] > 0, "ill", "well")
    return frame


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return written(tmp_path_factory.mktemp("visits") / "visits.csv", visits())


CASES = {
    "ill": {"target": "ill", "features": "a,b"},
    "dose": {"target": "dose", "features": "a,b"},
    "labels": {"target": "flu,flea", "features": "a,b", "task": "multilabel"},
}


@pytest.mark.parametrize("name", CASES)
def test_cross_validation_pools_weighted_predictions_of_grouped_folds(data, tmp_path, name):
    words, options = Words(), {"group_column": "who", "weight_column": "w", "folds": 3, "epochs": 4}
    result = train(data, output=tmp_path, console=words, **options, **CASES[name])
    rows = table(result.path / "predictions.csv")
    frame = visits()
    assert sorted(int(row["row"].rpartition(":")[2]) - 2 for row in rows) == list(range(120))
    homes = {}
    for row in rows:
        homes.setdefault(frame["who"][int(row["row"].rpartition(":")[2]) - 2], set()).add(row["fold"])
    assert len(homes) == 30 and all(len(folds) == 1 for folds in homes.values())
    weights = np.array([float(row["weight"]) for row in rows])
    assert set(weights) == {0.0, 1.0, 2.0, 5.0}
    values = json.loads((result.path / "folds.json").read_text())
    if name == "ill":
        right = [row["label"] == row["predicted"] for row in rows]
        assert values["accuracy"] == pytest.approx(np.average(right, weights=weights))
        assert len(table(result.path / "per_class.csv")) == 2
    elif name == "dose":
        target, predicted = ([float(row[key]) for row in rows] for key in ("target", "predicted"))
        assert values["r2"] == pytest.approx(oracle.r2_score(target, predicted, sample_weight=weights), abs=1e-6)
    else:
        labels = [[k in row["label"].split("|") for k in ("flu", "flea")] for row in rows]
        shares = [[float(row[f"probability_{k}"]) for k in ("flu", "flea")] for row in rows]
        expected = oracle.average_precision_score(labels, shares, sample_weight=weights)
        assert values["map"] == pytest.approx(expected, abs=1e-6) and 0 < values["macro_f1"] <= 1
    page = (result.path / "report.html").read_text()
    assert "in</span> 3 folds" in page and "fold-2/report.html" in page
    assert f"report: {result.path}/report.html" in words
    fold = result.runs[0].metrics
    assert fold["data"]["weights"]["effective_counts"]["val"] < fold["data"]["counts"]["val"]
    assert "Loss and metrics are weighted" in (result.runs[0].path / "report.html").read_text()


def test_weights_change_the_model_and_equal_ones_do_not(data, tmp_path):
    options = {**CASES["ill"], "epochs": 2}
    plain = train(data, output=tmp_path, name="plain", **options)
    weighted = train(data, output=tmp_path, name="weighted", weight_column="w", **options)
    ones = written(tmp_path / "visits.csv", visits().assign(w=1))
    equal = train(ones, output=tmp_path, name="equal", weight_column="w", **options)
    assert equal.best.read_bytes() == plain.best.read_bytes()
    assert weighted.best.read_bytes() != plain.best.read_bytes()
    rows = table(weighted.path / "predictions.csv")
    weights, right = [float(row["weight"]) for row in rows], [row["label"] == row["predicted"] for row in rows]
    assert weighted.metrics["val_accuracy"] == pytest.approx(np.average(right, weights=weights))
    frame = visits()
    of_rows = [frame["w"][int(row["row"].rpartition(":")[2]) - 2] for row in rows]
    assert of_rows == weights and "weight" not in table(plain.path / "predictions.csv")[0]


def test_a_run_whose_weights_changed_is_refused_when_resuming(data, tmp_path):
    path = written(tmp_path / "visits.csv", visits())
    run = train(path, output=tmp_path, weight_column="w", epochs=1, **CASES["ill"])
    frame = visits()
    frame["w"] += 1
    written(path, frame)
    with pytest.raises(InputError, match="expected the same rows in .*visits.csv, got changed ones"):
        train(resume=run.path, epochs=2)


def test_the_last_rows_by_time_validate(data, tmp_path):
    words = Words()
    run = train(data, output=tmp_path, split_by="day", epochs=1, console=words, **CASES["dose"])
    days = visits()["day"]
    of = {"train": [], "val": []}
    for row in table(run.path / "splits.csv"):
        of[row["split"]].append(days[int(row["row"].rpartition(":")[2]) - 2])
    assert max(of["train"]) < min(of["val"]) and len(of["val"]) == 24
    assert f"24 validation rows from day {min(of['val'])} on" in words
    assert yaml.safe_load((run.path / "config.yaml").read_text())["split_by"] == "day"
