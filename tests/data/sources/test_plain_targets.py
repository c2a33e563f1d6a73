import numpy as np
import pandas as pd
import pytest
import torch

from skipway.data.sources.plain_targets import plain_targets
from skipway.errors import InputError


def of(y, task="auto", names=(), **others):
    found = plain_targets({"train": y, **others}, task, names)
    return found.task, found.class_names or found.target_names, found.values["train"].tolist()


def test_text_booleans_and_integers_are_classes():
    assert of(["b", "a", "b"]) == ("classification", ("a", "b"), [1, 0, 1])
    assert of(np.array([10, 2, 10])) == ("classification", ("2", "10"), [1, 0, 1])
    assert of(torch.tensor([3.0, 1.0])) == ("classification", ("1", "3"), [1, 0])
    assert of([True, False]) == ("classification", ("False", "True"), [1, 0])
    assert of(pd.Series(["x", "y"])) == ("classification", ("x", "y"), [0, 1])
    assert of([torch.tensor(1), np.int64(0)]) == ("classification", ("0", "1"), [1, 0])
    assert of([[1], [0]]) == ("classification", ("0", "1"), [1, 0])


def test_names_of_a_dataset_are_used_in_their_order_if_they_occur():
    assert of([2, 0, 2], names=("cat", "ant", "bee")) == ("classification", ("cat", "bee"), [1, 0, 1])


def test_numbers_with_a_fraction_and_requested_ones_are_a_regression():
    assert of([0.5, 2.0]) == ("regression", ("y",), [[0.5], [2.0]])
    assert of([1, 2], "regression") == ("regression", ("y",), [[1.0], [2.0]])
    frame = pd.DataFrame({"height": [1.5, 2.0], "width": [3.0, 4.0]})
    assert of(frame) == ("regression", ("height", "width"), [[1.5, 3.0], [2.0, 4.0]])
    assert of(np.array([[1, 5], [0, 2]])) == ("regression", ("y0", "y1"), [[1.0, 5.0], [0.0, 2.0]])


def test_lists_and_columns_of_0_and_1_are_labels():
    assert of([["b", "a"], [], ["b"]]) == ("multilabel", ("a", "b"), [[1, 1], [0, 0], [0, 1]])
    assert of([("x",), ("x", "y")]) == ("multilabel", ("x", "y"), [[1, 0], [1, 1]])
    assert of(np.array([[0, 1], [1, 1]])) == ("multilabel", ("0", "1"), [[0, 1], [1, 1]])
    assert of(pd.DataFrame({"sun": [0, 1], "sea": [1, 1]})) == ("multilabel", ("sun", "sea"), [[0, 1], [1, 1]])


@pytest.mark.parametrize("row", [torch.tensor, np.array])
def test_vectors_of_a_dataset_are_a_matrix(row):
    assert of([row([0, 1]), row([1, 1])]) == ("multilabel", ("0", "1"), [[0, 1], [1, 1]])
    assert of([row([0.5, 1.0]), row([2.0, 3.0])]) == ("regression", ("y0", "y1"), [[0.5, 1.0], [2.0, 3.0]])


def test_samples_without_a_target_are_left_out():
    found = plain_targets({"train": ["a", None, "b", float("nan")]})
    assert found.kept["train"].tolist() == [0, 2] and found.values["train"].tolist() == [0, 1]
    found = plain_targets({"train": [1.5, np.nan, 2.5]})
    assert found.kept["train"].tolist() == [0, 2]
    found = plain_targets({"train": [["a"], None, ["b"]]})
    assert found.kept["train"].tolist() == [0, 2] and found.values["train"].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "y, task, kept",
    [
        (pd.Series(["a", None, "b"], dtype="string"), "classification", [0, 2]),
        (pd.Series([1, None, 2], dtype="Int64"), "classification", [0, 2]),
        (["a", "", "b", " "], "classification", [0, 2]),
        ([True, None, False], "classification", [0, 2]),
        ([1.5, None, 2.5], "regression", [0, 2]),
        (pd.DataFrame({"a": [1.5, pd.NA, 2.5], "b": [True, False, False]}), "regression", [0, 2]),
        ([["a"], float("nan"), ["b"]], "multilabel", [0, 2]),
        (pd.DataFrame({"tags": [["a"], None, ["b", "a"]]}), "multilabel", [0, 2]),
    ],
)
def test_each_kind_of_missing_target_leaves_the_task_as_it_is(y, task, kept):
    found = plain_targets({"train": y})
    assert found.task == task and found.kept["train"].tolist() == kept


