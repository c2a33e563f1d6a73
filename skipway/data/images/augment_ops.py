"""Distortions of whole batches, on whatever device they are on; what happens to a picture is a choice of its own.

Every function takes chances: numbers in [0, 1) for each picture (see `augment.draws`), so that nothing depends on the
batch. Mixing alone takes a partner from it.

Shapes: x is (B, C, S, S) float in 0 to 255; chances (B, n); y (B,) classes.
Sources: affine and color changes as fastai's defaults (2018); TrivialAugment, Müller and Hutter 2021,
arXiv:2103.10158; random erasing, Zhong et al. 2017, arXiv:1708.04896; mixup, Zhang et al. 2017, arXiv:1710.09412;
cutmix, Yun et al. 2019, arXiv:1905.04899.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["CHANCES", "DISTORTIONS", "MIX_CHANCES", "mixed"]

_SHARE = 0.75  # of pictures that each change of `affine` and `color` is made to
_TURN, _SCALE, _SHEAR = 10.0, 1.1, 0.1  # degrees; times; per pixel
_LIGHT = 1.25  # most that brightness, contrast and saturation are multiplied or divided by
_ERASED, _AREA, _RATIO = 0.25, (0.02, 0.33), 3.3  # share of pictures; of a picture; longest side over the shortest
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def affine(x: Tensor, chances: Tensor) -> Tensor:
    """Turned by up to 10 degrees, enlarged by up to 1.1, sheared by up to 0.1."""
    turn = _span(chances, 0, -_TURN, _TURN) * math.pi / 180
    scale = torch.exp(-_span(chances, 2, 0.0, math.log(_SCALE)))
    shear = _span(chances, 4, -_SHEAR, _SHEAR)
    zero = torch.zeros_like(turn)
    turned = _rows(turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero)
    turned[:, :, :2] = turned[:, :, :2] @ _rows(scale, shear * scale, zero, zero, scale, zero)[:, :, :2]
    return _moved(x, turned)


def color(x: Tensor, chances: Tensor) -> Tensor:
    """Brightness, contrast and saturation multiplied or divided by up to 1.25."""
    reach = math.log(_LIGHT)
    factors = [torch.exp(_span(chances, column, -reach, reach)).view(-1, 1, 1, 1) for column in (0, 2, 4)]
    x = x * factors[0]
    x = _blended(x, _grey(x).mean((2, 3), keepdim=True), factors[1])
    return _blended(x, _grey(x), factors[2]).clamp(0, 255)


def trivial(x: Tensor, chances: Tensor) -> Tensor:
    """One of fourteen changes to each picture, of any strength: TrivialAugment's wide space."""
    choice = (chances[:, 0] * len(_TRIVIAL)).long()
    signed = 2 * chances[:, 1] - 1
    out = x.clone()
    for number, change in enumerate(_TRIVIAL):
        (rows,) = torch.where(choice == number)
        if len(rows) and change is not None:
            out[rows] = change(x[rows], signed[rows]).clamp(0, 255)
    return out


def erase(x: Tensor, chances: Tensor) -> Tensor:
    """A rectangle of a quarter of the pictures gives way to the picture's mean."""
    size = x.shape[-1]
    area = _AREA[0] + (_AREA[1] - _AREA[0]) * chances[:, 1]
    ratio = torch.exp((2 * chances[:, 2] - 1) * math.log(_RATIO) / 2)
    height, width = ((size * (area**0.5 * r)).round().clamp(1, size) for r in (ratio, 1 / ratio))
    inside = _box(chances[:, 3], chances[:, 4], height, width, size)
    inside &= (chances[:, 0] < _ERASED).view(-1, 1, 1, 1)
    return torch.where(inside, x.mean((2, 3), keepdim=True), x)


# name -> change; each takes the next CHANCES columns of a picture's chances.
CHANCES = 6
DISTORTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "affine": affine,
    "color": color,
    "trivial": trivial,
    "erase": erase,
}
MIX_CHANCES = 4


