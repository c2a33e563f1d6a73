import pytest

from skipway.errors import InputError
from skipway.runs.recipe import Recipe
from skipway.runs.target_checks import label_warnings, refuse_class_options


def test_options_of_classes_are_refused_for_numbers_only():
    recipe = Recipe(balance="weights", label_smoothing=0.1)
    with pytest.raises(
        InputError, match="cannot use --balance and --label-smoothing with the target 'age': expected classes or"
    ):
        refuse_class_options(recipe, "regression", "age")
    refuse_class_options(recipe, "multilabel", "tags")


def test_labels_without_samples_are_named():
    counts = {"cat": {"train": 9, "val": 2}, "dog": {"train": 5}, "elk": {"val": 1}}
    assert label_warnings(counts, "pets") == [
        "no training samples with the label elk: it cannot be learned",
        "no validation samples with the label dog: its threshold is that of all labels, and its metrics are undefined",
    ]


@pytest.mark.parametrize(("counts", "word"), [({"val": 1}, "training"), ({"train": 1}, "validation")])
def test_a_split_without_any_label_is_refused(counts, word):
    with pytest.raises(InputError, match=f"cannot train on the labels of pets: expected {word} samples with labels"):
        label_warnings({"cat": counts}, "pets")
