"""Batches of table rows, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, F + K) float32; y (B,) int64 classes or float32 numbers; ids (B,) row indices.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from skipway.data.sample_order import Shard, batch_bounds, evenly_spaced, shuffle_rows, training_bounds
from skipway.data.strata import strata_of

__all__ = ["RowBatches"]


class RowBatches:
    """Batches of encoded rows: shuffled for training, in a fixed order for evaluation.

    Args:
        x: (N, F + K) float32 inputs.
        y: (N,) int64 classes or float32 numbers.
        rows: indices of the rows to use, such as those of a split.
        batch_size: most rows per batch, over all processes. In training, the batches are about equal.
        seed: seed of the sample order, for training; None for evaluation, in the order of `rows`.
        balanced: True for class-balanced sampling: classes, or the rarest label of each row, are equally frequent.
        shard: the part of every batch that this process loads; default: all of it.
        weights: (N,) float32 sample weights, or None for equal weights.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray,
        rows: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        balanced: bool = False,
        shard: Shard | None = None,
        weights: np.ndarray | None = None,
    ):
        self.shard = shard or Shard()
        self.x, self.y, self.rows, self.seed = torch.from_numpy(x), torch.from_numpy(y), rows, seed
        self.labels = None
        if balanced:
            self.labels = y if y.ndim == 1 else strata_of("multilabel", y, rows)
        self.sample_weights = None if weights is None else torch.from_numpy(weights)
        if seed is None:
            self.bounds = batch_bounds(len(rows), batch_size)
        else:
            # A last batch of few rows would weigh as much as the others, and have norms of its own.
            self.bounds = training_bounds(len(rows), batch_size, self.shard, "rows", is_even=True)

    @property
    def steps(self) -> int:
        """Number of batches per epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Number of rows per epoch."""
        return len(self.rows)

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """Return x and y of up to `count` evenly spaced rows, the same in every process."""
        chosen = torch.from_numpy(evenly_spaced(self.rows, count))
        return self.x[chosen], self.y[chosen]

    def weights(self, ids: np.ndarray, epoch: int = 0) -> Tensor | None:
        """Return the weights (B,) of the rows `ids` of a batch, or None for equal weights."""
        return None if self.sample_weights is None else self.sample_weights[torch.from_numpy(ids)]

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """Iterate over (x, y, ids) of an epoch, beginning with batch `start`."""
        order = self.rows
        if self.seed is not None:
            order = shuffle_rows(self.rows, self.labels, seed=self.seed, epoch=epoch)
        for begin, end in self.bounds[start:]:
            ids = self.shard.take(order[begin:end])
            chosen = torch.from_numpy(ids)
            yield self.x.index_select(0, chosen), self.y.index_select(0, chosen), ids
