"""Shortcut types: the layers around a body. The identity is used if the shapes allow it; no shortcut is nonlinear.

Shapes: B batch, C channels, * further axes (none for feature vectors).
Sources: options A (pad), B and C (project), He et al. 2015, arXiv:1512.03385; pool, then project (ResNet-D), He et al.
2018, arXiv:1812.01187.
"""

import math

import torch.nn.functional as F
from torch import Tensor, fx, nn

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.kernels.layer_dispatch import run_layers

__all__ = ["NORMS", "SHORTCUTS", "Pad", "Project", "fitted_shortcut", "make_norm", "make_shortcut"]

SHORTCUTS = ("project", "pad", "pool", "auto")
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
NORMS = ("batch", "group", "none")
_GROUPS = 32  # Wu and He 2018, arXiv:1803.08494
_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


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
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return _BATCH_NORMS[dims](channels) if kind == "batch" else None


class Pad(nn.Module):
    """A shortcut without parameters that subsamples positions and pads channels with zeros (option A).

    Args:
        in_channels: channels C of the input.
        out_channels: channels C' of the output, at least C.
        stride: distance between sampled positions.

    Shapes:
        (B, C, *) -> (B, C', */stride), rounded up.

    Raises:
        ShapeError: `out_channels` is smaller than `in_channels`.

    >>> import torch
    >>> Pad(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        if out_channels < in_channels:
            raise ShapeError(
                f'shortcut "pad": expected at least {in_channels} output channels, got {out_channels}. Use "project".'
            )
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Pad half of the zeros before the channels and half after, as is common in CIFAR networks."""
        return _subsample_and_pad(x, self.stride, self.out_channels - self.in_channels)

    def extra_repr(self) -> str:
        """Return the constructor arguments."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


@fx.wrap
def _subsample_and_pad(x: Tensor, stride: int, new: int) -> Tensor:
    for axis in range(2, x.dim()):
        x = x[(slice(None),) * axis + (slice(None, None, stride),)]
    return F.pad(x, [0, 0] * (x.dim() - 2) + [new // 2, new - new // 2])


class Project(nn.Module):
    """A projection shortcut: a 1x1 convolution, or a linear layer if there are no further axes, then a norm.

    Args:
        in_channels: channels C of the input.
        out_channels: channels C' of the output.
        stride: stride of the convolution or of the pool.
        dims: number of further axes, 0 to 3.
        pool: average over stride^dims positions first. A strided convolution alone drops all but one of them.
        norm: norm after the projection: "batch", "group" or "none".

    Shapes:
        (B, C, *) -> (B, C', */stride), rounded up.

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
    ):
        super().__init__()
        self.in_channels, self.out_channels, self.stride, self.dims = in_channels, out_channels, stride, dims
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
        return run_layers([layer for _, layer in self.row()], x)

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
        }
        changed = [f"{name}={value!r}" for name, (value, default) in options.items() if value != default]
        return f"Project({', '.join([str(self.in_channels), str(self.out_channels), *changed])})"


def _pool(stride: int, dims: int) -> nn.Module:
    """Build an average pool over stride^dims positions; the last window of an odd size averages fewer positions."""
    return _POOLS[dims](stride, stride, ceil_mode=True, count_include_pad=False)


def make_shortcut(
    kind: str, in_channels: int, out_channels: int, stride: int = 1, dims: int = 2, norm: str = "batch"
) -> nn.Module | None:
    """Build the shortcut of a name from (B, in_channels, *) to (B, out_channels, */stride).

    Args:
        kind: "project", "pad", "pool" or "auto". "pool" projects only if the number of channels changes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the body.
        dims: number of further axes.
        norm: norm after a projection.

    Returns:
        The shortcut, or None for the identity. If no size changes, all kinds but "project" are the identity.

    Raises:
        InputError: the name is unknown.
    """
    if kind not in SHORTCUTS:
        raise InputError(
            f"unknown shortcut {kind!r}{did_you_mean(kind, SHORTCUTS)}: expected None, "
            f"{', '.join(SHORTCUTS)}, or a module. Use one of these."
        )
    changes = in_channels != out_channels or stride != 1
    if kind != "project" and not changes:
        return None
    if kind == "pool" and in_channels == out_channels:
        return _pool(stride, dims)
    if kind == "pad":
        return Pad(in_channels, out_channels, stride)
    return Project(in_channels, out_channels, stride=stride, dims=dims, pool=kind == "pool", norm=norm)


def fitted_shortcut(kind: str, x_shape: tuple[int, ...], branch_shape: tuple[int, ...]) -> nn.Module | None:
    """Build the shortcut of a name from the shape of the input to that of the output of the body.

    Args:
        kind: name of the shortcut.
        x_shape: shape of the input, (B, C, *) with up to 3 further axes.
        branch_shape: shape of the output of the body.

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
    axes = list(zip(x_shape[2:], branch_shape[2:], strict=True))
    # The smallest stride of each axis. The largest of them may fit all axes: (4, 1) -> (2, 1) has stride 2.
    stride = max((-(-a // b) if b else 0 for a, b in axes), default=1)
    if not stride or any(-(-a // stride) != b for a, b in axes):
        raise ShapeError(
            f'shortcut "{kind}": expected a stride that maps the axes of {x_shape} to those of {branch_shape}, '
            "found none. Pad the convolutions of the body, or pass a module as the shortcut."
        )
    return make_shortcut(kind, x_shape[1], branch_shape[1], stride=stride, dims=len(x_shape) - 2)
