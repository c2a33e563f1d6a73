"""Joins: combine the output of a branch with the shortcut. A join takes `(branch, shortcut)`, always in this order.

Shapes: B batch, C channels, * any further axes. The channels are on axis 1, or on `dim`. Unlike PyTorch's `+`, a join
never broadcasts.
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
from skipway.nn.channel_axis import check_dim
from skipway.nn.join_errors import need_equal_shapes, need_tensors
from skipway.nn.shape_inference import filling, real_tensors
from skipway.utils.tracing import is_traced

__all__ = [
    "JOINS",
    "Gate",
    "Scale",
    "add",
    "append",
    "concat",
    "make_join",
    "multiply",
    "name_of_join",
    "name_or_module",
    "refuse_join_name",
    "takes_dim",
]


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
    need_equal_shapes("add", branches)
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
    need_equal_shapes("multiply", branches)
    return reduce(operator.mul, branches)


def concat(*branches: Tensor, dim: int = 1) -> Tensor:
    """Concatenate tensors along the channels, the branch first.

    Args:
        branches: tensors of shapes (B, C1, *) and (B, C2, *), or (B, *, C1) and (B, *, C2) with dim=-1.
        dim: axis of the channels.

    Returns:
        A tensor of shape (B, C1 + C2, *).

    Raises:
        ShapeError: the shapes differ on another axis.

    >>> concat(torch.ones(1, 2), torch.zeros(1, 1))
    tensor([[1., 1., 0.]])
    """
    need_tensors("concat", branches)
    if not any(is_traced(branch) for branch in branches):
        shapes = [tuple(b.shape) for b in branches]
        others = [s[: dim % len(s)] + s[dim % len(s) + 1 :] for s in shapes if -len(s) < dim < len(s)]
        if len(others) < len(shapes) or any(other != others[0] for other in others):
            raise ShapeError(
                f"`concat`: expected shapes that differ only on axis {dim}, got {' and '.join(map(str, shapes))}. Pad "
                "or pool one input to the size of the other, or set dim to the axis of the channels."
            )
    return torch.cat(branches, dim=dim)


def append(*branches: Tensor, dim: int = 1) -> Tensor:
    """Concatenate along the channels with the shortcut first, as DenseNet does.

    Args:
        branches: tensors of shapes (B, C1, *) and (B, C2, *).
        dim: axis of the channels.

    Returns:
        A tensor of shape (B, C2 + C1, *).
    """
    return concat(*reversed(branches), dim=dim)


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
        dim: axis of the channels; None takes that of the Skip around it, or 1.

    Shapes:
        branch (B, C, *), shortcut (B, C, *) -> (B, C, *); (B, *, C) with dim=-1.

    >>> Scale()(torch.ones(1, 2), torch.full((1, 2), 3.0)).tolist()
    [[3.0, 3.0]]
    >>> Scale(64, init=1e-5).scale.shape
    torch.Size([64])
    """

    def __init__(self, channels: int | str | None = None, init: float = 0.0, dim: int | None = None):
        super().__init__()
        if isinstance(channels, str) and channels != "each":
            raise InputError(
                f'Scale: expected channels to be an int, "each" or None, got {channels!r}. Use None for a single scale.'
            )
        self.channels, self.init, self.dim = channels, float(init), check_dim("Scale", dim)
        self.register_parameter("scale", None if channels == "each" else self._new_parameter(channels))

    def forward(self, branch: Tensor, shortcut: Tensor, dim: int | None = None) -> Tensor:
        """Join (B, C, *) and (B, C, *) to (B, C, *); `dim` is the axis of C if the layer has none of its own."""
        need_equal_shapes("scale", (branch, shortcut), self.dim or dim)
        if self.channels is None:
            return self.scale * branch + shortcut
        axis = self.dim or dim or 1
        if self.channels == "each":
            _need_channels("scale", branch, axis)
            _need_filling("scale")
            with real_tensors():
                self._fill(branch.shape[axis], branch)
        if not is_traced(branch):
            _need_channels("scale", branch, axis)
            if branch.shape[axis] != self.channels:
                raise ShapeError(
                    f"`scale`: expected {self.channels} channels, got a branch of shape "
                    f"{tuple(branch.shape)}. Use Scale({branch.shape[axis]})."
                )
        return _on_channels(self.scale, branch, axis) * branch + shortcut

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
        return _arguments(self.channels, "" if self.init == 0 else f"init={self.init:g}", self.dim)


