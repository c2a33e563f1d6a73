"""Scores of the samples of a set: losses, predictions and targets.

Shapes: N samples, K classes or labels, T targets.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np

from skipway.training.label_metrics import average_precisions, mean_average_precision

__all__ = ["ClassScores", "LabelScores", "RegressionScores", "Scores"]


@dataclass(frozen=True)
class Scores:
    """Scores of each sample: ids (N,) and unweighted losses (N,); weights (N,) of the samples in metrics, or None."""

    ids: np.ndarray
    losses: np.ndarray
    weights: np.ndarray | None = field(default=None, kw_only=True)

    def with_weights(self, weights: np.ndarray | None) -> Self:
        """Return the scores with the weights of all samples, which are indexed by id; unchanged for None."""
        return self if weights is None else replace(self, weights=weights[self.ids])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over the samples of values (N, ...), with their weights."""
        if self.weights is None:
            return np.asarray(values.mean(axis=0))
        return np.asarray(np.average(values, axis=0, weights=self.weights))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over the samples of values (N, K), with their weights."""
        return np.asarray((values if self.weights is None else values * self.weights[:, None]).sum(axis=0))

    @property
    def loss(self) -> float:
        """Mean loss over the samples."""
        return float(self.mean(self.losses))

    @property
    def primary_metric(self) -> float:
        """Value of the primary metric of the task on the set."""
        raise NotImplementedError

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose outputs are finite."""
        return np.isfinite(self.losses)


@dataclass(frozen=True)
class ClassScores(Scores):
    """Scores of a classification: cross-entropies, probabilities (N, K) and true classes (N,)."""

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Class (N,) with the highest probability."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]."""
        return float(self.mean(self.predicted == self.labels))

    primary_metric = accuracy

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose outputs are finite."""
        return super().finite() & np.isfinite(self.probabilities).all(axis=1)

    def confusion(self, weighted: bool = False) -> np.ndarray:
        """Count the samples by class, or sum their weights: (K, K), rows are true classes, columns predicted ones."""
        classes, weights = self.probabilities.shape[1], self.weights if weighted else None
        flat = np.bincount(self.labels * classes + self.predicted, weights, minlength=classes * classes)
        return flat.reshape(classes, classes)


@dataclass(frozen=True)
class LabelScores(Scores):
    """Scores of a multi-label model: probabilities and true labels (N, K), and the thresholds (K,) of prediction."""

    probabilities: np.ndarray
    labels: np.ndarray
    thresholds: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Predicted labels (N, K), booleans."""
        return self.probabilities >= self.thresholds

    @cached_property
    def average_precisions(self) -> np.ndarray:
        """Average precision (K,) of each label; NaN for a label that does not occur."""
        return average_precisions(self.labels, self.probabilities, self.weights)

    @property
    def map(self) -> float:
        """Mean average precision over the labels that occur in the set; NaN if none does."""
        return float(mean_average_precision(self.average_precisions))

    primary_metric = map

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose outputs are finite."""
        return super().finite() & np.isfinite(self.probabilities).all(axis=1)


@dataclass(frozen=True)
class RegressionScores(Scores):
    """Scores of a regression: predictions and targets (N, T) in their units, and mean squared standardized errors."""

    predicted: np.ndarray
    targets: np.ndarray

    @property
    def r2(self) -> float:
        """Coefficient of determination, averaged over the targets: 1 at best, 0 for predictions of the mean."""
        return float(self.r2_of_targets.mean())

    primary_metric = r2

    @property
    def r2_of_targets(self) -> np.ndarray:
        """Coefficient of determination (T,) of each target."""
        residual = self.sum((self.targets - self.predicted) ** 2)
        total = self.sum((self.targets - self.mean(self.targets)) ** 2)
        return np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), residual == 0)

    @property
    def mae_of_targets(self) -> np.ndarray:
        """Mean absolute error (T,) of each target, in its unit."""
        return self.mean(np.abs(self.targets - self.predicted))

    @property
    def rmse_of_targets(self) -> np.ndarray:
        """Root mean squared error (T,) of each target, in its unit."""
        return np.sqrt(self.mean((self.targets - self.predicted) ** 2))

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose predictions are finite."""
        return super().finite() & np.isfinite(self.predicted).all(axis=1)

    @property
    def mae(self) -> float:
        """Mean absolute error, averaged over the targets in their units."""
        return float(self.mae_of_targets.mean())

    @property
    def rmse(self) -> float:
        """Root mean squared error, averaged over the targets in their units."""
        return float(self.rmse_of_targets.mean())
