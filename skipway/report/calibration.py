"""Calibration of a run's predictions: how far probabilities are from accuracy, and predicted numbers from true ones.

Source: reliability diagrams, Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from skipway.report.run_reader import number
from skipway.utils.uncertainty import Z95, share_noise

__all__ = ["Bias", "Reliability", "bias", "reliability"]

_BINS = 10
_MATERIAL = 0.02  # between confidence and accuracy: less does not matter in practice


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of predictions, in total and by bins of confidence (rows without samples are left out).

    Attributes:
        count: number of predictions.
        confidence, accuracy: means over all of them.
        noise: 95% sampling error of their difference.
        bins: (mean confidence, accuracy, count) of each bin.
    """

    count: int
    confidence: float
    accuracy: float
    noise: float
    bins: tuple[tuple[float, float, int], ...]

    @property
    def gap(self) -> float:
        """Confidence minus accuracy: positive for an overconfident model."""
        return self.confidence - self.accuracy

    @property
    def is_off(self) -> bool:
        """True if the gap is larger than the sampling error, and large enough to matter."""
        return abs(self.gap) > max(self.noise, _MATERIAL)


@dataclass(frozen=True)
class Bias:
    """Mean error of predicted numbers (predicted minus true) and its 95% sampling error, over `count` samples."""

    count: int
    mean: float
    noise: float

    @property
    def is_off(self) -> bool:
        """True if the mean error is larger than its sampling error."""
        return abs(self.mean) > self.noise


def reliability(rows: Iterable[Mapping[str, str]]) -> Reliability | None:
    """Compare the probabilities of predictions with the share of them that is right.

    Args:
        rows: rows of predictions.csv, with label, predicted and probability; those without a probability are skipped.

    Returns:
        None if no row has a probability.
    """
    pairs = [(number(row.get("probability")), row.get("predicted") == row.get("label")) for row in rows]
    usable = [(share, hit) for share, hit in pairs if 0 <= share <= 1]
    if not usable:
        return None
    shares, hits = np.array([share for share, _ in usable]), np.array([hit for _, hit in usable], dtype=float)
    index = np.minimum((shares * _BINS).astype(int), _BINS - 1)
    bins = []
    for i in np.unique(index):
        chosen = index == i
        bins.append((float(shares[chosen].mean()), float(hits[chosen].mean()), int(chosen.sum())))
    count, accuracy = len(shares), float(hits.mean())
    # If every prediction is right, the spread of the differences alone would be far too small.
    error = max(float((shares - hits).std()) / math.sqrt(count), share_noise(accuracy, count))
    return Reliability(count, float(shares.mean()), accuracy, Z95 * error, tuple(bins))


def bias(rows: Iterable[Mapping[str, str]]) -> Bias | None:
    """Return the mean error of predicted numbers; None for less than two of them.

    Args:
        rows: rows of predictions.csv, with error.
    """
    errors = np.array([error for error in (number(row.get("error")) for row in rows) if math.isfinite(error)])
    if len(errors) < 2:
        return None
    return Bias(len(errors), float(errors.mean()), Z95 * float(errors.std(ddof=1)) / math.sqrt(len(errors)))
