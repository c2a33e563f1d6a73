"""Augmentation of whole batches. What happens to a picture is a function of (seed, epoch, picture), nothing else.

So the number of workers, the batch size and a resumed run cannot change it.

Shapes: B batch, P packed size, S size given to the network. Pixels are (B, P, P, C) uint8; outputs (B, C, S, S) uint8.
Sources: shift by padding, He et al. 2015, arXiv:1512.03385; zoom (random resized crop), Szegedy et al. 2014,
arXiv:1409.4842; alternating flips, Jordan 2024, arXiv:2404.00498.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.kernels.image_ops import ZOOM

__all__ = [
    "augment_pixels",
    "augment_random_table",
    "center_crop",
    "crop_offset",
    "describe_policy",
    "random_table",
    "resolve_policy",
    "tta_views",
]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ZOOM_AREA = (0.35, 1.0)  # share of the area that a zoom keeps
_RATIO = 4 / 3  # most that a zoom stretches one side against the other
_LEVELS = {
    "auto": "{moved}",
    "none": "none",
    "light": "{moved}",
    "medium": "{moved}+affine+color",
    "strong": "{moved}+trivial+erase",
}


def random_table(seed: int, epoch: int, ids: np.ndarray, count: int) -> np.ndarray:
    """Return (len(ids), count) numbers in [0, 1) that depend on (seed, epoch, id, column) alone.

    SplitMix64 (Steele et al. 2014) used as a hash: each input is mixed in, then the bits are stirred.
    """
    with np.errstate(over="ignore"):
        state = _mix_bits(np.full(len(ids), seed, np.uint64) * _GOLDEN + np.uint64(epoch))
        state = _mix_bits(state + _GOLDEN * (ids.astype(np.uint64) + np.uint64(1)))
        columns = _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
        bits = _mix_bits(state[:, None] + columns[None, :])
    return (bits >> np.uint64(11)) / float(1 << 53)


def augment_random_table(seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    """Return (len(ids), 5) numbers that `augment_pixels` takes; the first decides on the flip.

    Whether a picture is flipped alternates from epoch to epoch, so that any two epochs in a row show both sides of
    every picture.
    """
    table = random_table(seed, epoch, ids, count=5)
    flip = random_table(seed, 0, ids, count=1)[:, 0]
    table[:, 0] = flip if epoch % 2 == 0 else 1 - flip
    return table


def _mix_bits(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def resolve_policy(level: str, *, stored_size: int, size: int, mirrored: bool) -> str:
    """Return the parts that a level stands for.

    Light ones move, medium ones also turn and recolor, strong ones do anything.
    Moving is a zoom where there is room to crop from, else a shift, with flips where a mirror is harmless. What names
    its parts itself stays as it is.
    """
    if level not in _LEVELS:
        return level
    moved = ("zoom" if stored_size > size else "shift") + ("+flip" if mirrored else "")
    return _LEVELS[level].format(moved=moved)


def describe_policy(level: str, size: int) -> str:
    """Describe the parts with their amounts."""
    descriptions = {
        "none": "none",
        "flip": "flip",
        "shift": f"shift by up to {_max_shift(size)} px",
        "zoom": f"zoom to {_ZOOM_AREA[0]:.0%} to 100% of the area",
        "affine": "turn, enlarge and shear a little",
        "color": "brightness, contrast and saturation",
        "trivial": "TrivialAugment",
        "erase": "erase a rectangle of a quarter of the pictures",
    }
    return ", ".join(descriptions[part] for part in level.split("+"))


def augment_pixels(pixels: np.ndarray, rows: np.ndarray, uniform: np.ndarray, *, parts: str, size: int) -> Tensor:
    """Move and flip pictures `rows` of `pixels` (N, P, P, C), by the random numbers `uniform` (B, 5).

    Returns:
        (B, C, S, S) uint8.
    """
    names = parts.split("+")
    flip = (uniform[:, 0] < 0.5) if "flip" in names else np.zeros(len(rows), bool)
    if "zoom" in names:
        return _zoom_pixels(pixels, rows, uniform, flip=flip, size=size)
    reach = _max_shift(size) if "shift" in names else 0
    start = crop_offset(pixels.shape[1], size)
    down = start + np.floor(uniform[:, 1] * (2 * reach + 1)).astype(np.int64) - reach
    right = start + np.floor(uniform[:, 2] * (2 * reach + 1)).astype(np.int64) - reach
    line = np.arange(size)
    across = np.where(flip[:, None], line[None, ::-1], line[None, :])
    ys = _reflect_index(down[:, None] + line[None, :], pixels.shape[1])
    xs = _reflect_index(right[:, None] + across, pixels.shape[2])
    return _tensor(pixels[rows[:, None, None], ys[:, :, None], xs[:, None, :]])


def center_crop(pixels: np.ndarray, rows: np.ndarray, size: int) -> Tensor:
    """Cut the centre out of pictures `rows`, as evaluation sees it: (B, C, S, S) uint8."""
    start = crop_offset(pixels.shape[1], size)
    return _tensor(pixels[rows, start : start + size, start : start + size])


def tta_views(x: Tensor, mirrored: bool) -> list[Tensor]:
    """Return views of (B, C, S, S) to average over: as it is, and shifted to two corners.

    If mirrors are harmless, their mirror images follow.
    """
    reach = max(1, x.shape[-1] // 32)
    if x.shape[-1] <= 2 * reach:
        return [x]
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    size = x.shape[-1]
    shifts = [x, padded[..., :size, :size], padded[..., 2 * reach :, 2 * reach :]]
    return shifts + [view.flip(-1) for view in shifts] if mirrored else shifts


def crop_offset(stored_size: int, size: int) -> int:
    """Return where the centre `size` of `stored_size` pixels begins.

    Half of an odd rest goes to the even side, as timm has it.
    """
    return round((stored_size - size) / 2)


def _max_shift(size: int) -> int:
    return max(1, size // 16)


def _reflect_index(index: np.ndarray, size: int) -> np.ndarray:
    """Indices outside [0, size) mirrored at the edge: -1 -> 1, size -> size - 2."""
    if size == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * size - 2)
    return np.where(index < size, index, 2 * size - 2 - index)


def _tensor(pixels: np.ndarray) -> Tensor:
    """(B, S, S, C) -> (B, C, S, S) in channels_last order, without a copy for the order."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)


def _zoom_pixels(pixels: np.ndarray, rows: np.ndarray, uniform: np.ndarray, *, flip: np.ndarray, size: int) -> Tensor:
    """Bring a part of each picture, of random area, shape and place, to `size` by antialiased bilinear resampling."""
    area = _ZOOM_AREA[0] + (_ZOOM_AREA[1] - _ZOOM_AREA[0]) * uniform[:, 1]
    ratio = np.exp((2 * uniform[:, 2] - 1) * np.log(_RATIO))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1.0) * pixels.shape[1]
    corners = uniform[:, 3:5] * (pixels.shape[1] - sides)
    # In float32, as Pillow keeps them: there a rounding error of the sum cannot reach beyond the edge.
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return _tensor(ZOOM(pixels, rows, boxes, flip, size))
