"""Crop, shift, zoom (random resized crop) and flip: what is cut out of each stored image, for training and evaluation.

Shapes: B batch, P stored size, S size passed to the network. Pixels are (N, P, P, C) uint8; outputs (B, C, S, S) uint8.
Sources: shift by padding, He et al. 2015, arXiv:1512.03385; random resized crop, Szegedy et al. 2014, arXiv:1409.4842.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.kernels.image_ops import ZOOM

__all__ = ["ZOOM_AREA", "augment_pixels", "center_crop", "crop_offset", "max_shift", "tta_views"]

ZOOM_AREA = (0.35, 1.0)  # share of the area that a zoom keeps
_RATIO = 4 / 3  # most that a zoom stretches one side against the other


def augment_pixels(pixels: np.ndarray, rows: np.ndarray, uniform: np.ndarray, *, parts: str, size: int) -> Tensor:
    """Move and flip images `rows` of `pixels` (N, P, P, C), by the random numbers `uniform` (B, 5).

    Returns:
        (B, C, S, S) uint8.
    """
    names = parts.split("+")
    flip = (uniform[:, 0] < 0.5) if "flip" in names else np.zeros(len(rows), bool)
    if "zoom" in names:
        return _zoom_pixels(pixels, rows, uniform, flip=flip, size=size)
    reach = max_shift(size) if "shift" in names else 0
    start = crop_offset(pixels.shape[1], size)
    down = start + np.floor(uniform[:, 1] * (2 * reach + 1)).astype(np.int64) - reach
    right = start + np.floor(uniform[:, 2] * (2 * reach + 1)).astype(np.int64) - reach
    line = np.arange(size)
    across = np.where(flip[:, None], line[None, ::-1], line[None, :])
    ys = _reflect_index(down[:, None] + line[None, :], pixels.shape[1])
    xs = _reflect_index(right[:, None] + across, pixels.shape[2])
    return _tensor(pixels[rows[:, None, None], ys[:, :, None], xs[:, None, :]])


def center_crop(pixels: np.ndarray, rows: np.ndarray, size: int) -> Tensor:
    """Cut the centre out of images `rows`, as evaluation sees it: (B, C, S, S) uint8."""
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


def max_shift(size: int) -> int:
    """Return the most pixels that an image of `size` is shifted by, on each axis."""
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
    """Bring a part of each image, of random area, shape and place, to `size` by antialiased bilinear resampling."""
    area = ZOOM_AREA[0] + (ZOOM_AREA[1] - ZOOM_AREA[0]) * uniform[:, 1]
    ratio = np.exp((2 * uniform[:, 2] - 1) * np.log(_RATIO))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1.0) * pixels.shape[1]
    corners = uniform[:, 3:5] * (pixels.shape[1] - sides)
    # In float32, as Pillow keeps them: there a rounding error of the sum cannot reach beyond the edge.
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    return _tensor(ZOOM(pixels, rows, boxes, flip, size))
