"""Task: the loss and the metrics of a classification, of several labels per sample, or of a regression.

Shapes: B samples of a batch, N of a set, K classes.
Sources: label smoothing, Szegedy et al. 2015, arXiv:1512.00567.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.output_spec import OutputSpec
from skipway.training.label_metrics import ranking_precision
from skipway.training.metrics import (
    ClassScores,
    LabelScores,
    RegressionScores,
    Scores,
    sigmoid,
    softmax,
)

__all__ = ["Classification", "MultiLabel", "Regression", "Task", "task_of"]


class Task(Protocol):
    """Protocol of a task: a loss to minimize and a metric to maximize."""

    @property
    def primary_metric(self) -> str:
        """Name of the metric on the validation samples, a key of `PRIMARY_METRICS`."""

    @property
    def samples(self) -> str:
        """Noun for the samples in messages, such as "images"."""

    def loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the scalar training loss of a batch, including regularization of the targets.

        Args:
            outputs: (B, K) outputs of the network.
            y: targets.
            weights: (B,) weights of the samples, 1 on average over the training set; None for equal weights.
        """

    def metric_sum(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        """Compute the sum over a batch of the metric on training batches; see `PrimaryMetric.train_name`."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Scores:
        """Compute the scores of outputs (N, K) for targets, float32 on the CPU."""


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

    def loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the mean class-weighted cross-entropy with label smoothing."""
        if self.class_weights is None and weights is None:
            return F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing)
        # torch divides by the weights in the batch, so that a batch of rare classes would count as much as any other.
        losses = F.cross_entropy(outputs, y, label_smoothing=self.label_smoothing, reduction="none")
        if self.class_weights is not None:
            shares = y if y.dim() > 1 else F.one_hot(y, outputs.shape[1])
            losses = losses * (
                shares.to(outputs.dtype) @ _constant(tuple(self.class_weights), outputs.dtype, outputs.device)
            )
        return _weighted_mean(losses, weights)

    def metric_sum(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        """Count the samples that are classified as their class, or as the dominant class of a mixture."""
        return _weighted_sum(outputs.argmax(1) == (y.argmax(1) if y.dim() > 1 else y), weights)

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> ClassScores:
        """Compute probabilities and cross-entropies without smoothing or class weights."""
        losses = F.cross_entropy(outputs, y, reduction="none")
        return ClassScores(ids, losses.numpy(), softmax(outputs).numpy(), y.numpy())


@dataclass(frozen=True)
class MultiLabel:
    """Several labels per sample: outputs are logits (B, K); targets (B, K) are 0 or 1, or between them with mixup.

    Args:
        thresholds: (K,) probability from which a label is predicted; empty for 0.5.
        label_smoothing: shift of the targets of the training loss towards 0.5: s turns 0 and 1 into s/2 and 1 - s/2.
        positive_weights: (K,) factor of the loss of samples that have the label; None for 1.
        primary_metric: name of the metric.
        samples: noun for the samples in messages.
    """

    thresholds: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    positive_weights: tuple[float, ...] | None = None
    primary_metric: str = "map"
    samples: str = "images"

    def loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the mean binary cross-entropy over labels and samples, with label smoothing and label weights."""
        y = y.to(outputs.dtype).lerp(torch.full_like(outputs, 0.5), self.label_smoothing) if self.label_smoothing else y
        values = self.positive_weights
        positive = None if values is None else _constant(tuple(values), outputs.dtype, outputs.device)
        losses = F.binary_cross_entropy_with_logits(outputs, y, pos_weight=positive, reduction="none")
        return _weighted_mean(losses.mean(1), weights)

    def metric_sum(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        """Compute the sum over samples of the average precision of their labels (label ranking average precision)."""
        return _weighted_sum(ranking_precision(outputs.detach(), y), weights)

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> LabelScores:
        """Compute probabilities and binary cross-entropies without label weights."""
        losses = F.binary_cross_entropy_with_logits(outputs, y, reduction="none").mean(1)
        thresholds = np.array(self.thresholds or (0.5,) * outputs.shape[1])
        return LabelScores(ids, losses.numpy(), sigmoid(outputs).numpy(), y.numpy() > 0.5, thresholds)


@dataclass(frozen=True)
class Regression:
    """Regression: outputs and targets (B, T) are standardized.

    Args:
        mean: (T,) mean of the training targets.
        std: (T,) standard deviation of the training targets.
        huber: error from which the loss grows linearly, in standardized units; None for the squared error.
        variance: (T,) variance of the standardized training targets, which is 1 unless outliers set other units.
        primary_metric: name of the metric.
        samples: noun for the samples in messages.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    huber: float | None = None
    variance: tuple[float, ...] = (1.0,)
    primary_metric: str = "r2"
    samples: str = "images"

    def loss(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
        """Compute the mean squared error of standardized targets, or twice the mean Huber loss."""
        return _weighted_mean(self._errors(outputs, y.to(outputs.dtype)), weights)

    def _errors(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the losses (B,); small errors have equal losses with and without `huber`."""
        if self.huber is None:
            return (outputs - y).square().mean(1)
        return 2 * F.huber_loss(outputs, y, reduction="none", delta=self.huber).mean(1)

    def metric_sum(self, outputs: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
        """Compute the sum of 1 - squared error / variance, whose mean over the training samples is R2."""
        variance = _constant(self.variance, outputs.dtype, outputs.device)
        return _weighted_sum((1 - (outputs.detach() - y).square() / variance).mean(1), weights)

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> RegressionScores:
        """Compute the losses of standardized targets, and predictions and targets in their units."""
        losses = self._errors(outputs, y)
        predicted, targets = (v.double().numpy() * np.array(self.std) + np.array(self.mean) for v in (outputs, y))
        return RegressionScores(ids, losses.numpy(), predicted, targets)


def task_of(
    spec: OutputSpec,
    label_smoothing: float = 0.0,
    class_weights: tuple[float, ...] | None = None,
    samples: str = "images",
    huber: float | None = None,
) -> Task:
    """Return the task of a model.

    Args:
        spec: meaning of its outputs.
        label_smoothing: label smoothing of classes or labels.
        class_weights: (K,) weights of the classes, or factors of the samples with each label.
        samples: noun for the samples in messages.
        huber: see `Regression`.
    """
    if spec.task == "regression":
        return Regression(spec.target_mean, spec.target_std, huber, samples=samples)
    if spec.task == "multilabel":
        return MultiLabel(spec.thresholds, label_smoothing, class_weights, samples=samples)
    return Classification(label_smoothing, class_weights, samples=samples)


@lru_cache(maxsize=16)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers of a task as a tensor, which is copied to the device once and not in each step."""
    with torch.inference_mode(False):  # autograd cannot use tensors of the inference mode
        return torch.tensor(values, dtype=dtype, device=device)


def _weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Return the mean of losses (B,), each multiplied by its weight, which is 1 on average over the training set."""
    return losses.mean() if weights is None else (losses * weights.to(losses.dtype)).mean()


def _weighted_sum(values: Tensor, weights: Tensor | None) -> float:
    """Return the sum of values (B,), each multiplied by its weight."""
    return float(values.sum() if weights is None else (values * weights).sum())
