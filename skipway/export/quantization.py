"""Codes: numbers as bytes, with the scale and the zero that make numbers of them again.

    numbers = (codes - zero) * scale

Shapes: (B, C, H, W), as those of the numbers.
Sources: integers in place of numbers, Jacob et al. 2017, arXiv:1712.05877; scales by least squared error, Nagel et al.
2021, arXiv:2106.08295.
"""

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.nn.blocks import pair

__all__ = ["QuantizedTensor", "Observer", "quantize"]

_LEVELS = 255
_SAMPLE = 2**17  # numbers that a range is chosen by
_LEAST = 2**10  # of them from each batch
_CLIPS = torch.linspace(0.5, 1.0, 26)  # shares of the whole range that are tried


class QuantizedTensor(NamedTuple):
    """Numbers as uint8."""

    values: Tensor
    scale: float
    zero: int

    def numbers(self) -> Tensor:
        """The float32 numbers that the codes stand for."""
        return self.values.float().sub_(self.zero).mul_(self.scale)

    def pooled(self, pool: nn.MaxPool2d) -> "QuantizedTensor":
        """The largest code of each window, (B, C, H', W'); torch's own pooling takes no bytes."""
        kernel, stride, padding = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)
        values = F.pad(self.values, (padding[1], padding[1], padding[0], padding[0]))  # with the smallest code
        for axis in (2, 3):
            size, step = kernel[axis - 2], stride[axis - 2]
            count = (values.shape[axis] - size) // step + 1
            parts = [values.narrow(axis, i, (count - 1) * step + 1) for i in range(size)]
            parts = [part[:, :, ::step] if axis == 2 else part[..., ::step] for part in parts]
            values = reduce(torch.maximum, parts)
        return QuantizedTensor(values, self.scale, self.zero)


class Observer:
    """The numbers that went by, and the codes that they ask for."""

    def __init__(self, batches: int = 1) -> None:
        self.least, self.most, self.finite = 0.0, 0.0, True
        self.sample: list[Tensor] = []
        self._share = max(_LEAST, _SAMPLE // batches)

    def observe(self, x: Tensor) -> None:
        """Take notice of x."""
        flat = x.permute(0, 2, 3, 1).reshape(-1).float()
        self.finite = self.finite and bool(flat.isfinite().all())
        least, most = flat.aminmax()
        self.least, self.most = min(self.least, float(least)), max(self.most, float(most))
        if len(flat) > self._share:  # drawn: any step from one to the next could be one of the layout's own
            flat = flat[torch.randint(len(flat), (self._share,), generator=torch.Generator().manual_seed(0))]
        self.sample.append(flat)

    def codes(self) -> tuple[float, int]:
        """(scale, zero) with the least squared error over the numbers that were seen; zero itself is kept exactly."""
        sample = torch.cat(self.sample)
        best = (torch.inf, 1.0, 0)
        for clip in _CLIPS.tolist():
            least, most = self.least * clip, self.most * clip
            scale = (most - least) / _LEVELS or 1.0
            zero = round(-least / scale)
            codes = (sample / scale + zero).round_().clamp_(0, _LEVELS)
            error = float((codes.sub_(zero).mul_(scale) - sample).square_().mean())
            best = min(best, (error, scale, zero))
        return best[1:]


def quantize(x: Tensor, scale: float, zero: int) -> QuantizedTensor:
    """The codes of numbers; those beyond their range become its ends."""
    x = x.contiguous(memory_format=torch.channels_last).float()
    codes = x.mul(1 / scale).add_(zero + 0.5).clamp_(0, _LEVELS).to(torch.uint8)  # which drops what is after the point
    return QuantizedTensor(codes, scale, zero)
