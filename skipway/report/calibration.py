"""Calibration of a run's predictions: how far probabilities are from accuracy, and predicted numbers from true ones.

Source: reliability diagrams, Guo et al. 2017, arXiv:1706.04599.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from skipway.report.run_reader import number
from skipway.utils.uncertainty import Z95, share_noise

__all__ = ["Bias", "Reliability", "bias", "reliability", "reliability_of"]

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
    """Mean error of predicted numbers (predicted minus true) and its 95% sampling error, over `count` samples.

    `target` names the number if there are several.
    """

    count: int
    mean: float
    noise: float
    target: str = ""

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
    shares, hits = np.array([share for share, _ in usable]), np.array([hit for _, hit in usable], dtype=float)
    return reliability_of(shares, hits)


def reliability_of(shares: np.ndarray, hits: np.ndarray) -> Reliability | None:
    """Compare probabilities (N,) with what came true (N,), 0 or 1; None without any."""
    if not len(shares):
        return None
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

    Of several targets, it is that of the largest mean error relative to its sampling error.

    Args:
        rows: rows of predictions.csv, with error or with error_TARGET.
    """
    rows = list(rows)
    columns = [name for name in (rows[0] if rows else ()) if name == "error" or name.startswith("error_")]
    results = []
    for column in columns:
        errors = np.array([error for error in (number(row.get(column)) for row in rows) if math.isfinite(error)])
        if len(errors) > 1:
            noise = Z95 * float(errors.std(ddof=1)) / math.sqrt(len(errors))
            target = column.removeprefix("error").removeprefix("_")
            results.append(Bias(len(errors), float(errors.mean()), noise, target))
    return max(results, key=lambda result: abs(result.mean) / max(result.noise, 1e-300), default=None)
