"""Pools that replace strides: a blur before subsampling, so that small shifts of an image change the output little.

Shapes: (B, C, H, W) -> (B, C, H/stride, W/stride), rounded up.
Source: Zhang 2019, arXiv:1904.11486.
"""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AA_LAYERS", "BlurPool2d", "TrailingAvgPool2d", "make_aa_layer"]

AA_LAYERS = ("none", "blurpool", "avg")


class BlurPool2d(nn.Module):
    """Blur with the binomial filter (1, 2, 1) / 4 along both axes, then subsample; edges are reflected.

    Two averages over adjacent positions are this filter, so the layer has no weights.

    Args:
        stride: distance between sampled positions.

    Shapes:
        (B, C, H, W) -> (B, C, H/stride, W/stride), rounded up. H and W are at least 2.

    >>> import torch
    >>> BlurPool2d()(torch.eye(4)[None, None])[0, 0]
    tensor([[0.5000, 0.1250],
            [0.1250, 0.3750]])
    """

    def __init__(self, stride: int = 2):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H/stride, W/stride)."""
        x = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 2, stride=1)
        return F.avg_pool2d(x, 2, stride=self.stride)

    def extra_repr(self) -> str:
        """Return the stride."""
        return f"stride={self.stride}"


class TrailingAvgPool2d(nn.Module):
    """Average 2x2 positions at stride 1, with a row and a column of zeros at the end: the size stays.

    It replaces the strided average of a shortcut if the body dilates instead of striding.

    >>> import torch
    >>> TrailingAvgPool2d()(torch.ones(1, 1, 2, 2))[0, 0]
    tensor([[1.0000, 0.5000],
            [0.5000, 0.2500]])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)


def make_aa_layer(kind: str, stride: int) -> nn.Module | None:
    """Build the anti-aliasing layer that takes over the stride of a convolution.

    Args:
        kind: "none", "blurpool" or "avg".
        stride: the stride; at 1, a blur remains a blur and an average does nothing.

    Returns:
        The layer, or None if there is nothing to do.

    >>> make_aa_layer("blurpool", 2)
    BlurPool2d(stride=2)
    """
    if kind == "blurpool":
        return BlurPool2d(stride)
    if kind == "avg" and stride != 1:
        return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return None
