"""Shortcuts: what travels around a body. The identity wherever shapes allow it; nothing here has a nonlinearity.

Shapes: B batch, C channels, * further axes (none for feature vectors).
Sources: options A (pad), B and C (project), He et al. 2015, arXiv:1512.03385; pool, then project (ResNet-D), He et al.
2018, arXiv:1812.01187.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError, ShapeError, did_you_mean

__all__ = ["SHORTCUTS", "Pad", "fitted_shortcut", "make_shortcut"]

SHORTCUTS = ("project", "pad", "pool", "auto")
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


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


def make_shortcut(kind: str, in_channels: int, out_channels: int, stride: int = 1, dims: int = 2) -> nn.Module | None:
    """The shortcut `kind` from (B, in_channels, *) to (B, out_channels, */stride) over `dims` further axes.

    None is the identity. Where no size changes, every kind but "project" and "pool" is the identity.
    """
    if kind not in SHORTCUTS:
        raise InputError(
            f"no shortcut is called {kind!r}{did_you_mean(kind, SHORTCUTS)}; there are None, {', '.join(SHORTCUTS)}, "
            "or a module"
        )
    changes = in_channels != out_channels or stride != 1
    if kind in ("auto", "pad") and not changes:
        return None
    if kind == "pad":
        return Pad(in_channels, out_channels, stride)
    if kind == "pool" and dims and stride != 1:
        # Every position counts, where a strided 1x1 convolution would drop all but one in stride^dims.
        pool = _POOLS[dims](stride, stride, ceil_mode=True, count_include_pad=False)
        return nn.Sequential(OrderedDict(pool=pool, **_projection(in_channels, out_channels, 1, dims)))
    return nn.Sequential(OrderedDict(_projection(in_channels, out_channels, stride, dims)))


def fitted_shortcut(kind: str, kept: tuple[int, ...], branch: tuple[int, ...]) -> nn.Module | None:
    """The shortcut `kind` that takes an input of shape `kept` to the body's shape `branch`."""
    if len(kept) != len(branch) or not 2 <= len(kept) <= 5:
        raise ShapeError(
            f'shortcut "{kind}" cannot lead from {kept} to {branch}: it takes (B, C) or (B, C, *) with up to 3 '
            "further axes, as many on both sides; give a module as the shortcut"
        )
    strides = {-(-a // b) if b else 0 for a, b in zip(kept[2:], branch[2:], strict=True)} or {1}
    stride = strides.pop()
    if strides or not stride or any(-(-a // stride) != b for a, b in zip(kept[2:], branch[2:], strict=True)):
        raise ShapeError(
            f'shortcut "{kind}" cannot lead from {kept} to {branch}: no stride divides the axes after the channels '
            "so; pad the body's convolutions, or give a module as the shortcut"
        )
    return make_shortcut(kind, kept[1], branch[1], stride, len(kept) - 2)


def _projection(in_channels: int, out_channels: int, stride: int, dims: int) -> dict[str, nn.Module]:
    if not dims:
        return {"linear": nn.Linear(in_channels, out_channels, bias=False), "norm": _NORMS[0](out_channels)}
    conv = _CONVOLUTIONS[dims](in_channels, out_channels, 1, stride, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return {"conv": conv, "norm": _NORMS[dims](out_channels)}
