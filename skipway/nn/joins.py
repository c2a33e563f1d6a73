"""Joins: combine the output of a branch with the shortcut. A join takes `(branch, shortcut)`, always in this order.

Shapes: B batch, C channels, * any further axes. Unlike PyTorch's `+`, a join never broadcasts.
Sources: add, He et al. 2015, arXiv:1512.03385; concat, Huang et al. 2016, arXiv:1608.06993; gate, Srivastava et al.
2015, arXiv:1505.00387; scale, Bachlechner et al. 2020, arXiv:2003.04887 (one scalar) and Touvron et al. 2021,
arXiv:2103.17239 (one scalar per channel).
"""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, fx, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.nn.shape_inference import filling, real_tensors
from skipway.utils.tracing import is_traced

__all__ = ["JOINS", "Gate", "Scale", "add", "append", "concat", "make_join", "multiply"]


def add(*branches: Tensor) -> Tensor:
    """Return the sum of tensors of equal shape.

    Args:
        branches: tensors of shape (B, C, *), the branch first, then the shortcut.

    Returns:
        A tensor of shape (B, C, *).

    Raises:
        ShapeError: the shapes differ.

    >>> add(torch.ones(1, 2), torch.ones(1, 2))
    tensor([[2., 2.]])
    """
    _need_equal("add", branches)
    return reduce(operator.add, branches)


def multiply(*branches: Tensor) -> Tensor:
    """Return the elementwise product of tensors of equal shape.

    Args:
        branches: tensors of shape (B, C, *), the branch first, then the shortcut.

    Returns:
        A tensor of shape (B, C, *).

    Raises:
        ShapeError: the shapes differ.

    >>> multiply(torch.full((1, 2), 3.0), torch.full((1, 2), 2.0))
    tensor([[6., 6.]])
    """
    _need_equal("multiply", branches)
    return reduce(operator.mul, branches)


def concat(*branches: Tensor) -> Tensor:
    """Concatenate tensors along the channels, the branch first.

    Args:
        branches: tensors of shapes (B, C1, *) and (B, C2, *).

    Returns:
        A tensor of shape (B, C1 + C2, *).

    Raises:
        ShapeError: the shapes differ on an axis other than 1.

    >>> concat(torch.ones(1, 2), torch.zeros(1, 1))
    tensor([[1., 1., 0.]])
    """
    shapes = [] if any(map(is_traced, branches)) else [tuple(b.shape) for b in branches]
    if any(len(s) < 2 or s[:1] + s[2:] != shapes[0][:1] + shapes[0][2:] for s in shapes):
        raise ShapeError(
            f"`concat`: expected shapes that differ only on axis 1, got {_join_shapes(shapes)}. Pad "
            "or pool one input to the size of the other."
        )
    return torch.cat(branches, dim=1)


def append(*branches: Tensor) -> Tensor:
    """Concatenate along the channels with the shortcut first, as DenseNet does.

    Args:
        branches: tensors of shapes (B, C1, *) and (B, C2, *).

    Returns:
        A tensor of shape (B, C2 + C1, *).
    """
    return concat(*reversed(branches))