class Gate(nn.Module):
    """Return `t * branch + (1 - t) * shortcut` with `t = sigmoid(W shortcut + b)` per position, as in highway networks.

    Args:
        channels: number of channels C. None infers it by `output_shape` or from a loaded state.
        bias: initial value of b. A negative bias keeps most of the input at the start of training.
        dim: axis of the channels; None takes that of the Skip around it, or 1.

    Shapes:
        branch (B, C, *), shortcut (B, C, *) -> (B, C, *); (B, *, C) with dim=-1.

    >>> Gate(4)(torch.ones(2, 4), torch.zeros(2, 4)).shape
    torch.Size([2, 4])
    """

    def __init__(self, channels: int | None = None, bias: float = -2.0, dim: int | None = None):
        super().__init__()
        self.bias, self.dim = bias, check_dim("Gate", dim)
        self.transform = None if channels is None else self._new_transform(channels)

    def forward(self, branch: Tensor, shortcut: Tensor, dim: int | None = None) -> Tensor:
        """Join (B, C, *) and (B, C, *) to (B, C, *); `dim` is the axis of C if the layer has none of its own."""
        axis = self.dim or dim or 1
        need_equal_shapes("gate", (branch, shortcut), self.dim or dim)
        if self.transform is None:
            _need_channels("gate", shortcut, axis)
            _need_filling("gate")
            with real_tensors():
                self._fill(shortcut.shape[axis], shortcut)
        assert self.transform is not None
        if not is_traced(shortcut):
            _need_channels("gate", shortcut, axis)
            if shortcut.shape[axis] != self.transform.in_features:
                raise ShapeError(
                    f"`gate`: expected {self.transform.in_features} channels, got a shortcut of shape "
                    f"{tuple(shortcut.shape)}. Use Gate({shortcut.shape[axis]})."
                )
        # The sigmoid comes before movedim: torch.ao computes it wrongly for a quantized tensor with strides.
        t = torch.sigmoid(self.transform(shortcut.movedim(axis, -1))).movedim(-1, axis)
        return shortcut + t * (branch - shortcut)  # equal, with one operation less

    def _fill(self, channels: int, like: Tensor) -> None:
        self.transform = self._new_transform(channels).to(like.device, like.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        weight = state_dict.get(f"{prefix}transform.weight")
        if self.transform is None and isinstance(weight, Tensor) and weight.dim() == 2:
            self._fill(weight.shape[1], weight)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _new_transform(self, channels: int) -> nn.Linear:
        transform = nn.Linear(channels, channels)
        nn.init.constant_(transform.bias, self.bias)
        return transform

    def __repr__(self) -> str:
        channels = None if self.transform is None else self.transform.in_features
        return f"Gate({_arguments(channels, '' if self.bias == -2 else f'bias={self.bias:g}', self.dim)})"


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


# Names of other libraries -> name here.
_ALIASES = {
    **dict.fromkeys(("sum", "plus", "+", "residual", "addition", "identity", "resnet"), "add"),
    **dict.fromkeys(("mul", "prod", "product", "*", "times", "hadamard"), "multiply"),
    **dict.fromkeys(("cat", "concatenate", "dense", "hcat", "vcat", "stack"), "concat"),
    "densenet": "append",
    **dict.fromkeys(("highway", "gated"), "gate"),
    **dict.fromkeys(("rezero", "skipinit", "scaled"), "scale"),
    **dict.fromkeys(("layer_scale", "ls"), "layerscale"),
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
            hint = did_you_mean(join, JOINS, _ALIASES)
            raise InputError(
                f"unknown join {join!r}{hint}: expected {', '.join(JOINS)}, or a callable. Use one of these."
            )
        return JOINS[join](channels)
    if not callable(join) or isinstance(join, type | nn.ModuleList | nn.ModuleDict):
        raise InputError(
            f"join: expected a name or a callable that takes (branch, shortcut), got {join!r}. Pass a "
            "function or an nn.Module instance."
        )
    return join


def takes_dim(join: Any) -> bool:
    """Return True if the result of a join depends on the axis of the channels, and the join has none of its own."""
    if isinstance(join, Gate | Scale):
        return join.dim is None and not (isinstance(join, Scale) and join.channels is None)
    return join in (concat, append)


def name_of_join(join: Any) -> str:
    """Return the name of a join for messages."""
    return getattr(join, "__name__", type(join).__name__.lower())


def name_or_module(join: Any) -> nn.Module | str:
    """Return a join that is a module, or the name of a function."""
    return join if isinstance(join, nn.Module) else getattr(join, "__name__", repr(join))


def refuse_join_name(attribute: str, value: Any) -> None:
    """Check that the attribute `join` is set to a callable, and not to a name, which only constructors replace.

    Raises:
        InputError: it is.
    """
    if attribute != "join":
        return
    make_join(value)  # an unknown name and a value of another type have their own messages
    if isinstance(value, str):
        raise InputError(
            f"cannot set join to the name {value!r} after construction: expected a function or a module. Set it to "
            f"skipway.nn.joins.make_join({value!r})."
        )


@fx.wrap
def _on_channels(scale: Tensor, branch: Tensor, axis: int) -> Tensor:
    """View a scale (C) so that it multiplies the channels of `branch`."""
    return scale.view([-1] + [1] * (branch.dim() - 1 - axis % branch.dim()))


def _need_filling(join: str) -> None:
    if not filling():
        raise ShapeError(
            f"`{join}` has an uninferred number of channels. Call skipway.output_shape(network, "
            "input_shape) once before use."
        )


def _need_channels(join: str, tensor: Tensor, dim: int) -> None:
    if tensor.dim() < 2 or not -tensor.dim() < dim < tensor.dim():
        where = "" if dim == 1 else f" with the channels on axis {dim}"
        raise ShapeError(f"`{join}`: expected (B, C, *){where}, got {tuple(tensor.shape)}. Add a batch axis: x[None].")


def _arguments(channels: int | str | None, option: str, dim: int | None) -> str:
    parts = ("" if channels is None else repr(channels), option, "" if dim is None else f"dim={dim}")
    return ", ".join(part for part in parts if part)
