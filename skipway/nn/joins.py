"""Joins: how a branch and the shortcut meet. A join takes `(branch, shortcut)`, in this order, always.

Shapes: B batch, C channels, * any further axes. No join broadcasts: PyTorch's own `+` would, in silence.
Sources: add, He et al. 2015, arXiv:1512.03385; concat, Huang et al. 2016, arXiv:1608.06993; gate, Srivastava et al.
2015, arXiv:1505.00387; scale, Bachlechner et al. 2020, arXiv:2003.04887 (one number) and Touvron et al. 2021,
arXiv:2103.17239 (one per channel).
"""

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.nn.shape_inference import filling, real_tensors

__all__ = ["JOINS", "Gate", "Scale", "add", "append", "concat", "make_join", "multiply"]


def add(*branches: Tensor) -> Tensor:
    """(B, C, *), (B, C, *) -> (B, C, *): their sum."""
    _need_equal("add", branches)
    return reduce(operator.add, branches)


def multiply(*branches: Tensor) -> Tensor:
    """(B, C, *), (B, C, *) -> (B, C, *): their product."""
    _need_equal("multiply", branches)
    return reduce(operator.mul, branches)


def concat(*branches: Tensor) -> Tensor:
    """(B, C1, *), (B, C2, *) -> (B, C1 + C2, *): one after the other along the channels, the branch first."""
    shapes = [tuple(b.shape) for b in branches]
    if any(len(s) < 2 or s[:1] + s[2:] != shapes[0][:1] + shapes[0][2:] for s in shapes):
        raise ShapeError(
            f"`concat` got {_join_shapes(shapes)}, which must agree in everything but axis 1; "
            "pad or pool one of them to the other's size"
        )
    return torch.cat(branches, dim=1)


def append(*branches: Tensor) -> Tensor:
    """(B, C1, *), (B, C2, *) -> (B, C2 + C1, *): `concat` with the shortcut first, as dense networks order it."""
    return concat(*reversed(branches))


class Scale(nn.Module):
    """`scale * branch + shortcut` with a learned `scale`: one number, or one per channel.

    One number that begins at zero (ReZero, SkipInit) makes the block an identity with a gradient from the first step
    on, unless its body gives zeros too. LayerScale is one number per channel: `Scale(channels, init=1e-5)`, or
    `Scale("each", init=1e-5)` where the shape pass or a loaded state is to fill the channels in. Its paper begins with
    0.1 up to 18 blocks, 1e-5 at 24 and 1e-6 beyond.
    """

    def __init__(self, channels: int | str | None = None, init: float = 0.0):
        super().__init__()
        if isinstance(channels, str) and channels != "each":
            raise InputError(f'Scale takes a number of channels, "each" or None for one number, not {channels!r}')
        self.channels, self.init = channels, float(init)
        self.register_parameter("scale", None if channels == "each" else self._new_parameter(channels))

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """(B, C, *), (B, C, *) -> (B, C, *)."""
        _need_equal("scale", (branch, shortcut))
        scale: Tensor = self.scale
        if self.channels is not None:
            _need_channels("scale", branch)
            if self.channels == "each":
                _need_filling("scale")
                with real_tensors():
                    self._fill(branch.shape[1], branch)
                scale = self.scale
            if branch.shape[1] != self.channels:
                raise ShapeError(
                    f"`scale` holds {self.channels} channels, but the branch is {tuple(branch.shape)}; "
                    f"make it Scale({branch.shape[1]})"
                )
            scale = scale.view(-1, *[1] * (branch.dim() - 2))
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
        """The arguments that made it."""
        return _arguments(self.channels, "" if self.init == 0 else f"init={self.init:g}")


class Gate(nn.Module):
    """Highway: `t * branch + (1 - t) * shortcut` with `t = sigmoid(W shortcut + b)`, per position.

    `bias` below zero keeps most of the input at the start. `channels` may be left to the shape pass or a loaded state.
    """

    def __init__(self, channels: int | None = None, bias: float = -2.0):
        super().__init__()
        self.bias = bias
        self.transform = None if channels is None else self._new_transform(channels)

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        """(B, C, *), (B, C, *) -> (B, C, *)."""
        _need_equal("gate", (branch, shortcut))
        _need_channels("gate", shortcut)
        if self.transform is None:
            _need_filling("gate")
            with real_tensors():
                self.transform = self._new_transform(shortcut.shape[1]).to(shortcut.device, shortcut.dtype)
        if shortcut.shape[1] != self.transform.in_features:
            raise ShapeError(
                f"`gate` holds {self.transform.in_features} channels, but got {tuple(shortcut.shape)}; "
                f"make it Gate({shortcut.shape[1]})"
            )
        t = torch.sigmoid(self.transform(shortcut.movedim(1, -1)).movedim(-1, 1))
        return shortcut + t * (branch - shortcut)  # the same, with one pass less, in the memory format of the shortcut

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


# A join's name -> how it is made for so many channels; None leaves them to the shape pass.
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
    """The join of that name for `channels` (None: left open), or the callable itself: a function or a module."""
    if isinstance(join, str):
        if join not in JOINS:
            raise InputError(f"no join is called {join!r}{did_you_mean(join, JOINS)}; there are {', '.join(JOINS)}")
        return JOINS[join](channels)
    if not callable(join) or isinstance(join, type):
        raise InputError(f"a join is a name or something that takes (branch, shortcut), not {join!r}")
    return join


def _need_filling(join: str) -> None:
    if not filling():
        raise ShapeError(f"`{join}` has no size yet; call skipway.output_shape(network, input_shape) once before use")


def _need_channels(join: str, tensor: Tensor) -> None:
    if tensor.dim() < 2:
        raise ShapeError(f"`{join}` takes (B, C, *), but got {tuple(tensor.shape)}; give it a batch, as x[None]")


def _need_equal(join: str, branches: tuple[Tensor, ...]) -> None:
    for other in branches[1:]:
        if branches[0].shape != other.shape:
            shapes = _join_shapes([tuple(b.shape) for b in branches])
            raise ShapeError(
                f"`{join}` needs equal shapes, but got {shapes} (the body's first); "
                'give the Skip shortcut="project", or join with `concat`'
            )


def _join_shapes(shapes: list[tuple[int, ...]]) -> str:
    return " and ".join(str(s) for s in shapes)


def _arguments(channels: int | str | None, option: str) -> str:
    return ", ".join(text for text in ("" if channels is None else repr(channels), option) if text)
