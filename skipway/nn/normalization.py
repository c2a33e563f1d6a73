"""Norms beyond those of torch: of weights, and of features together with their activation.

Shapes: (B, C, H, W) -> (B, C, H, W) for norms.
Sources: weight standardization, Qiao et al. 2019, arXiv:1903.10520; filter response norm and its thresholded linear
unit, Singh and Krishnan 2019, arXiv:1911.09737; EvoNorm-S0, Liu et al. 2020, arXiv:2004.02967.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["NORMS_WITH_ACTIVATION", "EvoNorm2d", "FilterResponseNorm2d", "StandardizedConv2d", "ThresholdedUnit"]

NORMS_WITH_ACTIVATION = ("frn", "evonorm")  # norms that determine the activation after them
_GROUPS = 32


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose filters are standardized: each has mean 0 and variance 1 over its inputs.

    Its state dict holds the weights before that.

    >>> conv = StandardizedConv2d(3, 8, 3, padding=1)
    >>> conv(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 8, 4, 4])
    """

    EPS = 1e-8

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), correction=0, keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(variance + self.EPS)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class FilterResponseNorm2d(nn.Module):
    """Divide each channel of each image by its root mean square, then scale and shift it.

    Args:
        channels: channels C of the input (B, C, H, W).

    >>> FilterResponseNorm2d(2)(torch.full((1, 2, 2, 2), 3.0)).mean().round().item()
    1.0
    """

    EPS = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W)."""
        wide = _at_least_float32(x)
        normalized = wide * wide.square().mean((2, 3), keepdim=True).add(self.EPS).rsqrt()
        return (normalized * _per_channel(self.weight, wide) + _per_channel(self.bias, wide)).to(x.dtype)


class ThresholdedUnit(nn.Module):
    """Return the larger of the input and a learned threshold of each channel; a threshold of 0 is a ReLU.

    Args:
        channels: channels C of the input (B, C, H, W).

    >>> ThresholdedUnit(1)(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2))
    tensor([[[[0., 2.]]]], grad_fn=<MaximumBackward0>)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Limit x (B, C, H, W) from below."""
        return torch.maximum(x, _per_channel(self.tau, x))


class EvoNorm2d(nn.Module):
    """EvoNorm-S0: x * sigmoid(v x), divided by the standard deviation of a group of channels, then scaled and shifted.

    It is a norm and an activation in one.

    Args:
        channels: channels C of the input (B, C, H, W); there are up to 32 groups.

    >>> EvoNorm2d(64)(torch.zeros(1, 64, 2, 2)).shape
    torch.Size([1, 64, 2, 2])
    """

    EPS = 1e-5

    def __init__(self, channels: int):
        super().__init__()
        self.groups = math.gcd(_GROUPS, channels)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.v = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (B, C, H, W), and apply the activation."""
        wide = _at_least_float32(x)
        grouped = wide.unflatten(1, (self.groups, -1))
        deviation = grouped.var((2, 3, 4), correction=0, keepdim=True).add(self.EPS).sqrt()
        normalized = (grouped / deviation).flatten(1, 2) * (wide * _per_channel(self.v, wide)).sigmoid()
        return (normalized * _per_channel(self.weight, wide) + _per_channel(self.bias, wide)).to(x.dtype)


@fx.wrap
def _at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if it is in lower precision, where squares overflow and each step would round."""
    return x if x.dtype == torch.float64 else x.float()


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view(-1, 1, 1)
