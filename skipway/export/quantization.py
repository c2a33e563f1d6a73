"""Affine uint8 quantization: quantized tensors, and observers that choose scale and zero point.

    values = (codes - zero_point) * scale

Shapes: (B, C, H, W), for codes and values.
Sources: integer inference, Jacob et al. 2017, arXiv:1712.05877. Scales by least squared error, Nagel et al. 2021,
arXiv:2106.08295.
"""

from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.nn.blocks import pair

__all__ = ["PRECISIONS", "Observer", "QuantizationParams", "QuantizedTensor", "quantize"]

PRECISIONS = ("auto", "fp32", "bf16", "int8")  # for inference
_LEVELS = 255
_MAX_SAMPLE = 2**17  # values that choose the range of one tensor
_MIN_BATCH_SAMPLE = 2**10  # values from each batch
_CLIPS = torch.linspace(0.5, 1.0, 26)  # candidate ranges, as fractions of the full range


class QuantizationParams(NamedTuple):
    """Scale and zero point of an affine quantization."""

    scale: float
    zero_point: int


class QuantizedTensor(NamedTuple):
    """Tensor of uint8 codes with its scale and zero point."""

    values: Tensor
    scale: float
    zero_point: int

    def dequantize(self) -> Tensor:
        """Return the float32 values of the codes."""
        return self.values.float().sub_(self.zero_point).mul_(self.scale)

    def max_pool(self, pool: nn.MaxPool2d) -> "QuantizedTensor":
        """Max-pool the codes to (B, C, H', W'), because torch's max pooling does not support uint8."""
        kernel, stride, padding = pair(pool.kernel_size), pair(pool.stride), pair(pool.padding)
        values = F.pad(self.values, (padding[1], padding[1], padding[0], padding[0]))  # pads with the smallest code
        for axis in (2, 3):
            size, step = kernel[axis - 2], stride[axis - 2]
            count = (values.shape[axis] - size) // step + 1
            shifted = [values.narrow(axis, i, (count - 1) * step + 1) for i in range(size)]
            strided = [part[:, :, ::step] if axis == 2 else part[..., ::step] for part in shifted]
            values = reduce(torch.maximum, strided)
        return QuantizedTensor(values, self.scale, self.zero_point)


class Observer:
    """Collect the range and a sample of a tensor over calibration batches, and choose its quantization.

    Args:
        batches: Number of calibration batches, which share the sample.
    """

    def __init__(self, batches: int = 1) -> None:
        self.minimum, self.maximum, self.finite = 0.0, 0.0, True
        self.sample: list[Tensor] = []
        self._batch_sample = max(_MIN_BATCH_SAMPLE, _MAX_SAMPLE // batches)

    def observe(self, x: Tensor) -> None:
        """Add the values of x (B, C, H, W) to the range and the sample."""
        flat = x.permute(0, 2, 3, 1).reshape(-1).float()
        self.finite = self.finite and bool(flat.isfinite().all())
        minimum, maximum = flat.aminmax()
        self.minimum, self.maximum = min(self.minimum, float(minimum)), max(self.maximum, float(maximum))
        if len(flat) > self._batch_sample:  # random, because a fixed stride could alias with the layout
            flat = flat[torch.randint(len(flat), (self._batch_sample,), generator=torch.Generator().manual_seed(0))]
        self.sample.append(flat)

    def choose_params(self) -> QuantizationParams:
        """Return the parameters with the least squared error on the sample; they represent zero exactly."""
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
    """Quantize a tensor to uint8 codes; values outside the range are clamped."""
    x = x.contiguous(memory_format=torch.channels_last).float()
    codes = x.mul(1 / params.scale).add_(params.zero_point + 0.5).clamp_(0, _LEVELS).to(torch.uint8)  # truncates
    return QuantizedTensor(codes, *params)
