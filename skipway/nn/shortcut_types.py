"""Shortcuts: what travels around a body. The identity wherever shapes allow it; nothing here has a nonlinearity.

Shapes: B batch, C channels, * further axes (none for feature vectors).
Sources: options A (pad), B and C (project), He et al. 2015, arXiv:1512.03385; pool, then project (ResNet-D), He et al.
2018, arXiv:1812.01187.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn

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
    """The norm `kind` of (B, channels, *) with `dims` further axes: of a batch, of up to 32 groups, or None."""
    if kind not in NORMS:
        raise InputError(f"no norm is called {kind!r}{did_you_mean(kind, NORMS)}; there are {', '.join(NORMS)}")
    if kind == "group":
        return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
    return _BATCH_NORMS[dims](channels) if kind == "batch" else None


class Pad(nn.Module):
    """(B, C, *) -> (B, C', */stride) without parameters: every stride-th position, zeros for the new channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        if out_channels < in_channels:
            raise ShapeError(
                f'shortcut "pad" only adds channels, but the body goes from {in_channels} to {out_channels}; '
                'use "project"'
            )
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """Half of the zeros before the channels, half after, as the CIFAR networks are commonly written."""
        for axis in range(2, x.dim()):
            x = x[(slice(None),) * axis + (slice(None, None, self.stride),)]
        new = self.out_channels - self.in_channels
        return F.pad(x, [0, 0] * (x.dim() - 2) + [new // 2, new - new // 2])

    def extra_repr(self) -> str:
        """The arguments that made it."""
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


class Project(nn.Module):
    """(B, C, *) -> (B, C', */stride): a 1x1 convolution over `dims` further axes (for none, a linear layer), a norm.

    With `pool`, the average of stride^dims positions, where the strided convolution would drop all but one of them.
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
            if not self.conv.weight.is_meta:  # there is nothing to draw, and torch would load its compiler for it
                nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        else:
            self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.kind = norm
        self.norm = make_norm(norm, out_channels, dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *) -> (B, C', */stride)."""
        return run_layers([layer for _, layer in self.row()], x)

    def row(self) -> list[tuple[str, nn.Module]]:
        """Its layers in the order in which they are called."""
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
    """The average of stride^dims positions; the last window of an odd size is smaller, an average of what is there."""
    return _POOLS[dims](stride, stride, ceil_mode=True, count_include_pad=False)


def make_shortcut(
    kind: str, in_channels: int, out_channels: int, stride: int = 1, dims: int = 2, norm: str = "batch"
) -> nn.Module | None:
    """The shortcut `kind` from (B, in_channels, *) to (B, out_channels, */stride) over `dims` further axes.

    None is the identity: where no size changes, every kind but "project" is. "pool" projects only where the channels
    change. `norm` follows a projection.
    """
    if kind not in SHORTCUTS:
        raise InputError(
            f"no shortcut is called {kind!r}{did_you_mean(kind, SHORTCUTS)}; there are None, {', '.join(SHORTCUTS)}, "
            "or a module"
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
    """Make the shortcut `kind` from an input of shape `x_shape` to the shape of the body's output."""
    if len(x_shape) != len(branch_shape) or not 2 <= len(x_shape) <= 5:
        raise ShapeError(
            f'shortcut "{kind}" cannot lead from {x_shape} to {branch_shape}: it takes (B, C) or (B, C, *) with '
            "up to 3 further axes, as many on both sides; give a module as the shortcut"
        )
    axes = list(zip(x_shape[2:], branch_shape[2:], strict=True))
    # The least stride of each axis; a larger one may still fit it, so that (4, 1) -> (2, 1) has stride 2.
    stride = max((-(-a // b) if b else 0 for a, b in axes), default=1)
    if not stride or any(-(-a // stride) != b for a, b in axes):
        raise ShapeError(
            f'shortcut "{kind}" cannot lead from {x_shape} to {branch_shape}: no stride divides the axes after '
            "the channels so; pad the body's convolutions, or give a module as the shortcut"
        )
    return make_shortcut(kind, x_shape[1], branch_shape[1], stride=stride, dims=len(x_shape) - 2)
