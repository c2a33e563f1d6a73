"""Checks on the inputs of a join, with the fix that fits what differs.

Shapes: B batch, C channels, * any further axes.
"""

from typing import Any

import torch
from torch import Tensor

from skipway.errors import ShapeError
from skipway.utils.tracing import is_symbolic, is_traced

__all__ = ["have_equal_shapes", "need_equal_shapes", "need_tensors", "stride_between"]


_SELECTION: dict[type[Any], str] = {
    tuple: "Chain(body, lambda outputs: outputs[0])",
    list: "Chain(body, lambda outputs: outputs[0])",
    dict: 'Chain(body, lambda outputs: outputs["name"])',
}


def need_tensors(join: str, branches: tuple[Any, ...]) -> None:
    """Check that all inputs of a join are tensors.

    Raises:
        ShapeError: an input is a tuple, a dict or None, as the output of `nn.LSTM` is.
    """
    for branch in branches:
        if not isinstance(branch, Tensor) and not is_symbolic(branch):
            kinds = " and ".join("Tensor" if isinstance(b, Tensor) else type(b).__name__ for b in branches)
            raise ShapeError(
                f"`{join}`: expected one tensor from each side, got {kinds} (body first). Select it by "
                f"a further layer: {_SELECTION.get(type(branch), 'Chain(body, lambda output: ...)')}."
            )


def have_equal_shapes(first: Any, *others: Any) -> bool:
    """Return True if all branches are plain tensors of one shape, which is fast to see; False if traced.

    >>> have_equal_shapes(None, None)
    False
    """
    if type(first) is not Tensor or torch.jit.is_tracing():
        return False
    for other in others:  # a loop, because this runs in every call
        if type(other) is not Tensor or other.shape != first.shape:
            return False
    return True


def need_equal_shapes(join: str, branches: tuple[Any, ...], dim: int | None = None) -> None:
    """Check that all inputs of a join are tensors of one shape.

    Args:
        join: name of the join.
        branches: its inputs.
        dim: axis of the channels, None if unknown.

    Raises:
        ShapeError: they are not. The message has the shapes and a fix.
    """
    if have_equal_shapes(*branches):
        return
    need_tensors(join, branches)
    if any(is_traced(branch) for branch in branches):
        return
    for other in branches[1:]:
        if branches[0].shape != other.shape:
            shapes = [tuple(branch.shape) for branch in branches]
            raise ShapeError(
                f"`{join}`: expected equal shapes, got {' and '.join(map(str, shapes))} (body first). "
                f"{_fix(shapes[0], tuple(other.shape), dim)}"
            )


def _fix(branch: tuple[int, ...], shortcut: tuple[int, ...], dim: int | None) -> str:
    """Return the change that makes the two shapes fit."""
    if len(branch) != len(shortcut):
        return "Return as many axes from the body as its input has."
    if branch[:1] != shortcut[:1]:
        return "Keep the size of axis 0, the batch, in the body."
    differing = [axis for axis in range(1, len(branch)) if branch[axis] != shortcut[axis]]
    if len(branch) == 3 and dim is None:
        both = " and ".join(map(str, differing))
        return f'If axis {both} holds channels, set dim={differing[0]} and shortcut="auto"; if positions, pad the body.'
    channels = (1 if dim is None else dim) % len(branch)
    positions = [(shortcut[axis], branch[axis]) for axis in differing if axis != channels]
    if not positions:
        return 'Set shortcut="project" on the Skip, or join="concat".'
    others = [(shortcut[axis], branch[axis]) for axis in range(1, len(branch)) if axis != channels]
    if (stride := stride_between(others)) is not None:
        return f'Set shortcut="project" on the Skip, which then has stride {stride}.'
    if all(size < before for before, size in positions):
        return "Pad the convolutions of the body so that it keeps the size."
    return "Keep the size in the body, or pass a module as the shortcut."


def stride_between(axes: list[tuple[int, int]]) -> int | None:
    """Return the stride that maps each size to its target, rounded up, or None.

    >>> stride_between([(7, 4), (8, 4)])
    2
    """
    # The smallest stride of each axis. The largest of them may fit all axes: (4, 1) -> (2, 1) has stride 2.
    stride = max((-(-a // b) if b else 0 for a, b in axes), default=1)
    return stride if stride and all(-(-a // stride) == b for a, b in axes) else None
