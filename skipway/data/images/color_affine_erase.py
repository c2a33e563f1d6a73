"""Affine, color, TrivialAugment and erasing operations on batches, on the device of the batch.

Every operation takes `uniform`: random numbers in [0, 1) for each image (see `random_table`). The result for an image
therefore does not depend on the rest of the batch. The host draws them, and does not wait for the device.

Shapes: x is (B, C, S, S) float in [0, 255], on any device; uniform (B, n) float on the host.
Sources: affine and color changes follow fastai's defaults (2018); TrivialAugment, Müller and Hutter 2021,
arXiv:2103.10158; random erasing, Zhong et al. 2017, arXiv:1708.04896.
"""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.images.device_copy import to_device

__all__ = ["AUGMENT_OPS", "NUM_UNIFORM", "boxes_inside"]

_PROBABILITY = 0.75  # of each change in `affine` and `color`
_MAX_ANGLE, _MAX_SCALE, _MAX_SHEAR = 10.0, 1.1, 0.1  # degrees; factor; pixels per pixel
_MAX_COLOR_FACTOR = 1.25  # brightness, contrast and saturation are multiplied or divided by at most this
_ERASED, _AREA, _RATIO = 0.25, (0.02, 0.33), 3.3  # share of images; share of the area; longest over shortest side
_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601
_SMOOTH = (1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0)  # divided by 13: Pillow's filter SMOOTH


def affine(x: Tensor, uniform: Tensor) -> Tensor:
    """Rotate by up to 10 degrees, scale up by up to 1.1 and shear by up to 0.1."""
    uniform = to_device(uniform, x.device)
    angle = _scale_uniform(uniform, 0, low=-_MAX_ANGLE, high=_MAX_ANGLE) * math.pi / 180
    scale = torch.exp(-_scale_uniform(uniform, 2, low=0.0, high=math.log(_MAX_SCALE)))
    shear = _scale_uniform(uniform, 4, low=-_MAX_SHEAR, high=_MAX_SHEAR)
    zero = torch.zeros_like(angle)
    maps = _coordinate_maps([angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero])
    scaling = _coordinate_maps([scale, shear * scale, zero], [zero, scale, zero])
    maps[:, :, :2] = maps[:, :, :2] @ scaling[:, :, :2]
    return _resample(x, maps)


def color(x: Tensor, uniform: Tensor) -> Tensor:
    """Multiply or divide brightness, contrast and, in RGB, saturation by up to 1.25."""
    uniform = to_device(uniform, x.device)
    reach = math.log(_MAX_COLOR_FACTOR)
    brightness, contrast, saturation = (
        torch.exp(_scale_uniform(uniform, column, low=-reach, high=reach)).view(-1, 1, 1, 1) for column in (0, 2, 4)
    )
    x = x * brightness
    x = _blend(x, _to_gray(x).mean((2, 3), keepdim=True), contrast)
    return _blend(x, _to_gray(x), saturation).clamp(0, 255)


def trivial(x: Tensor, uniform: Tensor) -> Tensor:
    """Apply 1 of 14 operations to each image, at a random strength (TrivialAugment, wide space)."""
    choice = (uniform[:, 0] * len(_TRIVIAL)).long()
    counts = torch.bincount(choice, minlength=len(_TRIVIAL) + 1).tolist()  # float32 may round up to 1
    rows_of = to_device(choice.argsort(stable=True), x.device).split(counts)
    signed = to_device(2 * uniform[:, 1] - 1, x.device)
    out = x.clone()
    for rows, operation in zip(rows_of, _TRIVIAL, strict=False):
        if len(rows) and operation is not None:
            out[rows] = operation(x[rows], signed[rows]).clamp(0, 255)
    return out


def erase(x: Tensor, uniform: Tensor) -> Tensor:
    """Replace a random rectangle by the image's mean color, in 25% of the images."""
    uniform = to_device(uniform, x.device)
    size = x.shape[-1]
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * uniform[:, 1]
    ratio = torch.exp((2 * uniform[:, 2] - 1) * math.log(_RATIO) / 2)
    height, width = ((size * (area**0.5 * r)).round().clamp(1, size) for r in (ratio, 1 / ratio))
    inside = boxes_inside(uniform[:, 3], uniform[:, 4], height=height, width=width, size=size)
    inside &= (uniform[:, 0] < _ERASED).view(-1, 1, 1, 1)
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)


# Name -> operation. Operation i uses the i-th block of NUM_UNIFORM columns, so that adding one changes no other.
NUM_UNIFORM = 6
AUGMENT_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "affine": affine,
    "color": color,
    "trivial": trivial,
    "erase": erase,
}


def _scale_uniform(uniform: Tensor, column: int, *, low: float, high: float) -> Tensor:
    """Scale one column to [low, high), (B,); return 0 for images that the next column excludes."""
    return torch.where(uniform[:, column + 1] < _PROBABILITY, low + (high - low) * uniform[:, column], 0.0)


