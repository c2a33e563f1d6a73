from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_folders import decoded_noise

from skipway.data.images.split import class_counts, class_warnings, describe, duplicates, hold_out, refuse_leaks
from skipway.data.stratified_split import MAX_HELD_OUT
from skipway.errors import InputError


def sides(packed):
    return packed.splits["train"].tolist(), packed.splits["val"].tolist()


def test_some_of_every_class_are_held_out():
    packed = decoded_noise([0] * 50 + [1] * 30 + [2] * 20)
    hold_out(packed, 0.2, 0)
    assert list(packed.splits) == ["train", "val"]
    assert np.bincount(packed.targets[packed.splits["val"]]).tolist() == [10, 6, 4]
    train, val = sides(packed)
    assert sorted(train + val) == list(range(100)) and train == sorted(train) and val == sorted(val)


def test_the_same_seed_holds_out_the_same_and_another_does_not():
    labels = [i % 4 for i in range(200)]
    drawn = []
    for seed in (0, 0, 1, 2**31):
        packed = decoded_noise(labels)
        hold_out(packed, 0.2, seed)
        drawn.append(sides(packed))
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] != drawn[3]


def test_images_are_held_out_with_equal_chance():
    times = Counter()
    for seed in range(400):
        packed = decoded_noise([0] * 10 + [1] * 10)
        hold_out(packed, 0.2, seed)
        times.update(sides(packed)[1])
    assert len(times) == 20 and max(abs(n - 80) for n in times.values()) < 40, "5 standard deviations"


def test_given_validation_images_are_left_as_they_are():
    packed = decoded_noise([0, 1] * 4, splits={"train": np.arange(4), "val": np.arange(4, 6), "test": np.arange(6, 8)})
    before = packed.splits
    hold_out(packed, 0.5, 0)
    assert packed.splits is before


def test_the_test_set_stays():
    packed = decoded_noise([0, 1] * 6, splits={"train": np.arange(8), "test": np.arange(8, 12)})
    hold_out(packed, 0.25, 0)
    assert list(packed.splits) == ["train", "val", "test"] and packed.splits["test"].tolist() == [8, 9, 10, 11]
    assert sorted(sum(sides(packed), [])) == list(range(8))


def test_copies_stand_on_one_side():
    packed = decoded_noise([0, 1] * 40, digests=[str(i // 2 % 7) + "ab"[i % 2] for i in range(80)])
    hold_out(packed, 0.3, 0)
    train, val = ({packed.digests[i] for i in side} for side in sides(packed))
    assert train and val and not train & val
    refuse_leaks(packed, allow=False)


def test_a_class_of_one_image_cannot_be_divided():
    with pytest.raises(
        InputError, match=r"at least 2 distinct images per class, got 1 of the class 'class1'. Add images"
    ):
        hold_out(decoded_noise([0, 0, 0, 1]), 0.2, 0)
    with pytest.raises(InputError, match="got 1 of the class 'class1'"):
        hold_out(decoded_noise([0, 0, 1, 1], digests=["a", "b", "c", "c"]), 0.2, 0)


@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99])
def test_the_smallest_set_gives_one_of_each_class(fraction):
    packed = decoded_noise([0, 0, 1, 1, 2, 2])
    hold_out(packed, fraction, 0)
    assert [sorted(packed.targets[packed.splits[s]].tolist()) for s in ("train", "val")] == [[0, 1, 2], [0, 1, 2]]


def test_no_more_than_are_needed_for_a_certain_accuracy_are_held_out():
    packed = decoded_noise([i % 10 for i in range(60_000)], size=1, channels=1)
    hold_out(packed, 0.2, 0)
    assert len(packed.splits["val"]) == MAX_HELD_OUT == 5000
    assert set(np.bincount(packed.targets[packed.splits["val"]])) == {500}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    counts=st.lists(st.integers(2, 40), min_size=2, max_size=8),
    copies=st.integers(1, 3),
    fraction=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32),
)
def test_holding_out_divides_fairly_whatever_the_set(counts, copies, fraction, seed):
    kinds = np.repeat(np.arange(len(counts)), counts)
    labels = np.tile(kinds, copies)
    digests = [str(i) for i in range(len(kinds))] * copies
    packed = decoded_noise(labels, size=1, channels=1, digests=digests)
    hold_out(packed, fraction, seed)
    train, val = sides(packed)
    assert sorted(train + val) == list(range(len(labels))), "each image stands on exactly one side"
    assert not {digests[i] for i in train} & {digests[i] for i in val}, "copies stay together"
    held = np.bincount(kinds[[int(d) for d in {digests[i] for i in val}]], minlength=len(counts))
    wanted = min(round(len(kinds) * fraction), MAX_HELD_OUT)
    share = np.array(counts) * wanted / len(kinds)
    assert (np.abs(held - share) <= 1 + 1e-9).all() and (held >= 1).all() and (held < counts).all()


