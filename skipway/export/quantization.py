"""Quantized tensors: uint8 codes with the scale and the zero point that turn them back into numbers.

    numbers = (codes - zero_point) * scale

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

__all__ = ["PRECISIONS", "Observer", "QuantizationParams", "QuantizedTensor", "quantize"]

PRECISIONS = ("auto", "fp32", "bf16", "int8")  # of inference
_LEVELS = 255
_MAX_SAMPLE = 2**17  # numbers that a range is chosen by
_MIN_BATCH_SAMPLE = 2**10  # of them from each batch
_CLIPS = torch.linspace(0.5, 1.0, 26)  # shares of the whole range that are tried


class QuantizationParams(NamedTuple):
    """The scale and the zero point of codes."""

    scale: float
    zero_point: int


class QuantizedTensor(NamedTuple):
    """Numbers as uint8 codes."""

    values: Tensor
    scale: float
    zero_point: int

    def dequantize(self) -> Tensor:
        """Return the float32 numbers that the codes stand for."""
        return self.values.float().sub_(self.zero_point).mul_(self.scale)

    def max_pool(self, pool: nn.MaxPool2d) -> "QuantizedTensor":
        """Return the largest code of each window, (B, C, H', W'); torch's own pooling takes no bytes."""
        kernel, stride, padding = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)
        values = F.pad(self.values, (padding[1], padding[1], padding[0], padding[0]))  # with the smallest code
        for axis in (2, 3):
            size, step = kernel[axis - 2], stride[axis - 2]
            count = (values.shape[axis] - size) // step + 1
            shifted = [values.narrow(axis, i, (count - 1) * step + 1) for i in range(size)]
            strided = [part[:, :, ::step] if axis == 2 else part[..., ::step] for part in shifted]
            values = reduce(torch.maximum, strided)
        return QuantizedTensor(values, self.scale, self.zero_point)


class Observer:
    """Collects the range and a sample of the numbers in `batches` batches, and chooses how to quantize them."""

    def __init__(self, batches: int = 1) -> None:
        self.minimum, self.maximum, self.finite = 0.0, 0.0, True
        self.sample: list[Tensor] = []
        self._batch_sample = max(_MIN_BATCH_SAMPLE, _MAX_SAMPLE // batches)

    def observe(self, x: Tensor) -> None:
        """Add the numbers of x."""
        flat = x.permute(0, 2, 3, 1).reshape(-1).float()
        self.finite = self.finite and bool(flat.isfinite().all())
        minimum, maximum = flat.aminmax()
        self.minimum, self.maximum = min(self.minimum, float(minimum)), max(self.maximum, float(maximum))
        if len(flat) > self._batch_sample:  # drawn: any regular step could coincide with one of the layout's own
            flat = flat[torch.randint(len(flat), (self._batch_sample,), generator=torch.Generator().manual_seed(0))]
        self.sample.append(flat)

    def choose_params(self) -> QuantizationParams:
        """Return the parameters with the least squared error over the sample; zero itself is represented exactly."""
        sample = torch.cat(self.sample)
        best = (torch.inf, 1.0, 0)
        for clip in _CLIPS.tolist():
            minimum, maximum = self.minimum * clip, self.maximum * clip
            scale = (maximum - minimum) / _LEVELS or 1.0
            zero_point = round(-minimum / scale)
            codes = (sample / scale + zero_point).round_().clamp_(0, _LEVELS)
            error = float((codes.sub_(zero_point).mul_(scale) - sample).square_().mean())
            best = min(best, (error, scale, zero_point))
        return QuantizationParams(*best[1:])


def quantize(x: Tensor, params: QuantizationParams) -> QuantizedTensor:
    """Return the codes of numbers; those beyond their range become its ends."""
    x = x.contiguous(memory_format=torch.channels_last).float()
    codes = x.mul(1 / params.scale).add_(params.zero_point + 0.5).clamp_(0, _LEVELS).to(torch.uint8)  # truncates
    return QuantizedTensor(codes, *params)
