"""Resizing of images to a square, in one antialiased pass after fast integer reductions.

Shapes: an image of any size becomes (size, size), as its resize mode describes.
"""

import math
from dataclasses import dataclass

from PIL import Image

from skipway.data.image_spec import Interpolation, ResizeMode

__all__ = ["ReducedImage", "draft", "resize", "target_size"]

_REDUCING_GAP = 2.0  # fast integer reductions stop at this multiple of the target size, before the antialiased filter
_PAD_GRAY = 128  # mid-gray, because black or white bars would add strong edges


def target_size(original_size: tuple[int, int], size: int, resize_mode: ResizeMode) -> tuple[int, int]:
    """Return the width and height of an image after resizing, before "pad" adds its bars."""
    if resize_mode != "pad":
        return size, size
    width, height = original_size
    longest = max(width, height)
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def draft(image: Image.Image, size: int, resize_mode: ResizeMode) -> float:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 scale, within `_REDUCING_GAP`; return the divisor."""
    target_width, target_height = target_size(image.size, size, resize_mode)
    width = image.width
    drafted = image.draft("", (int(target_width * _REDUCING_GAP), int(target_height * _REDUCING_GAP)))
    return width / drafted[1][2] if drafted else 1.0


@dataclass(frozen=True)
class ReducedImage:
    """An upright image, reduced by `scale` from `original_size` (width, height); the original begins at `corner`."""

    image: Image.Image
    original_size: tuple[int, int]
    corner: tuple[float, float]
    scale: float


def resize(
    reduced: ReducedImage, *, size: int, resize_mode: ResizeMode, interpolation: Interpolation, crop_size: int
) -> Image.Image:
    """Resize an image to size x size."""
    image, original_size = reduced.image, reduced.original_size
    target = target_size(original_size, size, resize_mode)
    left, right = _source_span(reduced, axis=0, size=size, resize_mode=resize_mode, crop_size=crop_size)
    top, bottom = _source_span(reduced, axis=1, size=size, resize_mode=resize_mode, crop_size=crop_size)
    box: tuple[float, float, float, float] = (left, top, right, bottom)
    if image.size != target or box != (0, 0, *target):
        while max((box[2] - box[0]) / target[0], (box[3] - box[1]) / target[1]) > 128:
            # Pillow's `reduce` multiplies by a rounded reciprocal, so one step of thousands would darken the image.
            whole = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
            factors = [int((whole[i + 2] - whole[i]) / target[i] / _REDUCING_GAP) for i in (0, 1)]
            image = image.reduce((min(32, max(1, factors[0])), min(32, max(1, factors[1]))), whole)
            box = (0, 0, *image.size)
        image = image.resize(target, Image.Resampling[interpolation.upper()], box, reducing_gap=_REDUCING_GAP)
    if resize_mode == "pad" and target != (size, size):
        canvas = Image.new(image.mode, (size, size), (_PAD_GRAY,) * len(image.getbands()))
        canvas.paste(image, ((size - target[0]) // 2, (size - target[1]) // 2))
        return canvas
    return image


def _source_span(
    reduced: ReducedImage, *, axis: int, size: int, resize_mode: ResizeMode, crop_size: int
) -> tuple[float, float]:
    """Return the begin and end of the square along one axis, in pixels of the reduced image."""
    length = reduced.original_size[axis]
    resized = size * length // min(reduced.original_size) if resize_mode == "crop" else size
    first = round((resized - crop_size) / 2) - round((size - crop_size) / 2)
    begin, end = first * length / resized, (first + size) * length / resized
    corner = reduced.corner[axis]
    return corner + begin / reduced.scale, corner + end / reduced.scale
