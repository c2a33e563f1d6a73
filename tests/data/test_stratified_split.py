import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from skipway.data.stratified_split import fold_numbers, holdout_mask, units_of


def contents(count):
    return [f"content {i}" for i in range(count)]


def grouped(seed, num_groups, num_classes):
    """Classes that depend on groups of unlike sizes, with copies of some samples."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(num_groups), random.geometric(0.2, num_groups))
    shares = random.dirichlet(np.ones(num_classes) * 0.5, num_groups)
    labels = np.array([random.choice(num_classes, p=shares[group]) for group in groups])
    labels[: 2 * num_classes] = np.tile(np.arange(num_classes), 2)[: len(labels)]
    copied = random.integers(len(groups), size=3)
    digests = [*contents(len(groups)), *(f"content {i}" for i in copied)]
    return np.append(labels, labels[copied]), digests, [f"g{i}" for i in [*groups, *random.permutation(groups)[:3]]]


def crossings(parts, names):
    return sum(len(set(parts[[i for i, other in enumerate(names) if other == name]])) > 1 for name in set(names) - {""})


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(6, 40), st.integers(1, 4), st.integers(2, 5))
def test_no_group_and_no_copy_is_in_two_folds_and_each_sample_is_in_one(seed, num_groups, num_classes, folds):
    labels, digests, groups = grouped(seed, num_groups, num_classes)
    numbers = fold_numbers(labels, digests, folds, seed, groups)
    assert crossings(numbers, groups) == crossings(numbers, digests) == 0
    units = units_of(labels, digests, groups)
    if len(units) >= folds:
        assert sorted(set(numbers)) == list(range(1, folds + 1))
    assert numbers.tolist() == fold_numbers(labels, digests, folds, seed, groups).tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(4, 40), st.integers(1, 4), st.floats(0.05, 0.6))
def test_the_held_out_groups_leave_every_class_in_training(seed, num_groups, num_classes, fraction):
    labels, digests, groups = grouped(seed, num_groups, num_classes)
    train = np.arange(len(labels))
    held = holdout_mask(train, labels, digests, fraction=fraction, seed=seed, groups=groups)
    assert crossings(held, groups) == crossings(held, digests) == 0
    assert set(labels[~held]) == set(labels)
    units = units_of(labels, digests, groups)
    lone = (units.counts() > 0).sum(axis=0) == 1
    if (units.counts()[:, lone].sum(axis=1) == 0).any():  # a unit that no class needs in training
        assert held.any()


def test_the_shares_of_classes_and_sizes_are_at_least_as_equal_as_those_of_scikit_learn():
    deviations = np.zeros(2)
    for seed in range(12):
        labels, digests, groups = grouped(seed, 40, 3)
        digests = contents(len(labels))
        ours = fold_numbers(labels, digests, 4, seed, groups) - 1
        theirs = np.zeros(len(labels), int)
        dealer = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        for fold, (_, rows) in enumerate(dealer.split(labels, labels, groups)):
            theirs[rows] = fold
        for k, parts in enumerate((ours, theirs)):
            counts = np.zeros((4, 3))
            np.add.at(counts, (parts, labels), 1)
            deviations[k] += (
                np.abs(counts / counts.sum(axis=0) - 1 / 4).max() + (counts.sum(axis=1) / len(labels)).std()
            )
    assert deviations[0] < deviations[1]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_held_out_share_is_near_the_wanted_one(fraction):
    groups = [f"p{i // 5}" for i in range(500)]
    labels = np.arange(500) % 4
    held = holdout_mask(np.arange(500), labels, contents(500), fraction=fraction, seed=1, groups=groups)
    assert held.mean() == pytest.approx(fraction, abs=0.01)
    assert np.bincount(labels[held]) / 125 == pytest.approx(np.full(4, fraction), abs=0.02)


def test_groups_of_one_sample_and_samples_without_a_group_change_nothing():
    labels, digests = np.arange(60) % 3, contents(60)
    plain = fold_numbers(labels, digests, 5, 0)
    assert plain.tolist() == fold_numbers(labels, digests, 5, 0, [""] * 60).tolist()
    assert plain.tolist() == fold_numbers(labels, digests, 5, 0, [str(i) for i in range(60)]).tolist()
    options = {"fraction": 0.2, "seed": 3}
    held = holdout_mask(np.arange(60), labels, digests, **options)
    assert held.tolist() == holdout_mask(np.arange(60), labels, digests, **options, groups=[""] * 60).tolist()


def test_copies_join_the_groups_that_have_them():
    digests = ["a", "b", "c", "a", "d"]
    units = units_of(np.zeros(5), digests, ["p", "p", "q", "r", ""])
    assert units.of.tolist() == [0, 0, 1, 0, 2] and units.counts().tolist() == [[2], [1], [1]]


def test_a_class_of_two_groups_is_on_both_sides():
    labels = np.array([0] * 40 + [1] * 4)
    groups = [f"p{i // 4}" for i in range(40)] + ["q", "q", "r", "r"]
    for seed in range(20):
        held = holdout_mask(np.arange(44), labels, contents(44), fraction=0.2, seed=seed, groups=groups)
        assert set(labels[held]) == set(labels[~held]) == {0, 1}
        numbers = fold_numbers(labels, contents(44), 3, seed, groups)
        assert len(set(numbers[labels == 1])) == 2
