"""What a network makes of a set of pictures, and the figures that follow from it.

Shapes: N pictures, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ClassScores", "Feed", "NumberScores", "Scores", "per_class", "score"]


class Feed(Protocol):
    """Batches as the training room needs them: (x (B, C, S, S), y (B,), ids (B,))."""

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """(begin, end) of each batch of an epoch, counted in pictures."""

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
    def figure(self) -> float:
        """What the task's figure is for the whole set."""
        raise NotImplementedError

    @property
    def figures(self) -> dict[str, float]:
        """All figures by the names that metrics.json has, after the split's."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClassScores(Scores):
    """Probabilities (N, K) and true classes (N,) beside the cross-entropies."""

    probabilities: np.ndarray
    labels: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(N,) the likeliest class of each picture."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of pictures whose likeliest class is the true one."""
        return float((self.predicted == self.labels).mean())

    figure = accuracy

    @property
    def figures(self) -> dict[str, float]:
        """accuracy and loss."""
        return {"accuracy": self.accuracy, "loss": self.loss}

    def confusion(self) -> np.ndarray:
        """(K, K) counts: rows true, columns predicted."""
        classes = self.probabilities.shape[1]
        flat = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return flat.reshape(classes, classes)


@dataclass(frozen=True)
class NumberScores(Scores):
    """Predicted and true numbers (N,), both in the target's own unit, beside the squared errors of scaled ones."""

    predicted: np.ndarray
    targets: np.ndarray

    @property
    def r2(self) -> float:
        """The share of the targets' variance that is explained: 1 at best, 0 for always saying their mean."""
        left = float(((self.targets - self.predicted) ** 2).sum())
        whole = float(((self.targets - self.targets.mean()) ** 2).sum())
        return 1 - left / whole if whole > 0 else float(left == 0)

    figure = r2

    @property
    def figures(self) -> dict[str, float]:
        """r2, mae and rmse in the target's own unit, and loss."""
        return {"r2": self.r2, "mae": self.mae, "rmse": self.rmse, "loss": self.loss}

    @property
    def mae(self) -> float:
        """The mean absolute error."""
        return float(np.abs(self.targets - self.predicted).mean())

    @property
    def rmse(self) -> float:
        """The root of the mean squared error."""
        return float(((self.targets - self.predicted) ** 2).mean() ** 0.5)


class Judge(Protocol):
    """What `score` needs of a task."""

    def scores(self, outputs: Tensor, y: Tensor, ids: np.ndarray) -> Any:
        """What is to be said of outputs (N, K) for targets (N,)."""


def score(
    network: nn.Module,
    feed: Feed,
    task: Judge,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
) -> Any:
    """The scores of `network` in evaluation mode on every sample of `feed` once; its own mode comes back after."""
    training = network.training
    network.eval()
    parts: list[tuple[Tensor, Tensor, np.ndarray]] = []
    try:
        with torch.inference_mode():
            for x, y, ids in feed.epoch():
                poll()
                with autocast():
                    parts.append((network(x.to(device)).float().cpu(), y.cpu(), ids))
    finally:
        network.train(training)
    outputs, targets, all_ids = zip(*parts, strict=True)
    with torch.inference_mode():
        return task.scores(torch.cat(outputs), torch.cat(targets), np.concatenate(all_ids))


def per_class(scores: ClassScores, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """class, count, precision, recall and f1 of every class; 0 where a figure has no meaning."""
    from sklearn.metrics import precision_recall_fscore_support

    precision, recall, f1, count = precision_recall_fscore_support(
        scores.labels, scores.predicted, labels=range(len(names)), zero_division=0
    )
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
