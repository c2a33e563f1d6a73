"""Scores of a model on a set of samples, and the metrics computed from them.

Shapes: N samples, K classes.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from skipway.distributed import collectives
from skipway.errors import NotFiniteError

__all__ = [
    "Averaged",
    "Batches",
    "ClassScores",
    "LabelScores",
    "RegressionScores",
    "Scores",
    "compute_metrics",
    "per_class",
    "ranking_precision",
    "score",
    "sigmoid",
    "softmax",
]

_BINS = 15  # probability bins of the calibration error


class Batches(Protocol):
    """Protocol of a source of batches (x (B, C, S, S), targets y, ids (B,))."""

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(begin, end) of each batch of an epoch, in samples."""

    @property
    def steps(self) -> int:
        """Number of batches in an epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Yield the batches of an epoch, starting with batch `start`."""


@dataclass(frozen=True)
class Scores:
    """Scores of each sample: ids (N,) and unweighted losses (N,)."""

    ids: np.ndarray
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """Mean loss over the samples."""
        return float(self.losses.mean())

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
        return float((self.predicted == self.labels).mean())

    primary_metric = accuracy

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose outputs are finite."""
        return super().finite() & np.isfinite(self.probabilities).all(axis=1)

    def confusion(self) -> np.ndarray:
        """Compute the confusion matrix (K, K): rows are true classes, columns predicted classes."""
        classes = self.probabilities.shape[1]
        flat = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
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

    @property
    def map(self) -> float:
        """Mean average precision over the labels that occur in the set; NaN if none does."""
        present = np.flatnonzero(self.labels.any(axis=0))
        values = [average_precision(self.labels[:, k], self.probabilities[:, k]) for k in present]
        return float(np.mean(values)) if values else math.nan

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
        residual = ((self.targets - self.predicted) ** 2).sum(axis=0)
        total = ((self.targets - self.targets.mean(axis=0)) ** 2).sum(axis=0)
        values = np.where(total > 0, 1 - residual / np.where(total > 0, total, 1), residual == 0)
        return float(values.mean())

    primary_metric = r2

    def finite(self) -> np.ndarray:
        """Return a mask (N,) of the samples whose predictions are finite."""
        return super().finite() & np.isfinite(self.predicted).all(axis=1)

    @property
    def mae(self) -> float:
        """Mean absolute error, averaged over the targets in their units."""
        return float(np.abs(self.targets - self.predicted).mean())

    @property
    def rmse(self) -> float:
        """Root mean squared error, averaged over the targets in their units."""
        return float((((self.targets - self.predicted) ** 2).mean(axis=0) ** 0.5).mean())


class Scorer(Protocol):
    """Protocol of the part of a task that `score` uses."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Any:
        """Compute the scores of outputs (N, K) for targets."""


def score(
    network: nn.Module,
    batches: Batches,
    task: Scorer,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
) -> Any:
    """Evaluate a model on every sample of `batches`.

    Args:
        network: set to evaluation mode, and back to its previous mode at the end.
        batches: with several processes, each process iterates over its part.
        task: computes the scores from the outputs.
        autocast: returns the context of a forward pass.
        device: device of the inputs.
        poll: called before each batch, to raise an error if a stop was requested.

    Returns:
        The scores of all samples, in every process.
    """
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, Tensor, np.ndarray]] = []
    try:
        with torch.no_grad():  # not inference_mode: FSDP weights gathered in it could not be used in training
            for x, y, ids in batches.epoch():
                poll()
                with autocast():
                    parts.append((network(x.to(device)).float().cpu(), y.cpu(), ids))
    finally:
        network.train(training)
    all_parts = [part for part in chain(*collectives.all_gather(parts)) if len(part[2])]
    outputs, targets, all_ids = zip(*all_parts, strict=True)
    with torch.inference_mode():
        return task.scores(torch.cat(outputs), torch.cat(targets), np.concatenate(all_ids))


def softmax(outputs: Tensor) -> Tensor:
    """Compute probabilities (N, K) from logits (N, K); NaN for samples with a logit that is not finite.

    >>> softmax(torch.tensor([[0.0, 0.0], [math.inf, 0.0]]))
    tensor([[0.5000, 0.5000],
            [   nan,    nan]])
    """
    return outputs.softmax(1).masked_fill(~outputs.isfinite().all(1, keepdim=True), math.nan)


def sigmoid(outputs: Tensor) -> Tensor:
    """Compute label probabilities (N, K) from logits (N, K); NaN for samples with a logit that is not finite."""
    return outputs.sigmoid().masked_fill(~outputs.isfinite().all(1, keepdim=True), math.nan)