def boxes_inside(down: Tensor, right: Tensor, *, height: Tensor, width: Tensor, size: int) -> Tensor:
    """Return masks of rectangles at random positions.

    Args:
        down, right: (B,) relative positions in [0, 1).
        height, width: (B,) sizes in pixels.
        size: height and width of the images.

    Returns:
        (B, 1, S, S) bool, True inside the rectangle.
    """
    line = torch.arange(size, device=down.device)
    top, left = (down * (size - height + 1)).floor(), (right * (size - width + 1)).floor()
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


@cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return constants on a device; they are copied once, because the device waits for the copy."""
    return torch.tensor(values, device=device)


def _coordinate_maps(x_row: list[Tensor], y_row: list[Tensor]) -> Tensor:
    """Stack two rows of three (B,) tensors to affine matrices (B, 2, 3)."""
    return torch.stack([*x_row, *y_row], dim=1).view(-1, 2, 3)


def _resample(x: Tensor, maps: Tensor) -> Tensor:
    """Resample each image with its affine matrix, with reflection padding."""
    grid = F.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _to_gray(x: Tensor) -> Tensor:
    """Return the gray of RGB; bands other than RGB have no common gray, and each keeps its own values."""
    if x.shape[1] != 3:
        return x
    return (x * _constant(_GRAY, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    """Interpolate from `towards` (factor 0) to `x` (factor 1); extrapolate for larger factors."""
    return towards + (x - towards) * factor


def _factor(signed: Tensor) -> Tensor:
    return (1 + 0.99 * signed).view(-1, 1, 1, 1)


def _shear(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    ones, zeros, amount = torch.ones_like(signed), torch.zeros_like(signed), 0.99 * signed
    x_row, y_row = [ones, amount if across else zeros, zeros], [zeros if across else amount, ones, zeros]
    return _resample(x, _coordinate_maps(x_row, y_row))


def _shift(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    ones, zeros = torch.ones_like(signed), torch.zeros_like(signed)
    amount = 2 * signed * min(32 / x.shape[-1], 0.25)  # grid coordinates span [-1, 1], so a width is 2
    x_row, y_row = [ones, zeros, amount if across else zeros], [zeros, ones, zeros if across else amount]
    return _resample(x, _coordinate_maps(x_row, y_row))


def _rotate(x: Tensor, signed: Tensor) -> Tensor:
    angle, zeros = signed * math.pi * 0.75, torch.zeros_like(signed)
    return _resample(x, _coordinate_maps([angle.cos(), -angle.sin(), zeros], [angle.sin(), angle.cos(), zeros]))


def _sharpen(x: Tensor, signed: Tensor) -> Tensor:
    kernel = _constant(_SMOOTH, x.device).div(13).view(3, 3).expand(x.shape[1], 1, 3, 3)
    smooth = x.clone()
    if x.shape[-1] > 2:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel, groups=x.shape[1])
    return _blend(x, smooth, _factor(signed))


def _posterize(x: Tensor, signed: Tensor) -> Tensor:
    step = 2 ** (8 - (8 - 6 * signed.abs()).round()).view(-1, 1, 1, 1)
    return (x / step).floor() * step


def _solarize(x: Tensor, signed: Tensor) -> Tensor:
    return torch.where(x >= (255 * (1 - signed.abs())).view(-1, 1, 1, 1), 255 - x, x)


def _stretch_contrast(x: Tensor, signed: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp_min(1e-6), x)


def _equalize(x: Tensor, signed: Tensor) -> Tensor:
    """Equalize the histogram of every channel."""
    flat = x.flatten(2).round().long().clamp(0, 255)
    counts = torch.zeros(*flat.shape[:2], 256, device=x.device, dtype=x.dtype)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=x.dtype))
    cumulative = counts.cumsum(2)
    darkest = counts.gather(2, flat.amin(2, keepdim=True))  # the darkest value becomes 0
    spread = (cumulative - darkest) / (flat.shape[2] - darkest).clamp_min(1) * 255
    return torch.where(darkest < flat.shape[2], spread.gather(2, flat), flat.to(x.dtype)).view_as(x)


_TRIVIAL: tuple[Callable[[Tensor, Tensor], Tensor] | None, ...] = (
    None,
    lambda x, signed: _shear(x, signed, across=True),
    lambda x, signed: _shear(x, signed, across=False),
    lambda x, signed: _shift(x, signed, across=True),
    lambda x, signed: _shift(x, signed, across=False),
    _rotate,
    lambda x, signed: x * _factor(signed),
    lambda x, signed: _blend(x, _to_gray(x), _factor(signed)),
    lambda x, signed: _blend(x, _to_gray(x).mean((2, 3), keepdim=True), _factor(signed)),
    _sharpen,
    _posterize,
    _solarize,
    _stretch_contrast,
    _equalize,
)
