"""Strata of samples for stratified splits: classes, the rarest label of each sample, or bins of a number.

Shapes: N samples; targets are (N,) classes, (N, K) labels of 0 and 1, or (N, T) numbers.
"""

import numpy as np

from skipway.data.output_spec import TaskName

__all__ = ["bin_numbers", "strata_of"]

_BINS = 10


def strata_of(task: TaskName, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the stratum of each sample.

    Args:
        task: task of the targets.
        targets: targets of all samples.
        rows: indices of the samples that will be split, such as the training samples.

    Returns:
        (N,) integers: class indices; the index of the rarest label among `rows`, or K for a sample without labels; or
        bins with equal counts of `rows`. Strata of labels and numbers have at least 2 samples of `rows`, or are merged
        into one.
    """
    if task == "classification":
        return targets
    if task == "regression":
        spread = targets[rows].std(axis=0)
        scale = np.where(spread > 0, spread, 1)
        return bin_numbers(((targets - targets[rows].mean(axis=0)) / scale).mean(axis=1), rows)
    num_labels = targets.shape[1]
    counts = targets[rows].sum(axis=0)
    rarity = np.where(targets > 0.5, counts, np.inf)
    strata = np.where((targets > 0.5).any(axis=1), rarity.argmin(axis=1), num_labels).astype(np.int64)
    frequent = np.bincount(strata[rows], minlength=num_labels + 1) >= 2
    return np.where(frequent[strata], strata, num_labels)


def bin_numbers(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return (N,) bins of numbers y (N,) with equal counts of `rows`; 0 for other rows."""
    labels = np.zeros(len(y), np.int64)
    bins = max(1, min(_BINS, len(rows) // 5))
    labels[rows] = np.argsort(np.argsort(y[rows], kind="stable"), kind="stable") * bins // len(rows)
    return labels
