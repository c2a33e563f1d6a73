import numpy as np

from skipway.data.strata import bin_numbers, strata_of


def test_classes_are_their_own_strata():
    classes = np.array([0, 2, 1])
    assert strata_of("classification", classes, np.arange(3)) is classes


def test_a_sample_belongs_to_its_rarest_label():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 1]], np.float32)
    strata = strata_of("multilabel", labels, np.arange(5))
    # Only the last sample has label 2, and it is not split, so that it joins the samples without a frequent label.
    assert strata.tolist() == [3, 1, 1, 3, 3, 3]


def test_numbers_are_binned_with_equal_counts():
    y = np.random.default_rng(0).normal(size=60)
    bins = bin_numbers(y, np.arange(50))
    assert np.bincount(bins[:50]).tolist() == [5] * 10 and not bins[50:].any()
    assert all(y[:50][bins[:50] == k].max() <= y[:50][bins[:50] == k + 1].min() for k in range(9))
    two = strata_of("regression", np.stack([y, 100 * y], axis=1), np.arange(50))
    assert np.array_equal(two[:50], bins[:50])
    assert strata_of("regression", np.ones((12, 1)), np.arange(12)).max() == 1