def average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the area under the precision-recall curve of one label, by steps, as scikit-learn computes it.

    Args:
        positive: (N,) True for the samples with the label; at least one.
        score: (N,) probabilities of the label.

    >>> round(average_precision(np.array([False, True, True]), np.array([0.4, 0.3, 0.9])), 4)
    0.8333
    """
    order = np.argsort(-score, kind="stable")
    hits, sorted_scores = np.cumsum(positive[order]), score[order]
    last_of_tie = np.append(np.flatnonzero(np.diff(sorted_scores)), len(score) - 1)
    precision = hits[last_of_tie] / (last_of_tie + 1)
    recalled = np.diff(hits[last_of_tie], prepend=0)
    return float((precision * recalled).sum() / hits[-1])


def ranking_precision(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the average precision of the labels of each sample, ranked by the outputs: (B, K), (B, K) -> (B,).

    The value of a sample without labels is 1. Ties count against the sample.
    """
    positive = (y > 0.5).float()
    at_least = (outputs[:, None, :] >= outputs[:, :, None]).float()  # [b, k, j]: label j ranks as high as k
    precision = (at_least @ positive[:, :, None])[:, :, 0] / at_least.sum(2)
    counts = positive.sum(1)
    return torch.where(counts > 0, (precision * positive).sum(1) / counts.clamp(min=1), torch.ones_like(counts))


class Averaged(nn.Module):
    """Test-time augmentation: the logarithm of the mean probabilities (B, K) over several views of each input.

    Args:
        network: returns logits (B, K).
        views: returns the views of a batch, each of its shape.
    """

    def __init__(self, network: nn.Module, views: Callable[[Tensor], list[Tensor]]):
        super().__init__()
        self.network, self.views = network, views

    def forward(self, x: Tensor) -> Tensor:
        """Average the predictions: (B, C, S, S) -> (B, K)."""
        outputs = torch.stack([self.network(view).float().log_softmax(1) for view in self.views(x)])
        return outputs.logsumexp(0) - math.log(len(outputs))


def compute_metrics(scores: Scores) -> dict[str, float]:
    """Compute the metrics of a classification or a regression.

    Args:
        scores: scores of a set.

    Returns:
        Metrics by name. Classification: accuracy, loss, balanced_accuracy (mean recall), macro_f1, top5_accuracy (for
        more than 5 classes), auroc and ece. auroc is one-vs-rest (Hanley and McNeil 1982). ece is the expected
        calibration error over 15 bins (Guo et al. 2017, arXiv:1706.04599). Recall, F1 and auroc are averaged over the
        classes in the set, and auroc is omitted for a single class. Regression: r2, mae and rmse in the original unit,
        and loss.

    Raises:
        NotFiniteError: the outputs for a sample are NaN or infinite.
    """
    if bad := int((~scores.finite()).sum()):
        raise NotFiniteError(
            f"cannot compute metrics: expected finite outputs, got NaN or infinity for {bad:,} of {len(scores.ids):,} "
            "samples. Use precision fp32, or train the model again with a lower --lr."
        )
    if isinstance(scores, RegressionScores):
        return {"r2": scores.r2, "mae": scores.mae, "rmse": scores.rmse, "loss": scores.loss}
    if isinstance(scores, LabelScores):
        return {"map": scores.map, "loss": scores.loss}
    assert isinstance(scores, ClassScores)
    labels, shares, predicted = scores.labels, scores.probabilities, scores.predicted
    present = np.unique(labels)
    _, recall, f1, _ = _precision_recall_f1(scores.confusion())
    metrics = {"accuracy": scores.accuracy, "loss": scores.loss, "balanced_accuracy": float(recall[present].mean())}
    metrics["macro_f1"] = float(f1[present].mean())
    if shares.shape[1] > 5:
        top = np.argpartition(-shares, 4, axis=1)[:, :5]
        metrics["top5_accuracy"] = float((top == labels[:, None]).any(axis=1).mean())
    if len(present) > 1:
        metrics["auroc"] = float(np.mean([_auroc(labels == c, shares[:, c]) for c in present]))
    likely = shares.max(axis=1)
    bins = np.minimum((likely * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=(predicted == labels) - likely, minlength=_BINS)
    metrics["ece"] = float(np.abs(gaps).sum() / len(labels))
    return metrics


def per_class(scores: ClassScores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return class, count, precision, recall and f1 of each class. Undefined values are 0.

    Args:
        scores: scores of a classification.
        names: (K,) class names.
    """
    precision, recall, f1, count = _precision_recall_f1(scores.confusion())
    return [
        {
            "class": name,
            "count": int(count[i]),
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
        }
        for i, name in enumerate(names)
    ]


# scikit-learn returns the same values, but importing it takes 1 second.


def _precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall, F1 and count of each class of a confusion matrix with true rows; 0 / 0 is 0."""
    hits, count, answers = confusion.diagonal().astype(float), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(answers, 1), hits / np.maximum(count, 1)
    return precision, recall, 2 * hits / np.maximum(count + answers, 1), count


def _auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the probability that a positive sample has a higher score than a negative one; a tie counts half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(positive.sum())
    above = rank[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(positive) - positives)))
