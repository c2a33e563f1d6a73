"""Preparation: how an image becomes what a network is given, as tensor arithmetic that can be exported with it.

Shapes: N images, (H, W) their pixels, (S, S) those that the network is given, C channels, n pixels of one axis.
Source: the weights are those of Pillow's resize and reduce, with which `data.images` prepares images; its cubic is
that of Keys 1981.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.images.crop_zoom_flip import crop_offset

__all__ = ["Preparation"]

_GREY = 128.0  # of the bars beside an image that does not fill its square
_GAP = 2  # a large image is reduced by whole numbers to this many times its size


class Preparation(nn.Module):
    """(N, H, W, C) uint8 of any size -> (N, C, S, S) in 0..255: what `predict` makes of such images, not rounded.

    An image is multiplied with a matrix for each axis, which every runtime can do for every `resize_mode` of a Spec.
    """

    def __init__(self, spec: Spec):
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        """The images, fitted, resized and cut."""
        height, width = (x.new_full((), x.shape[axis], dtype=torch.float64) for axis in (1, 2))
        down, inside_down = self._weights(height, width, _positions(height, x.shape[1]))
        across, inside_across = self._weights(width, height, _positions(width, x.shape[2]))
        x = (x.permute(0, 3, 1, 2).float() @ across.T).clamp(0, 255)
        x = (down @ x).clamp(0, 255)
        return torch.where(inside_down[:, None] & inside_across, x, _GREY) if self.spec.resize_mode == "pad" else x

    def _weights(self, length: Tensor, other: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(S, n) how much each of n pixels counts for each of the S, and (S,) whether there is any image.

        The axis is thought of as resized to `whole` pixels, each of them `scale` of its own: those from `begin` on make
        the square that the Spec's `presize` tells, and `places` are in its middle.
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
        # First, pixels of a large image are averaged in cells of whole numbers of them, from `start` to `end`.
        side = (scale / _GAP).floor().clamp_min(1)
        reach = (support - 0.5) * scale
        start = torch.where(side > 1, (begin.clamp_min(0) * scale - reach).floor().clamp_min(0), 0.0)
        end = torch.where(side > 1, torch.minimum(((begin + spec.presize) * scale + reach).ceil(), length), length)
        cells = ((pixels - start) / side).floor()
        shares = torch.minimum(side, end - start - cells * side)  # the last cell may hold fewer
        distance = cells + 0.5 - ((places[:, None] + 0.5) * scale - start) / side
        weights = filter_of((distance / (scale / side).clamp_min(1)).abs()) / shares
        weights = torch.where((pixels >= start) & (pixels < end), weights, 0.0)
        # Beside the image all may be 0, and their shares not a number; bars are painted over that.
        return (weights / weights.sum(1, keepdim=True)).float(), (places >= 0) & (places < whole)


def _positions(like: Tensor, count: int) -> Tensor:
    """Return 0, 1, 2, ... (count,) with the dtype and device of `like`.

    `torch.arange` would fix the device of the example into an exported program, which then cannot move to a GPU.
    """
    return like.new_ones(count).cumsum(0) - 1


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0)


def _cubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((2.5 - 0.5 * distance) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


_FILTERS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"bilinear": (1, _linear), "bicubic": (2, _cubic)}
