"""Affine, color, TrivialAugment and erasing operations on whole batches, on the device that the batch is on.

Every function takes `uniform`: random numbers in [0, 1) for each image (see `random_table`), so that the result for an
image does not depend on the rest of the batch.

Shapes: x is (B, C, S, S) float in 0 to 255; uniform (B, n).
Sources: affine and color changes as fastai's defaults (2018); TrivialAugment, Müller and Hutter 2021,
arXiv:2103.10158; random erasing, Zhong et al. 2017, arXiv:1708.04896.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["AUGMENT_OPS", "NUM_UNIFORM", "boxes_inside"]

_SHARE = 0.75  # of images that each change of `affine` and `color` is made to
_MAX_ANGLE, _MAX_SCALE, _MAX_SHEAR = 10.0, 1.1, 0.1  # degrees; times; per pixel
_LIGHT = 1.25  # most that brightness, contrast and saturation are multiplied or divided by
_ERASED, _AREA, _RATIO = 0.25, (0.02, 0.33), 3.3  # share of images; of an image; longest side over the shortest
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def affine(x: Tensor, uniform: Tensor) -> Tensor:
    """Turned by up to 10 degrees, enlarged by up to 1.1, sheared by up to 0.1."""
    angle = _scale_uniform(uniform, 0, low=-_MAX_ANGLE, high=_MAX_ANGLE) * math.pi / 180
    scale = torch.exp(-_scale_uniform(uniform, 2, low=0.0, high=math.log(_MAX_SCALE)))
    shear = _scale_uniform(uniform, 4, low=-_MAX_SHEAR, high=_MAX_SHEAR)
    zero = torch.zeros_like(angle)
    maps = _coordinate_maps([angle.cos(), -angle.sin(), zero], [angle.sin(), angle.cos(), zero])
    scaling = _coordinate_maps([scale, shear * scale, zero], [zero, scale, zero])
    maps[:, :, :2] = maps[:, :, :2] @ scaling[:, :, :2]
    return _resample(x, maps)


def color(x: Tensor, uniform: Tensor) -> Tensor:
    """Brightness, contrast and saturation multiplied or divided by up to 1.25."""
    reach = math.log(_LIGHT)
    brightness, contrast, saturation = (
        torch.exp(_scale_uniform(uniform, column, low=-reach, high=reach)).view(-1, 1, 1, 1) for column in (0, 2, 4)
    )
    x = x * brightness
    x = _blend(x, _to_grey(x).mean((2, 3), keepdim=True), contrast)
    return _blend(x, _to_grey(x), saturation).clamp(0, 255)


def trivial(x: Tensor, uniform: Tensor) -> Tensor:
    """One of fourteen changes to each image, of any strength: TrivialAugment's wide space."""
    choice = (uniform[:, 0] * len(_TRIVIAL)).long()
    signed = 2 * uniform[:, 1] - 1
    out = x.clone()
    for number, operation in enumerate(_TRIVIAL):
        (rows,) = torch.where(choice == number)
        if len(rows) and operation is not None:
            out[rows] = operation(x[rows], signed[rows]).clamp(0, 255)
    return out


def erase(x: Tensor, uniform: Tensor) -> Tensor:
    """A rectangle of a quarter of the images gives way to the image's mean."""
    size = x.shape[-1]
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * uniform[:, 1]
    ratio = torch.exp((2 * uniform[:, 2] - 1) * math.log(_RATIO) / 2)
    height, width = ((size * (area**0.5 * r)).round().clamp(1, size) for r in (ratio, 1 / ratio))
    inside = boxes_inside(uniform[:, 3], uniform[:, 4], height=height, width=width, size=size)
    inside &= (uniform[:, 0] < _ERASED).view(-1, 1, 1, 1)
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)


# name -> operation; each takes the next NUM_UNIFORM columns of an image's random numbers.
NUM_UNIFORM = 6
AUGMENT_OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "affine": affine,
    "color": color,
    "trivial": trivial,
    "erase": erase,
}


def _scale_uniform(uniform: Tensor, column: int, *, low: float, high: float) -> Tensor:
    """Return (B,) from `low` to `high` by one column, or 0 if the next column leaves the change out."""
    return torch.where(uniform[:, column + 1] < _SHARE, low + (high - low) * uniform[:, column], 0.0)


def boxes_inside(down: Tensor, right: Tensor, *, height: Tensor, width: Tensor, size: int) -> Tensor:
    """Return (B, 1, S, S): the inside of rectangles (B,), placed by `down` and `right` in [0, 1)."""
    line = torch.arange(size, device=down.device)
    top, left = (down * (size - height + 1)).floor(), (right * (size - width + 1)).floor()
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _coordinate_maps(x_row: list[Tensor], y_row: list[Tensor]) -> Tensor:
    """Stack the two rows of affine maps, of three (B,) each, as (B, 2, 3)."""
    return torch.stack([*x_row, *y_row], dim=1).view(-1, 2, 3)


def _resample(x: Tensor, maps: Tensor) -> Tensor:
    """Resample each image through its map of coordinates, mirrored at the edges."""
    grid = F.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _to_grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    """Return x for a factor of 1, `towards` for 0, away from it beyond 1."""
    return towards + (x - towards) * factor


def _factor(signed: Tensor) -> Tensor:
    return (1 + 0.99 * signed).view(-1, 1, 1, 1)


def _shear(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    ones, zeros, amount = torch.ones_like(signed), torch.zeros_like(signed), 0.99 * signed
    x_row, y_row = [ones, amount if across else zeros, zeros], [zeros if across else amount, ones, zeros]
    return _resample(x, _coordinate_maps(x_row, y_row))


def _shift(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    ones, zeros = torch.ones_like(signed), torch.zeros_like(signed)
    amount = 2 * signed * min(32 / x.shape[-1], 0.25)  # an image is 2 wide in the grid's measure
    x_row, y_row = [ones, zeros, amount if across else zeros], [zeros, ones, zeros if across else amount]
    return _resample(x, _coordinate_maps(x_row, y_row))


def _rotate(x: Tensor, signed: Tensor) -> Tensor:
    angle, zeros = signed * math.pi * 0.75, torch.zeros_like(signed)
    return _resample(x, _coordinate_maps([angle.cos(), -angle.sin(), zeros], [angle.sin(), angle.cos(), zeros]))


def _sharpen(x: Tensor, signed: Tensor) -> Tensor:
    kernel = x.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(x.shape[1], 1, 3, 3)
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
    """Spread every channel's values so that each part of the range is as frequent as any other."""
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
    lambda x, signed: _blend(x, _to_grey(x), _factor(signed)),
    lambda x, signed: _blend(x, _to_grey(x).mean((2, 3), keepdim=True), _factor(signed)),
    _sharpen,
    _posterize,
    _solarize,
    _stretch_contrast,
    _equalize,
)
