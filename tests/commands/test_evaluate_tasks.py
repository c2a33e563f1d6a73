"""Evaluation of several labels and of numbers, of images and of tables, equal to scikit-learn."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from many_targets import source_of
from sklearn import metrics as oracle
from task_networks import NAMES, TARGETS, arrays, image_network, normalized, rows, table_network, values_of

from skipway.commands import evaluate as command
from skipway.commands.evaluate import evaluate
from skipway.commands.evaluation_output import LabelEvaluation, RegressionEvaluation
from skipway.errors import InputError

LABELS = np.array([[1, 0, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 1]])
NUMBERS = np.array([[-3.5, 70], [-3.6, 75], [-3.2, 76], [-3.3, 80], [-2.6, 99], [-3.0, 85]])
PIXELS = np.stack(arrays(6))[:, :, :, None]


@pytest.fixture
def opened(monkeypatch):
    """Let evaluate read this source."""

    def use(source):
        monkeypatch.setattr(command, OPEN, lambda *args, **options: source)

    return use


OPEN = "open_recipe_data" if hasattr(command, "open_recipe_data") else "open_source"


def label_source(names=NAMES, labels=LABELS):
    return source_of({"val": PIXELS}, {"val": labels.astype(np.float32)}, class_names=names, task="multilabel")


def number_source(names=TARGETS, numbers=NUMBERS):
    return source_of({"val": PIXELS}, {"val": numbers.astype(float)}, task="regression", target_names=names)


def check_labels(found, shares, labels):
    predicted = shares >= np.array([0.7, 0.9, 0.4])
    assert isinstance(found, LabelEvaluation) and found.count == len(labels)
    present = labels.any(axis=0)
    scores = oracle.average_precision_score(labels[:, present], shares[:, present], average=None)
    assert found.map == pytest.approx(np.mean(scores), abs=1e-6)
    assert found.metrics["micro_f1"] == pytest.approx(oracle.f1_score(labels, predicted, average="micro"))
    expected = oracle.f1_score(labels[:, present], predicted[:, present], average="macro", zero_division=0)
    assert found.metrics["macro_f1"] == pytest.approx(expected)
    assert [row["class"] for row in found.labels] == list(NAMES)
    assert [row["count"] for row in found.labels] == labels.sum(axis=0).tolist()
    recalls = oracle.recall_score(labels, predicted, average=None, zero_division=0)
    assert [row["recall"] for row in found.labels] == pytest.approx(recalls.tolist())


def test_labels_of_images_are_matched_by_name(opened):
    network = image_network("labels")
    shares = values_of(network, normalized(arrays(6)))
    opened(label_source())
    found = evaluate(network, "x")
    check_labels(found, shares, LABELS)
    opened(label_source(names=("wasp", "ant", "bee"), labels=LABELS[:, [2, 0, 1]]))
    assert evaluate(network, "x") == found
    opened(label_source(names=("wasp", "ant"), labels=LABELS[:, [2, 0]]))  # no image has the third label
    check_labels(evaluate(network, "x"), shares, LABELS * [1, 0, 1])
    first, *lines = str(found).splitlines()
    assert first == f"val: mean average precision {found.map:.4f}, loss {found.loss:.4f} on 6 images"
    assert lines[0].startswith("macro f1 ") and lines[1].split() == [
        *("label", "images", "precision", "recall", "f1", "average", "precision", "threshold")
    ]
    assert lines[2].split()[0] == "ant" and lines[2].split()[-1] == "0.700"
    assert found.as_dict()["labels"] == found.labels


def test_test_time_augmentation_changes_all_tasks(opened):
    for name, source in (("labels", label_source()), ("numbers", number_source())):
        network = image_network(name)
        opened(source)
        assert evaluate(network, "x", tta=True).loss != evaluate(network, "x").loss


def check_numbers(found, numbers, expected):
    assert isinstance(found, RegressionEvaluation)
    assert found.r2 == pytest.approx(oracle.r2_score(expected, numbers))
    assert found.mae == pytest.approx(oracle.mean_absolute_error(expected, numbers))
    squares = oracle.root_mean_squared_error(expected, numbers, multioutput="raw_values")
    assert [row["rmse"] for row in found.targets] == pytest.approx(squares.tolist())


def test_numbers_of_images_are_matched_by_name_and_have_their_units(opened):
    network = image_network("numbers")
    opened(number_source())
    found = evaluate(network, "x")
    check_numbers(found, values_of(network, normalized(arrays(6))), NUMBERS)
    opened(number_source(names=TARGETS[::-1], numbers=NUMBERS[:, ::-1]))
    assert evaluate(network, "x") == found
    first, *lines = str(found).splitlines()
    assert first.startswith("val: R2 ") and first.endswith("on 6 images")
    assert [line.split()[0] for line in lines] == ["target", *TARGETS]


def test_targets_that_are_not_those_of_the_model_are_refused_in_one_line(opened):
    refusals = [
        (
            "labels",
            label_source(("ant", "bee", "yak")),
            r"the labels of the model \(ant, bee, wasp\), got yak",
        ),
        ("numbers", number_source(("height", "age")), r"the targets of the model \(height, weight\), got age"),
        ("numbers", number_source(("height",), NUMBERS[:, :1]), r"model \(height, weight\), got height. Rename the"),
        ("labels", number_source(), "expected targets for multilabel, the task of the model, got regression. Set"),
        ("classes", label_source(), "expected targets for classification, the task of the model, got multilabel"),
    ]
    for name, source, message in refusals:
        opened(source)
        with pytest.raises(InputError, match=message):
            evaluate(image_network(name), "x")


def test_labels_of_a_table_are_evaluated_like_those_of_images(tmp_path):
    network = table_network("labels")
    frame = pd.DataFrame({"age": [20.0, 40, 60, 80, 30, 90], "color": ["red", "green", "blue"] * 2})
    joined = [";".join(name for name, there in zip(NAMES, row, strict=True) if there) for row in LABELS]
    frame.assign(kind=joined).to_csv(tmp_path / "rows.csv", index=False)
    found = evaluate(network, tmp_path / "rows.csv")
    check_labels(found, values_of(network, rows(network, frame)), LABELS)
    assert "on 6 rows" in str(found)


def test_several_numbers_of_a_table(tmp_path):
    network = table_network("numbers")
    frame = pd.DataFrame({"age": [20.0, 40, 60, 80, 30, 90], "color": ["red", "green", "blue"] * 2})
    numbers = np.stack([frame["age"] / -20, frame["age"] + 50], axis=1)
    frame.assign(weight=numbers[:, 1], height=numbers[:, 0]).to_csv(tmp_path / "rows.csv", index=False)
    found = evaluate(network, tmp_path / "rows.csv")
    check_numbers(found, values_of(network, rows(network, frame)), numbers)
    assert "on 6 rows" in str(found) and replace(found, targets=[]) != found
