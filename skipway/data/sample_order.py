"""Sample order and batch boundaries of images and tables, as deterministic functions of (seed, epoch)."""

from dataclasses import dataclass

import numpy as np

from skipway.errors import InputError

__all__ = ["Shard", "batch_bounds", "evenly_spaced", "shuffle_rows", "training_bounds"]


@dataclass(frozen=True)
class Shard:
    """The part of every batch that process `rank` of `world_size` processes loads."""

    rank: int = 0
    world_size: int = 1

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the sample ids of a batch that this process loads."""
        return ids[self.rank :: self.world_size]


def evenly_spaced(rows: np.ndarray, count: int) -> np.ndarray:
    """Return up to `count` of `rows`, evenly spaced."""
    count = min(count, len(rows))
    return rows[np.arange(count) * len(rows) // max(1, count)]


def batch_bounds(count: int, batch_size: int, min_size: int = 2) -> list[tuple[int, int]]:
    """Return the (begin, end) bounds of each batch over `count` samples.

    All samples are used. The last batch is merged into the one before it if it has fewer than `min_size` samples.

    Args:
        count: number of samples.
        batch_size: samples per batch.
        min_size: minimum size of the last batch.

    >>> batch_bounds(9, 4)
    [(0, 4), (4, 9)]
    """
    bounds = [(i, min(i + batch_size, count)) for i in range(0, count, batch_size)]
    if len(bounds) > 1 and bounds[-1][1] - bounds[-1][0] < min_size:  # batch norm has no variance over 1 sample
        bounds[-2:] = [(bounds[-2][0], count)]
    return bounds


def training_bounds(
    count: int, batch_size: int, shard: Shard, noun: str, *, is_even: bool = False
) -> list[tuple[int, int]]:
    """Return the (begin, end) bounds of each training batch, with at least 2 samples per process.

    Args:
        count: number of training samples.
        batch_size: samples per batch, over all processes.
        shard: the part of every batch that this process loads.
        noun: "images" or "rows", for errors.
        is_even: use smaller batches instead of a last one that is much smaller than the others.

    >>> training_bounds(9, 7, Shard(), "rows", is_even=True)
    [(0, 5), (5, 9)]

    Raises:
        InputError: `count` or `batch_size` is less than 2 per process.
    """
    smallest = 2 * shard.world_size
    where = f" in each of {shard.world_size} processes" if shard.world_size > 1 else ""
    if count < smallest:
        raise InputError(
            f"cannot train with batch norm: expected at least 2 training {noun}{where}, got {count}. Add more {noun}."
        )
    if batch_size < smallest:
        raise InputError(
            f"cannot train with batches of {batch_size}: expected --batch-size >= {smallest} (2 {noun}{where}), got "
            f"{batch_size}. Use a larger --batch-size, or fewer processes."
        )
    if is_even:
        batch_size = max(smallest, -(-count // -(-count // batch_size)))
    return batch_bounds(count, batch_size, smallest)


def shuffle_rows(rows: np.ndarray, labels: np.ndarray | None, *, seed: int, epoch: int) -> np.ndarray:
    """Return `rows` in the shuffled order of an epoch.

    Args:
        rows: indices of the samples.
        labels: (N,) class of all samples, for class-balanced sampling: rows are repeated or left out until all
            classes are equally frequent, and the choice changes every epoch. None for plain shuffling.
        seed: seed of the run.
        epoch: index of the epoch.

    Returns:
        As many indices as `rows` has.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order: np.ndarray = rows[random.permutation(len(rows))]
    if labels is None:
        return order
    classes = random.permutation(np.unique(labels[order]))  # the first classes get the remainder
    shares = np.full(len(classes), len(order) // len(classes))
    shares[: len(order) % len(classes)] += 1
    drawn = [np.resize(order[labels[order] == c], share) for c, share in zip(classes, shares, strict=True)]
    return np.concatenate(drawn)[random.permutation(len(order))]