def mixed(
    x: Tensor, y: Tensor, chances: np.ndarray, classes: int, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Each picture mixed with the one before it in the batch: x as before, y (B, K) shares of classes.

    `mixup` blends the two, `cutmix` puts a rectangle of the other in; where both are above 0, each picture has one of
    them. How much is of the picture itself is Beta(a, a) distributed for the number a that was given.
    """
    from scipy.special import betaincinv

    cuts = chances[:, 1] < 0.5 if mixup and cutmix else np.full(len(x), bool(cutmix))
    alpha = np.where(cuts, cutmix or 1.0, mixup or 1.0)
    share = torch.from_numpy(betaincinv(alpha, alpha, chances[:, 0])).to(x.device, torch.float32)
    cut = torch.from_numpy(cuts).to(x.device)
    places = torch.from_numpy(chances[:, 2:4]).to(x.device, torch.float32)
    size = x.shape[-1]
    side = (size * (1 - share).sqrt()).round()
    inside = _box(places[:, 0], places[:, 1], side, side, size) & cut.view(-1, 1, 1, 1)
    share = torch.where(cut, 1 - (side / size) ** 2, share)
    other = x.roll(1, 0)
    blended = torch.where(cut.view(-1, 1, 1, 1), x, torch.lerp(other, x, share.view(-1, 1, 1, 1)))
    own = F.one_hot(y, classes).float()
    return torch.where(inside, other, blended), torch.lerp(own.roll(1, 0), own, share.view(-1, 1))


def _span(chances: Tensor, column: int, low: float, high: float) -> Tensor:
    """(B,) from `low` to `high` by one column, or nothing where the next column says so."""
    return torch.where(chances[:, column + 1] < _SHARE, low + (high - low) * chances[:, column], 0.0)


def _box(down: Tensor, right: Tensor, height: Tensor, width: Tensor, size: int) -> Tensor:
    """(B, 1, S, S): the inside of rectangles (B,), placed by `down` and `right` in [0, 1)."""
    line = torch.arange(size, device=down.device)
    top, left = (down * (size - height + 1)).floor(), (right * (size - width + 1)).floor()
    rows = (line >= top[:, None]) & (line < (top + height)[:, None])
    columns = (line >= left[:, None]) & (line < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _rows(*values: Tensor) -> Tensor:
    """(B, 2, 3) maps of coordinates out of six (B,)."""
    return torch.stack(values, dim=1).view(-1, 2, 3)


def _moved(x: Tensor, maps: Tensor) -> Tensor:
    """Each picture as seen through its map of coordinates, mirrored at the edges."""
    grid = F.affine_grid(maps.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _grey(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(_GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blended(x: Tensor, towards: Tensor, factor: Tensor) -> Tensor:
    """x for a factor of 1, `towards` for 0, away from it beyond 1."""
    return towards + (x - towards) * factor


def _factor(signed: Tensor) -> Tensor:
    return (1 + 0.99 * signed).view(-1, 1, 1, 1)


def _sheared(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    one, zero, amount = torch.ones_like(signed), torch.zeros_like(signed), 0.99 * signed
    return _moved(x, _rows(one, amount, zero, zero, one, zero) if across else _rows(one, zero, zero, amount, one, zero))


def _shifted(x: Tensor, signed: Tensor, across: bool) -> Tensor:
    one, zero = torch.ones_like(signed), torch.zeros_like(signed)
    amount = 2 * signed * min(32 / x.shape[-1], 0.25)  # a picture is 2 wide in the grid's measure
    return _moved(x, _rows(one, zero, amount if across else zero, zero, one, zero if across else amount))


def _turned(x: Tensor, signed: Tensor) -> Tensor:
    turn, zero = signed * math.pi * 0.75, torch.zeros_like(signed)
    return _moved(x, _rows(turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero))


def _sharpened(x: Tensor, signed: Tensor) -> Tensor:
    kernel = x.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(x.shape[1], 1, 3, 3)
    smooth = x.clone()
    if x.shape[-1] > 2:
        smooth[:, :, 1:-1, 1:-1] = F.conv2d(x, kernel, groups=x.shape[1])
    return _blended(x, smooth, _factor(signed))


def _posterised(x: Tensor, signed: Tensor) -> Tensor:
    step = 2 ** (8 - (8 - 6 * signed.abs()).round()).view(-1, 1, 1, 1)
    return (x / step).floor() * step


def _solarised(x: Tensor, signed: Tensor) -> Tensor:
    return torch.where(x >= (255 * (1 - signed.abs())).view(-1, 1, 1, 1), 255 - x, x)


def _stretched(x: Tensor, signed: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) * 255 / (high - low).clamp_min(1e-6), x)


def _equalised(x: Tensor, signed: Tensor) -> Tensor:
    """Every channel's values spread so that each part of the range is as frequent as any other."""
    flat = x.flatten(2).round().long().clamp(0, 255)
    counts = torch.zeros(*flat.shape[:2], 256, device=x.device, dtype=x.dtype)
    counts.scatter_add_(2, flat, torch.ones_like(flat, dtype=x.dtype))
    reached = counts.cumsum(2)
    least = counts.gather(2, flat.amin(2, keepdim=True))  # the darkest value becomes 0
    spread = (reached - least) / (flat.shape[2] - least).clamp_min(1) * 255
    return torch.where(least < flat.shape[2], spread.gather(2, flat), flat.to(x.dtype)).view_as(x)


_TRIVIAL: tuple[Callable[[Tensor, Tensor], Tensor] | None, ...] = (
    None,
    lambda x, signed: _sheared(x, signed, across=True),
    lambda x, signed: _sheared(x, signed, across=False),
    lambda x, signed: _shifted(x, signed, across=True),
    lambda x, signed: _shifted(x, signed, across=False),
    _turned,
    lambda x, signed: x * _factor(signed),
    lambda x, signed: _blended(x, _grey(x), _factor(signed)),
    lambda x, signed: _blended(x, _grey(x).mean((2, 3), keepdim=True), _factor(signed)),
    _sharpened,
    _posterised,
    _solarised,
    _stretched,
    _equalised,
)