def test_copies_across_splits_are_refused_with_both_names():
    splits = {"train": np.arange(4), "val": np.arange(4, 6)}
    digests = ["a", "a", "b", "c", "a", "b"]
    packed = decoded_noise([0, 0, 1, 1, 0, 1], digests=digests, splits=splits)
    with pytest.raises(
        InputError,
        match=r"noise: expected each image in only one split, got 2 in more .* 0.png \(train\) and 4.*Remove",
    ):
        refuse_leaks(packed, allow=False)
    assert packed.warnings == []
    refuse_leaks(packed, allow=True)
    first = (
        "duplicates across splits: 2, such as 0.png (train) and 4.png (val). Validation and test metrics are inflated."
    )
    assert packed.warnings == [first, "exact duplicates of other images: 3"]


def test_copies_under_two_classes_are_reported():
    packed = decoded_noise([0, 0, 1, 1, 0], digests=["a", "a", "a", "b", "b"])
    refuse_leaks(packed, allow=False)
    first = (
        "duplicates with different labels: 2, such as 0.png (class0) and 2.png (class1). At least one label is wrong."
    )
    assert packed.warnings == [first, "exact duplicates of other images: 3"]


def test_a_set_without_copies_has_nothing_said_of_it():
    packed = decoded_noise([0, 1] * 3)
    refuse_leaks(packed, allow=False)
    assert packed.warnings == [] and duplicates(packed) == []
    assert duplicates(decoded_noise([0, 1, 0], digests=["x", "y", "x"])) == [[0, 2]]


def test_hostile_names_are_spelt_out_in_errors():
    packed = decoded_noise([0, 1], digests=["a", "a"], splits={"train": np.arange(1), "val": np.arange(1, 2)})
    packed.keys[0], packed.name = "\x1b[2J\n", "na\nme"
    with pytest.raises(InputError, match=r"na\\x0ame: expected.* got 1 in.*\\x1b\[2J\\x0a"):
        refuse_leaks(packed, allow=False)


def test_advice_names_imbalance_few_images_and_a_small_validation_set():
    labels = [0] * 100 + [1] * 10 + [0] * 3 + [1]
    packed = decoded_noise(labels, splits={"train": np.arange(110), "val": np.arange(110, 114)})
    assert class_warnings(packed) == [
        "class imbalance 1:10 (class1 10, class0 100 training images): accuracy favors large classes. See the "
        "per-class metrics.",
        "fewer than 20 training images: class1. Expect low accuracy for these classes.",
        "only 4 validation images: 1 image changes the accuracy by 25.0%",
    ]
    assert class_warnings(decoded_noise([0, 1] * 20)) == []
    many = decoded_noise(list(range(8)) * 2)
    few = "fewer than 20 training images: class0, class1, class2, class3, class4 and 3 more. Expect low accuracy"
    assert class_warnings(many) == [f"{few} for these classes."]


def test_counts_are_told_by_class_and_split():
    packed = decoded_noise([0, 1, 1, 0], splits={"train": np.arange(3), "val": np.arange(3, 4)})
    packed.notes["gray"] += 2
    assert class_counts(packed) == {"class0": {"train": 1, "val": 1}, "class1": {"train": 2, "val": 0}}
    said = describe(packed)
    assert said["counts"] == {"train": 3, "val": 1} and said["notes"] == {"gray": 2} and said["skipped"] == 0
    assert said["classes"] == class_counts(packed) and said["warnings"] == class_warnings(packed)


def test_one_image_of_a_number_cannot_be_split():
    packed = decoded_noise([0, 0], digests=["a", "a"])
    packed.task, packed.targets, packed.target_names = "regression", np.array([[1.0], [1.0]]), ("age",)
    with pytest.raises(InputError, match="cannot split noise: expected at least 2 distinct images, got 1. Add images"):
        hold_out(packed, 0.2, seed=0)
