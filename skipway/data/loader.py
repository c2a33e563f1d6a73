"""Batches of a packed set, in an order that is a function of (seed, epoch).

Shapes: a batch is x (B, C, S, S) float, normalised, channels_last; y (B,) int64; ids (B,), indices into the packed set.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from skipway.data.augment import augmented, centred, chances
from skipway.data.pack import Packed
from skipway.errors import InputError

__all__ = ["Batches", "batch_bounds", "mean_and_std"]

Batch = tuple[Tensor, Tensor, np.ndarray]


def batch_bounds(count: int, batch_size: int) -> list[tuple[int, int]]:
    """(begin, end) of each batch over `count` pictures: none of one picture, and none left out.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    bounds = [(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] == 1:  # a batch norm has no spread over one
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


def mean_and_std(pixels: np.ndarray, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of pictures `rows`, in units of 255, exact whatever their number."""
    counts = np.zeros((pixels.shape[3], 256), np.int64)
    for begin in range(0, len(rows), 256):
        chunk = pixels[rows[begin : begin + 256]]
        for channel in range(pixels.shape[3]):
            counts[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    values = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ values
    std = np.sqrt(np.maximum(share @ values**2 - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


class Batches:
    """The pictures `rows` of a packed set in batches; shuffled and augmented where `level` is given."""

    def __init__(
        self,
        packed: Packed,
        rows: np.ndarray,
        batch_size: int,
        normalise: tuple[tuple[float, ...], tuple[float, ...]],
        *,
        level: str | None = None,
        seed: int = 0,
    ):
        if level is not None and len(rows) < 2:
            raise InputError(f"there are {len(rows)} training pictures, but a batch norm needs at least 2; add more")
        self.packed, self.rows, self.level, self.seed = packed, rows, level, seed
        self.bounds = batch_bounds(len(rows), batch_size)
        # x / 255, minus mean, over std, as one multiplication and one addition.
        mean, std = (torch.tensor(v, dtype=torch.float32).view(1, -1, 1, 1) for v in normalise)
        self.factor, self.offset = 1 / (255 * std), -mean / std

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    @property
    def count(self) -> int:
        """Pictures in an epoch."""
        return len(self.rows)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from the `start`-th on."""
        order = self.rows
        if self.level is not None:
            order = order[np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(order))]
        for begin, end in self.bounds[start:]:
            ids = order[begin:end]
            y = torch.from_numpy(self.packed.labels[ids])
            yield self.pictures(ids, epoch), y, ids

    def plain(self, count: int) -> Tensor:
        """Up to `count` pictures, evenly chosen, without augmentation: (N, C, S, S)."""
        rows = self.rows[:: max(1, len(self.rows) // count)][:count]
        x = centred(self.packed.pixels, rows, self.packed.packing.size)
        return x.mul_(self.factor).add_(self.offset)

    def pictures(self, ids: np.ndarray, epoch: int = 0) -> Tensor:
        """The pictures `ids` as the network is given them in that epoch."""
        size = self.packed.packing.size
        if self.level is None:
            x = centred(self.packed.pixels, ids, size)
        else:
            x = augmented(self.packed.pixels, ids, self.level, size, chances(self.seed, epoch, ids))
        return x.mul_(self.factor).add_(self.offset)
