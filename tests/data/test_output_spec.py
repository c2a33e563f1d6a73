import json

import numpy as np
import pytest

from skipway.data.image_spec import Spec
from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError

INPUTS = {"channels": 1, "size": 2, "presize": 2, "mean": (0.0,), "std": (1.0,)}
COLUMN = (Column("size", "number"),)
NUMBERS = {"task": "regression", "target_names": ("a", "b"), "target_mean": (1.0, -2.0), "target_std": (2.0, 4.0)}
LABELS = {"task": "multilabel", "class_names": ("x", "y"), "thresholds": (0.2, 0.7), "label_sep": ";"}


@pytest.mark.parametrize("outputs", [NUMBERS, LABELS, {"class_names": ("x",)}])
def test_the_meaning_of_outputs_comes_back_equal_for_images_and_tables(outputs):
    for spec in (Spec(**INPUTS, **outputs), TableSpec(COLUMN, **{"target_names": ("t",), **outputs})):
        again = type(spec).from_dict(json.loads(json.dumps(spec.as_dict())))
        assert again == spec and hash(again) == hash(spec)
        assert spec.num_outputs == len(outputs["class_names"] if "class_names" in outputs else NUMBERS["target_names"])


def test_the_table_of_an_older_version_has_one_target():
    older = {"columns": [{"name": "size", "kind": "number"}], "target": "price", "task": "regression"}
    spec = TableSpec.from_dict({**older, "class_names": [], "target_mean": 3.0, "target_std": 2.0})
    assert spec.target_names == ("price",) and spec.target_mean == (3.0,) and spec.target_std == (2.0,)
    classes = {"task": "classification", "class_names": ["a", "b"], "target_mean": 0.0, "target_std": 1.0}
    spec = TableSpec.from_dict({**older, **classes})
    assert spec.target == "price" and spec.class_names == ("a", "b") and spec.target_std == ()


def test_targets_are_standardized_and_outputs_are_in_their_units():
    spec, targets = Spec(**INPUTS, **NUMBERS), np.array([[3.0, 2.0], [-1.0, -6.0]])
    standardized = spec.standardized(targets)
    assert standardized.dtype == np.float32 and standardized.tolist() == [[1.0, 1.0], [-1.0, -1.0]]
    assert np.array_equal(spec.in_units(standardized.astype(np.float64)), targets)
    classes = np.array([0, 1])
    assert Spec(**INPUTS, **LABELS).standardized(classes) is classes


def test_a_label_is_predicted_from_one_half_by_default():
    assert Spec(**INPUTS, task="multilabel", class_names=("x", "y")).thresholds == (0.5, 0.5)


@pytest.mark.parametrize(
    "outputs, message",
    [
        (
            {"task": "guess"},
            "a Spec: expected task to be one of classification, multilabel, regression, got 'guess'. C",
        ),
        ({"class_names": "ab"}, "a Spec: expected class_names as a list of strings, got 'ab'. Pass one string per cla"),
        ({"class_names": ()}, "a Spec: expected 1 to 100,000 class names, got 0. Pass one name per class"),
        ({"class_names": ("a",), "target_std": (1,)}, "target_mean and target_std only for regression, got them for c"),
        ({"class_names": ("a",), "label_sep": ";"}, "expected thresholds and label_sep only for multilabel, got them "),
        ({**LABELS, "thresholds": (0.5,)}, r"one threshold from 0 to 1 per label, got \(0.5,\) for 2 labels. Correct"),
        ({**LABELS, "thresholds": (0.5, 2)}, "expected one threshold from 0 to 1 per label, got"),
        ({**NUMBERS, "class_names": ("a",)}, "class names, thresholds and label_sep only for classes or labels, got t"),
        ({**NUMBERS, "target_std": (1.0,)}, "target_names, target_mean and target_std of equal length, got 2, 2 and 1"),
        ({**NUMBERS, "target_std": (1.0, 0.0)}, "a finite target_mean and a positive, finite target_std, got"),
        (
            {**NUMBERS, "target_names": ("a", "a")},
            "expected unique target names, got duplicates. Rename or merge equal",
        ),
        ({**NUMBERS, "target_names": ("a", 1)}, "expected target names as strings, got other types. Convert them"),
        ({**NUMBERS, "target_names": ("a", "b" * 2000)}, "target names of at most 1024 bytes, got b+... Shorten it"),
    ],
)
def test_contradictions_are_refused(outputs, message):
    with pytest.raises(InputError, match=message):
        Spec(**INPUTS, **outputs)
