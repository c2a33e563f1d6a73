"""Task: what is learnt from outputs and targets, as the loop, the judgement and the tables need it.

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
    """What is learnt: a loss to bring down, and a figure to bring up."""

    @property
    def primary_metric(self) -> str:
        """What is the higher the better, a mean over samples: results.csv has it as train_FIGURE and val_FIGURE."""

    @property
    def samples(self) -> str:
        """What the samples are called when progress is said."""

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """What a training batch is to bring down, with all that makes training better; one number."""

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """The sum over a batch of what the figure is the mean of."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Scores:
        """What is to be said of outputs (N, K) for targets (N,), in float32 on the CPU."""


@dataclass(frozen=True)
class Classification:
    """Outputs (B, K) are logits, targets (B,) classes, or (B, K) shares of classes where samples are mixed.

    class_weights: (K,) how much a sample of each class counts, 1 on average over the training set; None for equal.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None
    primary_metric: str = "accuracy"
    samples: str = "images"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean cross-entropy, to smoothed labels, of samples weighted by class."""
        if self.class_weights is None:
            return F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing)
        shares = y if y.dim() > 1 else F.one_hot(y, outputs.shape[1])
        weights = shares.to(outputs.dtype) @ torch.tensor(self.class_weights, dtype=outputs.dtype, device=y.device)
        # torch's own `weight` would let a batch of rare classes count as much as one of common ones.
        losses = F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing, reduction="none")
        return (weights * losses).mean()

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """How many are taken for their class, or for the one that has most of a mixture."""
        return float((outputs.argmax(1) == (y.argmax(1) if y.dim() > 1 else y)).sum())

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> ClassScores:
        """Probabilities and plain cross-entropies, neither smoothed nor weighted."""
        losses = F.cross_entropy(outputs, y, reduction="none")
        return ClassScores(ids, losses.numpy(), softmax(outputs).numpy(), y.numpy())


@dataclass(frozen=True)
class Regression:
    """Outputs (B, 1) and targets (B,) are numbers around `mean` in units of `std`: those of the training targets."""

    mean: float = 0.0
    std: float = 1.0
    primary_metric: str = "r2"
    samples: str = "rows"

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """The mean squared error."""
        return F.mse_loss(outputs[:, 0], y.to(outputs.dtype))

    def metric_sum(self, outputs: Tensor, y: Tensor) -> float:
        """The explained share of the training targets' variance, which is 1, summed over the batch."""
        return float((1 - (outputs.detach()[:, 0] - y).square()).sum())

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> RegressionScores:
        """Squared errors, and predicted and true numbers in their own unit."""
        losses = (outputs[:, 0] - y).square()
        predicted, targets = (v.double().numpy() * self.std + self.mean for v in (outputs[:, 0], y))
        return RegressionScores(ids, losses.numpy(), predicted, targets)
