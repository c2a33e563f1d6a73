"""What a network makes of a set of images, and the figures that follow from it.

Shapes: N images, K classes.
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
    "ClassScores",
    "Batches",
    "RegressionScores",
    "Scores",
    "compute_metrics",
    "per_class",
    "score",
    "softmax",
]

_BINS = 15  # of probability, over which calibration is measured


class Batches(Protocol):
    """Batches as the training room needs them: (x (B, C, S, S), y (B,), ids (B,))."""

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(begin, end) of each batch of an epoch, counted in images."""

    @property
    def steps(self) -> int:
        """Batches in an epoch."""

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """The batches of an epoch from the `start`-th on."""


@dataclass(frozen=True)
class Scores:
    """How a network does on each sample of a set: ids (N,) and plain losses (N,); `figure` is what goes up."""

    ids: np.ndarray
    losses: np.ndarray

    @property
    def loss(self) -> float:
        """The mean over samples."""
        return float(self.losses.mean())

    @property
    def primary_metric(self) -> float:
        """What the task's figure is for the whole set."""
        raise NotImplementedError

    def finite(self) -> np.ndarray:
        """Return (N,) whether the outputs for each sample are numbers that metrics can be computed of."""
        return np.isfinite(self.losses)


@dataclass(frozen=True)
class ClassScores(Scores):
    """Probabilities (N, K) and true classes (N,) beside the cross-entropies."""

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(N,) the likeliest class of each image."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of images whose likeliest class is the true one."""
        return float((self.predicted == self.labels).mean())

    primary_metric = accuracy

    def finite(self) -> np.ndarray:
        """Return (N,) whether the outputs for each sample are finite."""
        return super().finite() & np.isfinite(self.probabilities).all(axis=1)

    def confusion(self) -> np.ndarray:
        """(K, K) counts: rows true, columns predicted."""
        classes = self.probabilities.shape[1]
        flat = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return flat.reshape(classes, classes)


@dataclass(frozen=True)
class RegressionScores(Scores):
    """Predicted and true numbers (N,), both in the target's own unit, beside the squared errors of scaled ones."""

    predicted: np.ndarray
    targets: np.ndarray

    @property
    def r2(self) -> float:
        """The share of the targets' variance that is explained: 1 at best, 0 for always saying their mean."""
        residual = float(((self.targets - self.predicted) ** 2).sum())
        total = float(((self.targets - self.targets.mean()) ** 2).sum())
        return 1 - residual / total if total > 0 else float(residual == 0)

    primary_metric = r2

    def finite(self) -> np.ndarray:
        """Return (N,) whether the predicted number for each sample is finite."""
        return super().finite() & np.isfinite(self.predicted)

    @property
    def mae(self) -> float:
        """The mean absolute error."""
        return float(np.abs(self.targets - self.predicted).mean())

    @property
    def rmse(self) -> float:
        """The root of the mean squared error."""
        return float(((self.targets - self.predicted) ** 2).mean() ** 0.5)


class Scorer(Protocol):
    """What `score` needs of a task."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Any:
        """What is to be said of outputs (N, K) for targets (N,)."""


def score(
    network: nn.Module,
    batches: Batches,
    task: Scorer,
    *,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
) -> Any:
    """The scores of `network` in evaluation mode on every sample of `batches` once; its own mode comes back after.

    Several processes, each with its part of the batches, all get the scores of the whole.
    """
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, Tensor, np.ndarray]] = []
    try:
        with torch.no_grad():  # weights that are shared out outlive an inference mode, in which they are fetched
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
    """Return the probabilities (N, K) of outputs (N, K): NaN for a sample whose outputs are not all finite."""
    return outputs.softmax(1).masked_fill(~outputs.isfinite().all(1, keepdim=True), math.nan)


class Averaged(nn.Module):
    """What a network makes of several views of each input: the logarithm of their mean probabilities (B, K)."""

    def __init__(self, network: nn.Module, views: Callable[[Tensor], list[Tensor]]):
        super().__init__()
        self.network, self.views = network, views

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, K)."""
        outputs = torch.stack([self.network(view).float().log_softmax(1) for view in self.views(x)])
        return outputs.logsumexp(0) - math.log(len(outputs))


def compute_metrics(scores: Scores) -> dict[str, float]:
    """What people ask of a classifier or a regression, by name; a figure that the set cannot give is left out.

    accuracy, loss; top5_accuracy (from six classes on); balanced_accuracy, the mean recall of the classes that are
    there; macro_f1, over the same; auroc, one class against the rest, the mean of them (Hanley and McNeil 1982);
    ece, how far probabilities are from shares, over 15 bins (Guo et al. 2017, arXiv:1706.04599).
    Of numbers: r2; mae and rmse in the target's own unit; loss.

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
    """class, count, precision, recall and f1 of every class; 0 where a figure has no meaning."""
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


# Some lines of arithmetic each: scikit-learn gives the same, but importing it takes a second of every run.


def _precision_recall_f1(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return precision, recall, F1 and the count of every class, of (K, K) counts with rows true; 0 / 0 is 0."""
    hits, count, answers = confusion.diagonal().astype(float), confusion.sum(axis=1), confusion.sum(axis=0)
    precision, recall = hits / np.maximum(answers, 1), hits / np.maximum(count, 1)
    return precision, recall, 2 * hits / np.maximum(count + answers, 1), count


def _auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the chance that a positive sample has a higher score than a negative one; a tie counts half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(positive.sum())
    above = rank[positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(positive) - positives)))
