"""Crop, shift, zoom (random resized crop) and flip: from stored images to inputs, for training and evaluation.

Shapes: B batch, P stored size, S input size of the model. Pixels are (N, P, P, C) uint8 and outputs (B, C, S, S) uint8.
Deep images are uint16, and their outputs float32 levels in [0, 255].
Sources: shift by padding, He et al. 2015, arXiv:1512.03385; random resized crop, Szegedy et al. 2014, arXiv:1409.4842.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.data.value_range import levels_of
from skipway.kernels.image_ops import ZOOM

__all__ = [
    "ZOOM_AREA",
    "Crops",
    "augment_pixels",
    "center_crop",
    "crop",
    "crop_offset",
    "draw_crops",
    "max_shift",
    "num_tta_views",
    "tta_views",
]

ZOOM_AREA = (0.35, 1.0)  # range of the area that a zoom keeps
_RATIO = 4 / 3  # maximum change of the aspect ratio by a zoom


def augment_pixels(pixels: np.ndarray, rows: np.ndarray, uniform: np.ndarray, *, parts: str, size: int) -> Tensor:
    """Crop, shift or zoom, and flip the images `rows`.

    Args:
        pixels: (N, P, P, C) uint8 or uint16.
        rows: (B,) indices into `pixels`.
        uniform: (B, 5) random numbers in [0, 1), as `augment_random_table` returns them.
        parts: operations joined by "+", such as "zoom+flip"; others than zoom, shift and flip are ignored.
        size: size S of the output.

    Returns:
        (B, C, S, S) uint8, or float32 levels of deep images, in channels_last memory format.
    """
    crops = draw_crops(uniform, parts=parts, stored_size=pixels.shape[1], size=size)
    if crops.boxes is not None:
        return _tensor(ZOOM(pixels, rows, crops.boxes, crops.flip, size))
    return _tensor(crop(pixels, rows, crops, np.arange(size)))


@dataclass(frozen=True)
class Crops:
    """The crop and flip of each image of a batch: arrays, or tensors on the device of the pixels.

    Attributes:
        flip: (B,) bool, True for a horizontal flip.
        corners: (B, 2) int64 top and left edge of each crop, also outside of the image, which is reflected there.
        boxes: (B, 4) float32 left, top, right, bottom of crops that are resized, instead of `corners`; None for none.
    """

    flip: Any
    corners: Any
    boxes: Any = None


def draw_crops(uniform: np.ndarray, *, parts: str, stored_size: int, size: int) -> Crops:
    """Draw the crops and flips of a batch.

    Args:
        uniform: (B, 5) random numbers in [0, 1), as `augment_random_table` returns them.
        parts: operations joined by "+"; others than zoom, shift and flip are ignored.
        stored_size: size P of the stored images.
        size: size S of the output.
    """
    names = parts.split("+")
    flip = (uniform[:, 0] < 0.5) if "flip" in names else np.zeros(len(uniform), bool)
    start = crop_offset(stored_size, size)
    if "zoom" in names:
        return Crops(flip, np.full((len(uniform), 2), start), _zoom_boxes(uniform, stored_size))
    reach = max_shift(size) if "shift" in names else 0
    return Crops(flip, start + np.floor(uniform[:, 1:3] * (2 * reach + 1)).astype(np.int64) - reach)


def crop(pixels: Any, rows: Any, crops: Crops, line: Any) -> Any:
    """Crop and flip images without resizing, for arrays and for tensors on any device.

    Args:
        pixels: (N, P, P, C).
        rows: (B,) indices into `pixels`.
        crops: crops and flips; `boxes` is ignored.
        line: (S,) the integers from 0 on.

    Returns:
        (B, S, S, C).
    """
    across = line + crops.flip[:, None] * (len(line) - 1 - 2 * line)
    ys = _reflect_index(crops.corners[:, :1] + line, pixels.shape[1])
    xs = _reflect_index(crops.corners[:, 1:] + across, pixels.shape[2])
    return pixels[rows[:, None, None], ys[:, :, None], xs[:, None, :]]


def center_crop(pixels: np.ndarray, rows: np.ndarray, size: int) -> Tensor:
    """Center-crop the images `rows`, as for evaluation.

    Args:
        pixels: (N, P, P, C) uint8 or uint16.
        rows: (B,) indices into `pixels`.
        size: size S of the crop.

    Returns:
        (B, C, S, S) uint8, or float32 levels of deep images, in channels_last memory format.
    """
    start = crop_offset(pixels.shape[1], size)
    return _tensor(pixels[rows, start : start + size, start : start + size])


def tta_views(x: Tensor, mirrored: bool) -> list[Tensor]:
    """Return the views of a batch for test-time augmentation: the original and two diagonal shifts.

    Args:
        x: (B, C, S, S) inputs.
        mirrored: True to add the horizontal flip of each view.

    Returns:
        3 or 6 tensors (B, C, S, S); only the original if S is too small to shift.
    """
    size = x.shape[-1]
    reach = _tta_shift(size)
    if size <= 2 * reach:
        return [x]
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    shifts = [x, padded[..., :size, :size], padded[..., 2 * reach :, 2 * reach :]]
    return shifts + [view.flip(-1) for view in shifts] if mirrored else shifts


def num_tta_views(size: int, mirrored: bool) -> int:
    """Return the number of views of `tta_views`.

    >>> num_tta_views(32, mirrored=True), num_tta_views(32, mirrored=False), num_tta_views(2, mirrored=True)
    (6, 3, 1)
    """
    if size <= 2 * _tta_shift(size):
        return 1
    return 6 if mirrored else 3


def _tta_shift(size: int) -> int:
    return max(1, size // 32)


def crop_offset(stored_size: int, size: int) -> int:
    """Return the offset of a center crop, in pixels.

    Halves are rounded to even, as in timm.

    >>> crop_offset(10, 8), crop_offset(11, 8)
    (1, 2)
    """
    return round((stored_size - size) / 2)


def max_shift(size: int) -> int:
    """Return the maximum shift per axis for images of `size`, in pixels."""
    return max(1, size // 16)


def _reflect_index(index: Any, size: int) -> Any:
    """Reflect indices outside [0, size): -1 -> 1, size -> size - 2."""
    last = size - 1
    return last - abs(abs(index) % max(1, 2 * last) - last)


def _tensor(pixels: np.ndarray) -> Tensor:
    """Convert (B, S, S, C) to (B, C, S, S) in channels_last memory format: bytes as a view, uint16 as levels."""
    return torch.from_numpy(np.ascontiguousarray(levels_of(pixels))).permute(0, 3, 1, 2)


def _zoom_boxes(uniform: np.ndarray, stored_size: int) -> np.ndarray:
    """Return (B, 4) random boxes within the stored images, for antialiased bilinear resizing."""
    area = ZOOM_AREA[0] + (ZOOM_AREA[1] - ZOOM_AREA[0]) * uniform[:, 1]
    ratio = np.exp((2 * uniform[:, 2] - 1) * np.log(_RATIO))
    sides = np.minimum(np.sqrt(np.stack([area * ratio, area / ratio], axis=1)), 1.0) * stored_size
    corners = uniform[:, 3:5] * (stored_size - sides)
    # Pillow keeps boxes in float32, in which rounding of corners + sides cannot exceed the edge.
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
