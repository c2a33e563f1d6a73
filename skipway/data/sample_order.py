"""The order of samples and the bounds of batches, for images and tables alike: functions of (seed, epoch)."""

from dataclasses import dataclass

import numpy as np

from skipway.errors import InputError

__all__ = ["Shard", "batch_bounds", "evenly_spaced", "shuffle_rows", "training_bounds"]


@dataclass(frozen=True)
class Shard:
    """The part of every batch that one of `world_size` processes takes."""

    rank: int = 0
    world_size: int = 1

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return this process's part of a batch."""
        return ids[self.rank :: self.world_size]


def evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """Choose up to `count` of the rows, as far from each other as they can be."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // max(1, count)]


def batch_bounds(count: int, batch_size: int, min_size: int = 2) -> list[tuple[int, int]]:
    """Return (begin, end) of each batch over `count` samples.

    None is left out: the last joins the one before it if it has less than `min_size`.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    bounds = [(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < min_size:  # a batch norm has no spread over one
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


def training_bounds(count: int, batch_size: int, shard: Shard, noun: str) -> list[tuple[int, int]]:
    """Return (begin, end) of each training batch over `count` samples, with two or more for every process.

    Raises:
        InputError: there are too few samples for that, or the batches are too small; `noun` is what samples are called.
    """
    smallest = 2 * shard.world_size
    where = f" in each of {shard.world_size} processes" if shard.world_size > 1 else ""
    if count < smallest:
        raise InputError(f"there are {count} training {noun}, but a batch norm needs at least 2{where}; add more")
    if batch_size < smallest:
        raise InputError(
            f"cannot share out batches of {batch_size}: expected at least 2 {noun}{where}, got too few. Use "
            f"--batch-size {smallest} or more, or fewer processes."
        )
    return batch_bounds(count, batch_size, smallest)


def shuffle_rows(rows: np.ndarray, labels: np.ndarray | None, *, seed: int, epoch: int) -> np.ndarray:
    """Put `rows` into the order of an epoch.

    With `labels` (of all samples) every class comes as often as any other: some of its rows are repeated or left out,
    in each epoch others.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order: np.ndarray = rows[random.permutation(len(rows))]
    if labels is None:
        return order
    classes = random.permutation(np.unique(labels[order]))  # the first ones have one more if they do not divide
    shares = np.full(len(classes), len(order) // len(classes))
    shares[: len(order) % len(classes)] += 1
    drawn = [np.resize(order[labels[order] == c], share) for c, share in zip(classes, shares, strict=True)]
    return np.concatenate(drawn)[random.permutation(len(order))]
