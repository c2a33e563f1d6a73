"""Batches of a table's rows, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, F + K) float32; y (B,) int64 classes or float32 numbers; ids (B,), indices into the rows.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.loader import batch_bounds, evenly, shuffled
from skipway.errors import InputError

__all__ = ["RowBatches"]


class RowBatches:
    """The `rows` of x and y in batches, drawn in a new order every epoch where `seed` is given; `balanced`: with every
    class as often as any other.

    Of every batch `part` (k, n) takes the k-th of n parts.
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
        part: tuple[int, int] = (0, 1),
    ):
        least = 2 * part[1] if seed is not None else 1
        if len(rows) < least:
            where = f" in each of {part[1]} processes" if part[1] > 1 else ""
            raise InputError(f"there are {len(rows)} training rows, but a batch norm needs at least 2{where}; add more")
        self.x, self.y, self.rows, self.seed, self.part = torch.from_numpy(x), torch.from_numpy(y), rows, seed, part
        self.labels = y if balanced else None
        self.bounds = batch_bounds(len(rows), batch_size, max(2, least))

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Rows in an epoch."""
        return len(self.rows)

    def some(self, count: int) -> tuple[Tensor, Tensor]:
        """x and y of up to `count` rows, evenly chosen, whatever part of them this process has."""
        chosen = torch.from_numpy(evenly(self.rows, count))
        return self.x[chosen], self.y[chosen]

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[tuple[Tensor, Tensor, np.ndarray]]:
        """The batches of an epoch from the `start`-th on."""
        order = self.rows
        if self.seed is not None:
            order = shuffled(self.rows, self.labels, self.seed, epoch)
        for begin, end in self.bounds[start:]:
            ids = order[begin:end][self.part[0] :: self.part[1]]
            chosen = torch.from_numpy(ids)
            yield self.x[chosen], self.y[chosen], ids