def test_booleans_next_to_a_missing_one_keep_their_names():
    assert of([True, None, False])[1] == ("False", "True")


def test_a_missing_label_in_a_list_is_not_a_label():
    assert of([["a", None], ["b", float("nan")]]) == ("multilabel", ("a", "b"), [[1, 0], [0, 1]])


def test_integers_that_hardly_repeat_need_a_task():
    ages = list(range(30, 60))
    with pytest.raises(InputError, match="cannot infer the task of y: expected classes .*got 30 distinct .*in 30 sam"):
        of(ages)
    assert of(ages, "regression")[0] == "regression"
    assert len(of(ages, "classification")[1]) == len(of(ages + ages)[1]) == 30


def test_a_trained_model_needs_neither_two_classes_nor_two_numbers():
    assert plain_targets({"train": ["a"]}, is_known=True).class_names == ("a",)
    assert plain_targets({"train": [1.0]}, "regression", is_known=True).values["train"].tolist() == [[1.0]]


def test_validation_has_the_classes_of_training():
    found = plain_targets({"train": ["a", "b"], "val": ["b"]})
    assert found.values["val"].tolist() == [1]


@pytest.mark.parametrize(
    "y, task, message",
    [
        (
            {"train": ["a", "b"], "val": ["c"]},
            "auto",
            r"y of val: expected the classes of the training set \(a, b\), g",
        ),
        (
            {"train": ["a", "a"]},
            "auto",
            "cannot use y: expected at least 2 classes, got only 'a'. Add samples of anoth",
        ),
        ({"train": [None, None]}, "auto", "cannot use y: expected at least 2 classes, got none. Add"),
        ({"train": ["a", "A"]}, "auto", "expected distinct class names, got 'A' and 'a'"),
        (
            {"train": [["a"], ["b"]], "val": [["c"]]},
            "auto",
            "y of val: expected the labels of the training set, got 'c'",
        ),
        ({"train": [[], []]}, "auto", "cannot use y: expected labels in the training set, got none. Add labels"),
        (
            {"train": [["a"], ["b"]]},
            "regression",
            "y for task regression: expected one value per sample, got lists. Use",
        ),
        (
            {"train": [0.5, 1.5]},
            "multilabel",
            r"y for task multilabel: expected lists of labels or a matrix .*\(2,\) of",
        ),
        (
            {"train": [[0, 2], [1, 1]]},
            "multilabel",
            "task multilabel: expected only 0 and 1, got other numbers. Correct",
        ),
        (
            {"train": [[0, 1], [1, 1]]},
            "classification",
            "task classification: expected one class per sample, got sever",
        ),
        ({"train": [[0, 1], [1, 1]], "val": [0, 1]}, "auto", r"as many columns in each split, got train \(2, 2\)"),
        ({"train": np.array([1j, 2j])}, "auto", "cannot use y: expected real numbers, got complex ones. Store the two"),
        ({"train": np.zeros((2, 2, 2))}, "auto", r"cannot use y: expected one or two axes .*got \(2, 2, 2\). Reshape"),
        ({"train": [1.5, 1.5]}, "auto", "cannot learn y: expected at least 2 distinct numbers, got a constant. Pass"),
        ({"train": [1.5, float("inf")]}, "regression", "y of train: expected finite numbers, got infinity"),
        ({"train": ["a", "b"]}, "regression", "y of train: expected numbers: could not convert.*Correct it"),
        ({"train": [0.5, 1.0]}, "classification", "y of train: expected classes as text or integers, got 0.5. Correct"),
        ({"train": [1, 2], "val": [float("inf")]}, "auto", "y of val: expected classes as text or integers, got inf"),
    ],
)
def test_targets_that_do_not_fit_are_refused(y, task, message):
    with pytest.raises(InputError, match=message):
        plain_targets(y, task)
