"""Shortcut types: the layers around a body. The identity is used if the shapes allow it; no shortcut is nonlinear.

Shapes: B batch, C channels, * further axes (none for feature vectors). The channels are on axis 1, or on `dim`: with
dim=-1 a layer computes for (B, *, C) what it computes for (B, C, *).
Sources: options A (pad), B and C (project), He et al. 2015, arXiv:1512.03385; pool, then project (ResNet-D), He et al.
2018, arXiv:1812.01187.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.join_errors import stride_between

__all__ = [
    "GROUPS",
    "NORMS",
    "SHORTCUTS",
    "Pad",
    "Pool",
    "Project",
    "check_shortcut",
    "fitted_shortcut",
    "make_norm",
    "make_shortcut",
]

SHORTCUTS = ("project", "pad", "pool", "auto")
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = ("batch", "group", "none")
GROUPS = 32  # Wu and He 2018, arXiv:1803.08494
_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
# Names of other libraries, in lower case -> name here.
_ALIASES = {
    **dict.fromkeys(("identity", "id", "none", "skip", "residual"), "None"),
    **dict.fromkeys(("projection", "proj", "conv", "conv1x1", "linear", "downsample", "1x1", "b", "c"), "project"),
    **dict.fromkeys(("zeropad", "zero_pad", "padding", "a"), "pad"),
    **dict.fromkeys(("avg", "avgpool", "avg_down", "d"), "pool"),
}


def make_norm(kind: str, channels: int, dims: int = 2) -> nn.Module | None:
    """Build the norm of a name.

    Args:
        kind: "batch", "group" (up to 32 groups) or "none".
        channels: number of channels C of the input (B, C, *).
        dims: number of further axes.

    Returns:
        The norm, or None for "none".

    Raises:
        InputError: the name is unknown.

    >>> make_norm("group", 64).num_groups
    32
    """
    if kind not in NORMS:
        raise InputError(
            f"unknown norm {kind!r}{did_you_mean(kind, NORMS)}: expected {', '.join(NORMS)}. Use one of these."
        )
    if kind == "group":
        return nn.GroupNorm(math.gcd(GROUPS, channels), channels)
    return _BATCH_NORMS[dims](channels) if kind == "batch" else None


class Pad(nn.Module):
    """A shortcut without parameters that subsamples positions and pads channels with zeros (option A).

    Args:
        in_channels: channels C of the input.
        out_channels: channels C' of the output, at least C.
        stride: distance between sampled positions.
        dim: axis of the channels.

    Shapes:
        (B, C, *) -> (B, C', */stride), rounded up.

    Raises:
        ShapeError: `out_channels` is smaller than `in_channels`.

    >>> import torch
    >>> Pad(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dim: int = 1):
        super().__init__()
        if out_channels < in_channels:
            raise ShapeError(
                f'shortcut "pad": expected at least {in_channels} output channels, got {out_channels}. Use "project".'
            )
        self.in_channels, self.out_channels, self.stride, self.dim = in_channels, out_channels, stride, dim

    def forward(self, x: Tensor) -> Tensor:
        """Pad half of the zeros before the channels and half after, as is common in CIFAR networks."""
        new = self.out_channels - self.in_channels
        return _with_channels_first(lambda x: _subsample_and_pad(x, self.stride, new), x, self.dim)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}{_dim_argument(self.dim)}"


