"""Task: the loss and the metrics of a classification or a regression.

Shapes: B samples of a batch, N of a set, K classes.
Sources: label smoothing, Szegedy et al. 2015, arXiv:1512.00567.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.training.metrics import ClassScores, RegressionScores, Scores, softmax

__all__ = ["Classification", "Regression", "Task"]


class Task(Protocol):
    """Protocol of a task: a loss to minimize and a metric to maximize."""

    @property
    def primary_metric(self) -> str:
        """Name of the metric, a mean over samples; results.csv has the columns train_NAME and val_NAME."""

    @property
    def samples(self) -> str:
        """Noun for the samples in messages, such as "images"."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute the scalar training loss of a batch, including regularization of the targets."""

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """Compute the sum of the metric over the samples of a batch."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Scores:
        """Compute the scores of outputs (N, K) for targets (N,), float32 on the CPU."""


@dataclass(frozen=True)
class Classification:
    """Classification: outputs are logits (B, K); targets are class indices (B,), or probabilities (B, K) with mixup.

    Args:
        label_smoothing: label smoothing of the training loss.
        class_weights: (K,) weight of the samples of each class, 1 on average over the training set; None for equal.
        primary_metric: name of the metric.
        samples: noun for the samples in messages.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    primary_metric: str = "accuracy"
    samples: str = "images"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute the mean class-weighted cross-entropy with label smoothing."""
        if self.class_weights is None:
            return F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing)
        shares = y if y.dim() > 1 else F.one_hot(y, outputs.shape[1])
        weights = shares.to(outputs.dtype) @ torch.tensor(self.class_weights, dtype=outputs.dtype, device=y.device)
        # torch divides by the weights in the batch, so that a batch of rare classes would count as much as any other.
        losses = F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing, reduction="none")
        return (weights * losses).mean()

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """Count the samples that are classified as their class, or as the dominant class of a mixture."""
        return float((outputs.argmax(1) == (y.argmax(1) if y.dim() > 1 else y)).sum())

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> ClassScores:
        """Compute probabilities and cross-entropies without smoothing or class weights."""
        losses = F.cross_entropy(outputs, y, reduction="none")
        return ClassScores(ids, losses.numpy(), softmax(outputs).numpy(), y.numpy())


@dataclass(frozen=True)
class Regression:
    """Regression: outputs (B, 1) and targets (B,) are standardized.

    Args:
        mean: mean of the training targets.
        std: standard deviation of the training targets.
        primary_metric: name of the metric.
        samples: noun for the samples in messages.
    """

    mean: float = 0.0
    std: float = 1.0
    primary_metric: str = "r2"
    samples: str = "rows"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Compute the mean squared error of standardized targets."""
        return F.mse_loss(outputs[:, 0], y.to(outputs.dtype))

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """Compute the sum of 1 - squared error, whose mean is R2 because the training targets have variance 1."""
        return float((1 - (outputs.detach()[:, 0] - y).square()).sum())

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> RegressionScores:
        """Compute squared errors of standardized targets, and predictions and targets in the original unit."""
        losses = (outputs[:, 0] - y).square()
        predicted, targets = (v.double().numpy() * self.std + self.mean for v in (outputs[:, 0], y))
        return RegressionScores(ids, losses.numpy(), predicted, targets)