class Scale(nn.Module):
    """Return `scale * branch + shortcut` with a learned scale: one scalar, or one per channel.

    A scalar that starts at zero (ReZero, SkipInit) makes the block an identity. It has a gradient from the first step,
    unless the output of the body is zero too.

    LayerScale has one scalar per channel. Its paper initializes it with 0.1 for up to 18 blocks, 1e-5 for 24, and 1e-6
    for more.

    Args:
        channels: None for one scalar, the number of channels C for LayerScale, or "each" to infer C by `output_shape`
            or from a loaded state.
        init: initial value.

    Shapes:
        branch (B, C, *), shortcut (B, C, *) -> (B, C, *).

    >>> Scale()(torch.ones(1, 2), torch.full((1, 2), 3.0)).tolist()
    [[3.0, 3.0]]
    >>> Scale(64, init=1e-5).scale.shape
    torch.Size([64])
    """

    def __init__(self, channels: int | str | None = None, init: float = 0.0):
        super().__init__()
        if isinstance(channels, str) and channels != "each":
            raise InputError(
                f'Scale: expected channels to be an int, "each" or None, got {channels!r}. Use None for a single scale.'
            )
        self.channels, self.init = channels, float(init)
        self.register_parameter("scale", None if channels == "each" else self._new_parameter(channels))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Join (B, C, *) and (B, C, *) to (B, C, *)."""
        _need_equal("scale", (branch, shortcut))
        scale: Tensor = self.scale
        if self.channels is not None:
            _need_channels("scale", branch)
            if self.channels == "each":
                _need_filling("scale")
                with real_tensors():
                    self._fill(branch.shape[1], branch)
                scale = self.scale
            if not is_traced(branch) and branch.shape[1] != self.channels:
                raise ShapeError(
                    f"`scale`: expected {self.channels} channels, got a branch of shape "
                    f"{tuple(branch.shape)}. Use Scale({branch.shape[1]})."
                )
            scale = _on_channels(scale, branch)
        return scale * branch + shortcut

    def _fill(self, channels: int, like: Tensor) -> None:
        self.channels = channels
        self.scale = nn.Parameter(self._new_parameter(channels).data.to(like.device, like.dtype))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        scale = state_dict.get(f"{prefix}scale")
        if self.channels == "each" and isinstance(scale, Tensor) and scale.dim() == 1:
            self._fill(len(scale), scale)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _new_parameter(self, channels: Any) -> nn.Parameter:
        return nn.Parameter(torch.full(() if channels is None else (channels,), self.init))

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return _arguments(self.channels, "" if self.init == 0 else f"init={self.init:g}")


class Gate(nn.Module):
    """Return `t * branch + (1 - t) * shortcut` with `t = sigmoid(W shortcut + b)` per position, as in highway networks.

    Args:
        channels: number of channels C. None infers it by `output_shape` or from a loaded state.
        bias: initial value of b. A negative bias keeps most of the input at the start of training.

    Shapes:
        branch (B, C, *), shortcut (B, C, *) -> (B, C, *).

    >>> Gate(4)(torch.ones(2, 4), torch.zeros(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int | None = None, bias: float = -2.0):
        super().__init__()
        self.bias = bias
        self.transform = None if channels is None else self._new_transform(channels)

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """Join (B, C, *) and (B, C, *) to (B, C, *)."""
        _need_equal("gate", (branch, shortcut))
        _need_channels("gate", shortcut)
        if self.transform is None:
            _need_filling("gate")
            with real_tensors():
                self.transform = self._new_transform(shortcut.shape[1]).to(shortcut.device, shortcut.dtype)
        if not is_traced(shortcut) and shortcut.shape[1] != self.transform.in_features:
            raise ShapeError(
                f"`gate`: expected {self.transform.in_features} channels, got a shortcut of shape "
                f"{tuple(shortcut.shape)}. Use Gate({shortcut.shape[1]})."
            )
        t = torch.sigmoid(self.transform(shortcut.movedim(1, -1)).movedim(-1, 1))
        return shortcut + t * (branch - shortcut)  # equal, with one operation less

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}transform.weight")
        if self.transform is None and isinstance(weight, Tensor) and weight.dim() == 2:
            self.transform = self._new_transform(weight.shape[1]).to(weight.device, weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _new_transform(self, channels: int) -> nn.Linear:
        transform = nn.Linear(channels, channels)
        nn.init.constant_(transform.bias, self.bias)
        return transform

    def __repr__(self) -> str:
        channels = None if self.transform is None else self.transform.in_features
        return f"Gate({_arguments(channels, '' if self.bias == -2 else f'bias={self.bias:g}')})"


# Name of a join -> function that builds it for a number of channels; None leaves the number uninferred.
JOINS: dict[str, Callable[[int | None], Callable[..., Tensor]]] = {
    "add": lambda channels: add,
    "concat": lambda channels: concat,
    "append": lambda channels: append,
    "multiply": lambda channels: multiply,
    "gate": Gate,
    "scale": lambda channels: Scale(),
    "layerscale": lambda channels: Scale(channels or "each", init=1e-5),
}


def make_join(join: str | Callable[..., Tensor], channels: int | None = None) -> Callable[..., Tensor]:
    """Return the join of a name, or the callable itself.

    Args:
        join: a name of `JOINS`, or a function or module that takes (branch, shortcut).
        channels: channels of both inputs; None leaves them uninferred.

    Raises:
        InputError: the name is unknown, or `join` is not callable.
    """
    if isinstance(join, str):
        if join not in JOINS:
            raise InputError(
                f"unknown join {join!r}{did_you_mean(join, JOINS)}: expected {', '.join(JOINS)}, or a "
                "callable. Use one of these."
            )
        return JOINS[join](channels)
    if not callable(join) or isinstance(join, type):
        raise InputError(
            f"join: expected a name or a callable that takes (branch, shortcut), got {join!r}. Pass a "
            "function or an nn.Module instance."
        )
    return join


def _need_filling(join: str) -> None:
    if not filling():
        raise ShapeError(
            f"`{join}` has an uninferred number of channels. Call skipway.output_shape(network, "
            "input_shape) once before use."
        )


@fx.wrap
def _on_channels(scale: Tensor, branch: Tensor) -> Tensor:
    """View a scale (C) so that it multiplies the channels of `branch` (B, C, *)."""
    return scale.view([-1] + [1] * (branch.dim() - 2))


def _need_channels(join: str, tensor: Tensor) -> None:
    if not is_traced(tensor) and tensor.dim() < 2:
        raise ShapeError(f"`{join}`: expected (B, C, *), got {tuple(tensor.shape)}. Add a batch axis: x[None].")


def _need_equal(join: str, branches: tuple[Tensor, ...]) -> None:
    if any(map(is_traced, branches)):
        return
    for other in branches[1:]:
        if branches[0].shape != other.shape:
            shapes = _join_shapes([tuple(b.shape) for b in branches])
            raise ShapeError(
                f'`{join}`: expected equal shapes, got {shapes} (body first). Set shortcut="project" on '
                'the Skip, or join="concat".'
            )


def _join_shapes(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(s) for s in shapes)


def _arguments(channels: int | str | None, option: str) -> str:
    return ", ".join(text for text in ("" if channels is None else repr(channels), option) if text)