@fx.wrap
def _subsample_and_pad(x: Tensor, stride: int, new: int) -> Tensor:
    """Compute `Pad`. A graph of torch.fx knows the axes when it runs."""
    for axis in range(2, x.dim()):
        x = torch.ops.aten.slice(x, axis, None, None, stride)
    return F.pad(x, [0, 0] * (x.dim() - 2) + [new // 2, new - new // 2])


class Pool(nn.Module):
    """A shortcut that averages over stride^dims positions; the last window of an odd size averages fewer.

    Args:
        stride: size and stride of the windows.
        dims: number of further axes, 1 to 3.
        dim: axis of the channels.

    Shapes:
        (B, C, *) -> (B, C, */stride), rounded up.
    """

    def __init__(self, stride: int, dims: int = 2, dim: int = 1):
        super().__init__()
        self.stride, self.dims, self.dim = stride, dims, dim
        self.pool = _pool(stride, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to (B, C, */stride)."""
        return _with_channels_first(self.pool, x, self.dim)

    def __repr__(self) -> str:
        return f"Pool({self.stride}, dims={self.dims}{_dim_argument(self.dim)})"


class Project(nn.Module):
    """A projection shortcut: a 1x1 convolution, or a linear layer if there are no further axes, then a norm.

    Args:
        in_channels: channels C of the input.
        out_channels: channels C' of the output.
        stride: stride of the convolution or of the pool.
        dims: number of further axes, 0 to 3.
        pool: average over stride^dims positions first. A strided convolution alone drops all but one of them.
        norm: norm after the projection: "batch", "group" or "none".
        dim: axis of the channels.

    Shapes:
        (B, C, *) -> (B, C', */stride), rounded up; (B, *, C) -> (B, */stride, C') with dim=-1.

    >>> import torch
    >>> Project(16, 32, stride=2)(torch.zeros(2, 16, 8, 8)).shape
    torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dims: int = 2,
        pool: bool = False,
        norm: str = "batch",
        dim: int = 1,
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dims = in_channels, out_channels, stride, dims
        self.dim = dim
        pool = pool and dims > 0 and stride != 1
        self.pool = _pool(stride, dims) if pool else None
        if dims:
            self.conv = _CONVOLUTIONS[dims](in_channels, out_channels, 1, 1 if pool else stride, bias=False)
            if not self.conv.weight.is_meta:  # no values to draw, and torch would import its compiler
                nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        else:
            self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.kind = norm
        self.norm = make_norm(norm, out_channels, dims)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, *) to (B, C', */stride)."""
        layers = [layer for _, layer in self.row()]
        return _with_channels_first(lambda x: run_layers(layers, x), x, self.dim)

    def row(self) -> list[tuple[str, nn.Module]]:
        """Return the layers and their names, in call order."""
        order = ("pool", "conv", "linear", "norm")
        return [(name, self._modules[name]) for name in order if self._modules.get(name) is not None]  # type: ignore[misc]

    def __repr__(self) -> str:
        options = {
            "stride": (self.stride, 1),
            "dims": (self.dims, 2),
            "pool": (self.pool is not None, False),
            "norm": (self.kind, "batch"),
            "dim": (self.dim, 1),
        }
        changed = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
        return f"Project({', '.join([str(self.in_channels), str(self.out_channels), *changed])})"


def _pool(stride: int, dims: int) -> nn.Module:
    """Build an average pool over stride^dims positions; the last window of an odd size averages fewer positions."""
    return _POOLS[dims](stride, stride, ceil_mode=True, count_include_pad=False)


def _with_channels_first(layer: Callable[[Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
    """Apply `layer`, which takes (B, C, *), to a tensor with the channels on axis `dim`."""
    return layer(x) if dim == 1 else layer(x.movedim(dim, 1)).movedim(1, dim)


def _dim_argument(dim: int) -> str:
    return "" if dim == 1 else f", dim={dim}"


def check_shortcut(kind: str) -> None:
    """Check the name of a shortcut.

    Raises:
        InputError: the name is unknown. The message has the name here of a common other name.
    """
    if kind not in SHORTCUTS:
        hint = did_you_mean(kind.lower(), SHORTCUTS, _ALIASES)
        raise InputError(
            f"unknown shortcut {kind!r}{hint}: expected None, {', '.join(SHORTCUTS)}, or a module. Use one of these."
        )


def make_shortcut(
    kind: str, in_channels: int, out_channels: int, stride: int = 1, dims: int = 2, norm: str = "batch", dim: int = 1
) -> nn.Module | None:
    """Build the shortcut of a name from (B, in_channels, *) to (B, out_channels, */stride).

    Args:
        kind: "project", "pad", "pool" or "auto". "pool" projects only if the number of channels changes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the body.
        dims: number of further axes.
        norm: norm after a projection.
        dim: axis of the channels.

    Returns:
        The shortcut, or None for the identity. If no size changes, all kinds but "project" are the identity.

    Raises:
        InputError: the name is unknown.
    """
    check_shortcut(kind)
    changes = in_channels != out_channels or stride != 1
    if kind != "project" and not changes:
        return None
    if kind == "pool" and in_channels == out_channels:
        return _pool(stride, dims) if dim == 1 else Pool(stride, dims, dim)
    if kind == "pad":
        return Pad(in_channels, out_channels, stride, dim)
    return Project(in_channels, out_channels, stride=stride, dims=dims, pool=kind == "pool", norm=norm, dim=dim)


def fitted_shortcut(
    kind: str, x_shape: tuple[int, ...], branch_shape: tuple[int, ...], dim: int = 1
) -> nn.Module | None:
    """Build the shortcut of a name from the shape of the input to that of the output of the body.

    Args:
        kind: name of the shortcut.
        x_shape: shape of the input, (B, C, *) with up to 3 further axes.
        branch_shape: shape of the output of the body.
        dim: axis of the channels.

    Returns:
        The shortcut, or None for the identity.

    Raises:
        ShapeError: no stride maps one shape to the other.
    """
    if len(x_shape) != len(branch_shape) or not 2 <= len(x_shape) <= 5:
        raise ShapeError(
            f'shortcut "{kind}": expected two shapes (B, C, *) with the same number of further axes, up to 3, got '
            f"{x_shape} and {branch_shape}. Pass a module as the shortcut."
        )
    channels = dim % len(x_shape)
    axes = [(x_shape[axis], branch_shape[axis]) for axis in range(1, len(x_shape)) if axis != channels]
    stride = stride_between(axes)
    if stride is None:
        raise ShapeError(
            f'shortcut "{kind}": expected a stride that maps the axes of {x_shape} to those of {branch_shape}, '
            "found none. Pad the convolutions of the body, or pass a module as the shortcut."
        )
    return make_shortcut(kind, x_shape[channels], branch_shape[channels], stride=stride, dims=len(x_shape) - 2, dim=dim)
