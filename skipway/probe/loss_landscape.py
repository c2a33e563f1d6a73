"""Loss landscape: the loss around the weights of a model, along filter-normalized random directions.

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

_ROUNDING = 1e-6  # relative tolerance: a loss this far above the mean of its neighbors is rounding, not nonconvexity


@dataclass(frozen=True)
class Landscape(Plain):
    """Losses on a line or square grid centered at the weights of a model.

    Attributes:
        seed: seed of the directions.
        steps: positions along each direction; 1 moves each filter by its own norm.
        losses: one loss for each step; for two directions, a list over the second for each step along the first. A
            loss that is not finite is kept, and is None in `as_dict`.
        accuracies: accuracies in the same layout, or None.
        curvature: second difference of the loss at the center, divided by the squared step, averaged over directions.
            A larger value means a sharper minimum. NaN if a loss there is not finite.
        nonconvex: share of triples of adjacent grid points whose middle loss is above the mean of the outer two. 0 is
            a bowl; a rough landscape has a larger share. NaN if no triple is finite.
    """

    seed: int
    steps: list[float]
    losses: list[Any]
    accuracies: list[Any] | None
    curvature: float
    nonconvex: float

    @property
    def dims(self) -> int:
        """Number of directions: 1 for a line, 2 for a square."""
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
    """Compute the loss along one or two random directions through the weights of `network`.

    Each filter (or row of a linear layer) of a direction has the norm of the corresponding weights, so that networks of
    different scale are comparable. One-dimensional parameters (norms, biases) and buffers do not move. Networks with
    the same parameter shapes and `seed` get the same directions up to this scale. The weights are restored exactly.

    Args:
        network: trained model.
        loss_of: function of the network that returns its loss, or (loss, accuracy), such as `batches_loss(x, y)`. Each
            call starts from the same random state.
        span: largest step to both sides.
        points: steps along each direction, an odd number, so that the center is the model itself.
        dims: 1 for a line, 2 for a square of points * points losses.
        seed: seed of the directions.

    Returns:
        The losses, as a `Landscape`.

    Raises:
        InputError: an argument is invalid, the network has no weights of two or more axes, or `loss_of` returns
            another type.

    Example:
        >>> network = nn.Linear(2, 1, bias=False)
        >>> result = landscape(network, batches_loss(torch.randn(8, 2), torch.zeros(8)), points=3)
        >>> result.steps, result.nonconvex
        ([-1.0, 0.0, 1.0], 0.0)
    """
    if dims not in (1, 2):
        raise InputError(f"invalid dims: expected 1 for a line or 2 for a square, got {dims!r}. Pass one of them.")
    if not isinstance(points, Integral) or points < 3 or points % 2 == 0:
        raise InputError(
            f"invalid points: expected an odd integer of at least 3, whose center is the model, got {points!r}. "
            "Pass such a number."
        )
    if not 0 < span < math.inf:
        raise InputError(f"invalid span: expected a finite step above 0, got {span}. The default is 1.")
    weights = [p for p in network.parameters() if p.dim() > 1]
    if not weights:
        raise InputError(
            "cannot compute the loss landscape: expected weights of two or more axes, got a network with none. Pass a "
            "network with linear or convolutional layers."
        )
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
    """Draw a normal random direction and scale each filter to the norm of the corresponding weights."""
    direction = []
    for weight in weights:
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)  # equal on every device
        sizes = [torch.linalg.vector_norm(v.detach().float().flatten(1), dim=1) for v in (weight, noise)]
        scale = (sizes[0] / sizes[1]).view(-1, *[1] * (weight.dim() - 1))
        direction.append((noise * scale).to(weight.dtype))
    return direction


@contextmanager
def _moved_weights(
    weights: Sequence[nn.Parameter], directions: Sequence[Sequence[Tensor]], steps: Sequence[float]
) -> Iterator[None]:
    """Move the weights along directions inside the context; the originals are kept, so no rounding remains."""
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
    """Return (loss, accuracy), with None for an unknown accuracy."""
    parts = list(value) if isinstance(value, tuple | list) and len(value) == 2 else [value]
    numbers = [v.item() if isinstance(v, Tensor) and v.numel() == 1 else v for v in parts]
    if not all(isinstance(v, Real) for v in numbers):
        kinds = ", ".join(type(v).__name__ for v in parts)
        raise InputError(
            f"invalid loss_of: expected a function that returns a loss or (loss, accuracy), got {kinds}. Use "
            "batches_loss(x, y), or return floats."
        )
    loss, accuracy = [*map(float, numbers), None][:2]
    assert loss is not None
    return loss, accuracy


def _bends(losses: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return second differences along an axis, and the largest magnitude of each triple."""
    before, middle, after = (np.take(losses, range(i, losses.shape[axis] - 2 + i), axis) for i in range(3))
    with np.errstate(invalid="ignore", over="ignore"):
        return before - 2 * middle + after, np.maximum(np.maximum(abs(before), abs(middle)), abs(after))


def _curvature(losses: np.ndarray, step: float) -> float:
    middle = tuple(size // 2 for size in losses.shape)
    neighbors = [tuple(i - (a == axis) for a, i in enumerate(middle)) for axis in range(losses.ndim)]
    return float(np.mean([_bends(losses, axis)[0][place] for axis, place in enumerate(neighbors)])) / step**2


def _nonconvex(losses: np.ndarray) -> float:
    each = [_bends(losses, axis) for axis in range(losses.ndim)]
    bends, sizes = (np.concatenate([pair[i].ravel() for pair in each]) for i in range(2))
    known = np.isfinite(bends)
    return float((bends[known] < -_ROUNDING * sizes[known]).mean()) if known.any() else math.nan
