"""What a network makes of a set of pictures, and the figures that follow from it.

Shapes: N pictures, K classes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Feed", "Scores", "per_class", "score"]


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
    """Probabilities (N, K), true classes (N,), ids (N,) and the cross-entropy (N,) of each picture."""

    probabilities: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    losses: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """(N,) the likeliest class of each picture."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Share of pictures whose likeliest class is the true one."""
        return float((self.predicted == self.labels).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy."""
        return float(self.losses.mean())

    def confusion(self) -> np.ndarray:
        """(K, K) counts: rows true, columns predicted."""
        classes = self.probabilities.shape[1]
        flat = np.bincount(self.labels * classes + self.predicted, minlength=classes * classes)
        return flat.reshape(classes, classes)


def score(
    network: nn.Module,
    feed: Feed,
    autocast: Callable[[], AbstractContextManager[Any]],
    device: torch.device,
    poll: Callable[[], None] = lambda: None,
) -> Scores:
    """Run `network` in evaluation mode over every picture of `feed` once; its own mode comes back after."""
    training = network.training
    network.eval()
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    try:
        with torch.inference_mode():
            for x, y, ids in feed.epoch():
                poll()
                with autocast():
                    logits = network(x.to(device)).float().cpu()
                losses = F.cross_entropy(logits, y, reduction="none")
                parts.append((logits.softmax(1).numpy(), y.numpy(), ids, losses.numpy()))
    finally:
        network.train(training)
    probabilities, labels, all_ids, all_losses = (np.concatenate(p) for p in zip(*parts, strict=True))
    return Scores(probabilities, labels, all_ids, all_losses)


def per_class(scores: Scores, names: tuple[str, ...]) -> list[dict[str, Any]]:
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
