"""Image preprocessing as tensor arithmetic, so that it can be exported with the network.

Shapes: N images, (H, W) image size, (S, S) input size of the network, C channels, n pixels along one axis.
Source: the weights are those of Pillow's resize and reduce, which `data.images` uses. The cubic filter is that of
Keys 1981.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.images.crop_zoom_flip import crop_offset
from skipway.data.value_range import NO_DATA

__all__ = ["Preparation"]

_GRAY = 128.0  # padding value of `resize_mode="pad"`
_GAP = 2  # box reduction by an integer factor stops at this multiple of the output size


class Preparation(nn.Module):
    """Resize and crop images (N, H, W, C) of any size to (N, C, S, S) floats in 0..255.

    The images are uint8, or float32 in their own values if the Spec has a value range, by which they are then scaled.
    The result equals the preprocessing of `predict`, but is not rounded to integers. Resizing is one matrix product
    per axis, which every runtime supports, for every `resize_mode` of a Spec.

    Args:
        spec: Input size, resize mode, interpolation and value range.
    """

    low: Tensor
    unit: Tensor

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec
        if spec.value_range:
            low, high = torch.tensor(spec.value_range, dtype=torch.float64).T
            self.register_buffer("low", low.float(), persistent=False)
            self.register_buffer("unit", (255 / (high - low)).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the resized and cropped images (N, C, S, S)."""
        height, width = (x.new_full((), x.shape[axis], dtype=torch.float64) for axis in (1, 2))
        down, inside_down = self._weights(height, width, _positions(height, x.shape[1]))
        across, inside_across = self._weights(width, height, _positions(width, x.shape[2]))
        x = x.permute(0, 3, 1, 2).float() if not self.spec.value_range else self._scaled(x).permute(0, 3, 1, 2)
        x = x @ across.T
        x = x if self.spec.value_range else x.clamp(0, 255)  # Pillow clips bytes after each axis, but no floats
        x = (down @ x).clamp(0, 255)
        return torch.where(inside_down[:, None] & inside_across, x, _GRAY) if self.spec.resize_mode == "pad" else x

    def _scaled(self, x: Tensor) -> Tensor:
        """Scale values (N, H, W, C) by the range to 0..255; NaN and no-data values become 0, as in `to_levels`."""
        is_valid = (x.abs() < NO_DATA) | (x == torch.inf)
        return ((torch.where(is_valid, x, self.low) - self.low) * self.unit).clamp(0, 255)

    def _weights(self, length: Tensor, other: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the resampling weights (S, n) of one axis, and a mask (S,) that is False in the padding.

        `whole` is the length of the axis after resizing, and `scale` is the size of a resized pixel in input pixels.
        The presized square starts at `begin`. The output pixels are at `places`, in the center of this square.
        """
        spec, support, filter_of = self.spec, *_FILTERS[self.spec.interpolation]
        whole, begin = length.new_full((), spec.presize), length.new_zeros(())
        edge = crop_offset(spec.presize, spec.size)
        if spec.resize_mode == "crop":
            whole = (whole * length / torch.minimum(length, other)).floor()
            begin = ((whole - spec.size) / 2).round() - edge
        elif spec.resize_mode == "pad":
            whole = (whole * length / torch.maximum(length, other)).round().clamp_min(1)
            begin = -((spec.presize - whole) / 2).floor()
        places, scale = _positions(length, spec.size) + begin + edge, length / whole
        # A large image is first reduced by averaging cells of `side` pixels, from `start` to `end`.
        side = (scale / _GAP).floor().clamp_min(1)
        reach = (support - 0.5) * scale
        start = torch.where(side > 1, (begin.clamp_min(0) * scale - reach).floor().clamp_min(0), 0.0)
        end = torch.where(side > 1, torch.minimum(((begin + spec.presize) * scale + reach).ceil(), length), length)
        cells = ((pixels - start) / side).floor()
        shares = torch.minimum(side, end - start - cells * side)  # the last cell may be smaller
        distance = cells + 0.5 - ((places[:, None] + 0.5) * scale - start) / side
        weights = filter_of((distance / (scale / side).clamp_min(1)).abs()) / shares
        weights = torch.where((pixels >= start) & (pixels < end), weights, 0.0)
        # In the padding all weights may be 0, and the division returns NaN. The mask replaces these pixels.
        return (weights / weights.sum(1, keepdim=True)).float(), (places >= 0) & (places < whole)


def _positions(like: Tensor, count: int) -> Tensor:
    """Return 0, 1, 2, ... (count,) with the dtype and device of `like`.

    `torch.arange` would fix the device of the example in an exported program, which could not move to a GPU.
    """
    return like.new_ones(count).cumsum(0) - 1


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0)


def _cubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"bilinear": (1, _linear), "bicubic": (2, _cubic)}
