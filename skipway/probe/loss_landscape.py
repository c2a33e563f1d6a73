"""Landscape: the loss around a network's weights, along random directions that are made to fit its filters.

Source: Li et al. 2018, arXiv:1712.09913.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.probe.block_stats import Plain, batches_loss, untouched

__all__ = ["Landscape", "batches_loss", "landscape"]

_ROUNDING = 1e-6  # of a loss: by this much it may lie above the mean of its neighbours and still be in line


@dataclass(frozen=True)
class Landscape(Plain):
    """Losses on a line or a square of steps around a network's weights, which are those in the middle.

    steps: how far along each direction; 1 is as far as the weights are large, filter by filter.
    losses: one for each step, or for each step along the first direction a list of those along the second. What is
        not finite stays so, and is None in `as_dict`.
    accuracies: likewise, where the losses came with them.
    curvature: second difference of the loss over the step beside the middle, the mean over directions. The larger, the
        sharper the minimum. NaN where a loss there is not finite.
    nonconvex: of all three neighbours on a line of the grid, the share whose middle loss lies above the mean of the
        outer two. 0 is a bowl; a rough landscape has many. NaN where no three are finite.
    """

    seed: int
    steps: list[float]
    losses: list[Any]
    accuracies: list[Any] | None
    curvature: float
    nonconvex: float

    @property
    def dims(self) -> int:
        """1 for a line, 2 for a square."""
        return 2 if isinstance(self.losses[0], list) else 1


def landscape(
    network: nn.Module,
    loss_of: Callable[[nn.Module], Any],
    *,
    span: float = 1.0,
    points: int = 21,
    dims: int = 1,
    seed: int = 0,
) -> Landscape:
    """The loss along one or two random directions from where `network` stands; its weights come back to the last bit.

    Every filter (or row of a linear layer) of a direction is as large as that of the weights, so that networks of
    different scale can be compared; one-dimensional parameters (norms, biases) and buffers stay as they are. Networks
    whose parameters have the same shapes get the same directions for the same `seed`, but for that size.

    Args:
        network: a trained one.
        loss_of: takes the network and gives its loss, or (loss, accuracy); see `batches_loss`. It is called in the
            same random state each time.
        span: the farthest step to both sides.
        points: steps in each direction, an odd number, so that one is the network itself.
        dims: 1 for a line, 2 for a square of points * points losses.
        seed: of the directions.

    Raises:
        InputError: a value cannot be used, the network has no weights of two axes or more, or `loss_of` gives something
            else.
    """
    if dims not in (1, 2):
        raise InputError(f"dims is 1 for a line or 2 for a square, not {dims!r}")
    if not isinstance(points, Integral) or points < 3 or points % 2 == 0:
        raise InputError(f"points is an odd number from 3 up, so that one is the network itself, not {points!r}")
    if not 0 < span < math.inf:
        raise InputError(f"span is the farthest step to both sides, above 0 and finite, not {span}")
    weights = [p for p in network.parameters() if p.dim() > 1]
    if not weights:
        raise InputError("landscape needs weights of two axes or more to move along, which this network has none of")
    half = points // 2
    steps = [span * i / half for i in range(-half, half + 1)]
    generator = torch.Generator().manual_seed(seed)
    directions = [_direction(weights, generator) for _ in range(dims)]
    measured = []
    for place in np.ndindex(*[points] * dims):
        with _moved_weights(weights, directions, [steps[i] for i in place]), untouched(network):
            measured.append(_loss_and_accuracy(loss_of(network)))
    shape = [points] * dims
    losses = np.array([loss for loss, _ in measured]).reshape(shape)
    known = all(accuracy is not None for _, accuracy in measured)
    accuracies = np.array([accuracy for _, accuracy in measured]).reshape(shape).tolist() if known else None
    return Landscape(
        seed=seed,
        steps=steps,
        losses=losses.tolist(),
        accuracies=accuracies,
        curvature=_curvature(losses, span / half),
        nonconvex=_nonconvex(losses),
    )


def _direction(weights: Sequence[nn.Parameter], generator: torch.Generator) -> list[Tensor]:
    """Normal numbers, each filter of them scaled to the norm of the weights' own."""
    direction = []
    for weight in weights:
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)  # the same on every device
        sizes = [torch.linalg.vector_norm(v.detach().float().flatten(1), dim=1) for v in (weight, noise)]
        scale = (sizes[0] / sizes[1]).view(-1, *[1] * (weight.dim() - 1))
        direction.append((noise * scale).to(weight.dtype))
    return direction


@contextmanager
def _moved_weights(
    weights: Sequence[nn.Parameter], directions: Sequence[Sequence[Tensor]], steps: Sequence[float]
) -> Iterator[None]:
    """Move the weights along directions inside the context; their own are put aside, not computed back."""
    own = [weight.data for weight in weights]
    try:
        for i, weight in enumerate(weights):
            for direction, step in zip(directions, steps, strict=True):
                weight.data = torch.add(weight.data, direction[i], alpha=step)
        yield
    finally:
        for weight, data in zip(weights, own, strict=True):
            weight.data = data


def _loss_and_accuracy(value: Any) -> tuple[float, float | None]:
    """(loss, accuracy or None)."""
    parts = list(value) if isinstance(value, tuple | list) and len(value) == 2 else [value]
    numbers = [v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in parts]
    if not all(isinstance(v, Real) for v in numbers):
        kinds = ", ".join(type(v).__name__ for v in parts)
        raise InputError(f"loss_of is to give a loss or (loss, accuracy) as numbers, not {kinds}; see batches_loss")
    loss, accuracy = [*map(float, numbers), None][:2]
    assert loss is not None
    return loss, accuracy


def _bends(losses: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Second differences along an axis, and the largest of the three numbers that each comes from."""
    before, middle, after = (np.take(losses, range(i, losses.shape[axis] - 2 + i), axis) for i in range(3))
    with np.errstate(invalid="ignore", over="ignore"):
        return before - 2 * middle + after, np.maximum(np.maximum(abs(before), abs(middle)), abs(after))


def _curvature(losses: np.ndarray, step: float) -> float:
    middle = tuple(size // 2 for size in losses.shape)
    beside = [tuple(i - (a == axis) for a, i in enumerate(middle)) for axis in range(losses.ndim)]
    return float(np.mean([_bends(losses, axis)[0][place] for axis, place in enumerate(beside)])) / step**2


def _nonconvex(losses: np.ndarray) -> float:
    each = [_bends(losses, axis) for axis in range(losses.ndim)]
    bends, sizes = (np.concatenate([pair[i].ravel() for pair in each]) for i in range(2))
    known = np.isfinite(bends)
    return float((bends[known] < -_ROUNDING * sizes[known]).mean()) if known.any() else math.nan
