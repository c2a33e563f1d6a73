"""Range of deep images: the values that become black and white, and the conversion to stored pixels.

Deep images have more than 8 bits per value: 16-bit and 32-bit integers, and floats. Their values are scaled by a range
per channel, which training computes once and the Spec stores.

Shapes: H, W image size, C channels. Levels are floats in [0, 255], as if the image had 8 bits but with a fraction.
Stored pixels are uint8, or uint16 for deep images: a level times 257.
"""

import math
from collections.abc import Iterable

import numpy as np

from skipway.errors import InputError, printable

__all__ = [
    "LEVEL_STEP",
    "MAX_CHANNELS",
    "NO_DATA",
    "ValueRange",
    "checked_range",
    "compute_range",
    "describe_range",
    "levels_of",
    "stored_dtype",
    "stored_pixels",
    "to_levels",
    "viewable",
]

MAX_CHANNELS = 16
ValueRange = tuple[tuple[float, float], ...]  # (low, high) of each channel; empty for images of 8 bits
_PERCENTILES = (0.01, 99.99)  # single hot pixels do not set the range
NO_DATA = 1e30  # float files often mark missing values by the largest float instead of NaN
_SAMPLED = 10_000  # values per image and channel
LEVEL_STEP = 257  # from a level to a stored pixel: 255 * 257 = 65535


def checked_range(values: object, channels: int) -> ValueRange:
    """Return `values` as a ValueRange of plain floats: empty, or one finite pair (low, high) per channel.

    Raises:
        InputError: the values are no such pairs.

    >>> checked_range([[0, 119]], channels=1)
    ((0.0, 119.0),)
    """
    try:
        pairs = tuple((float(low), float(high)) for low, high in values)  # type: ignore[attr-defined]
        is_valid = all(math.isfinite(high - low) and low < high for low, high in pairs)
    except (TypeError, ValueError, OverflowError):
        pairs, is_valid = (), False
    if not is_valid or len(pairs) not in (0, channels):
        raise InputError(
            f"cannot use a value range: expected one finite pair (low, high) with low < high for each of {channels} "
            f"channels, got {printable(repr(values)[:80])}. Compute it from the training images."
        )
    return pairs


def compute_range(images: Iterable[np.ndarray], channels: int) -> ValueRange:
    """Compute the range of deep images: the 0.01th to the 99.99th percentile of each channel.

    Args:
        images: values (H, W, C) of a sample of images; NaN, infinite and no-data values are left out.
        channels: number of channels C.

    Returns:
        One pair per channel. Bounds of integers are integers. If all values are equal, the range ends 1 above.
    """
    samples: list[list[np.ndarray]] = [[] for _ in range(channels)]
    is_whole = True
    for image in images:
        is_whole = is_whole and image.dtype.kind in "iu"
        flat = image.reshape(-1, channels)
        flat = flat[:: max(1, len(flat) // _SAMPLED)].astype(np.float64)
        for channel, sample in enumerate(samples):
            sample.append(flat[_is_valid(flat[:, channel]), channel])
    pairs = []
    for sample in samples:
        values = np.concatenate(sample) if sample else np.empty(0)
        low, high = np.percentile(values, _PERCENTILES).tolist() if len(values) else (0.0, 1.0)
        if low == high:  # nearly all values are equal, such as a black background
            low, high = float(values.min()), float(values.max())
        low, high = (math.floor(low), math.ceil(high)) if is_whole else (low, high)
        pairs.append((float(low), float(high if high > low else low + 1)))
    return tuple(pairs)


def _is_valid(values: np.ndarray) -> np.ndarray:
    return np.abs(values) < NO_DATA  # False for NaN


def to_levels(values: np.ndarray, value_range: ValueRange) -> tuple[np.ndarray, bool]:
    """Scale deep values (H, W, C) to levels in [0, 255], and return True if any value was missing.

    Values outside the range are clipped. NaN and no-data values become 0, infinite values 0 or 255 by their sign.
    """
    low, high = np.array(value_range, np.float64).T
    values = values.astype(np.float64)
    is_valid = _is_valid(values)
    is_complete = bool(is_valid.all())
    if not is_complete:
        values = np.where(is_valid | np.isposinf(values), values, low)
    levels = np.clip((values - low) * (255 / (high - low)), 0, 255)
    return levels.astype(np.float32), not is_complete


def stored_pixels(levels: np.ndarray) -> np.ndarray:
    """Convert levels, float in [0, 255] or uint8, to uint16 pixels."""
    if levels.dtype == np.uint8:
        return levels.astype(np.uint16) * np.uint16(LEVEL_STEP)
    return np.rint(np.clip(levels, 0, 255).astype(np.float64) * LEVEL_STEP).astype(np.uint16)


def stored_dtype(value_range: ValueRange) -> type[np.uint8] | type[np.uint16]:
    """Return the type of stored pixels: uint16 for deep images, else uint8."""
    return np.uint16 if value_range else np.uint8


def levels_of(pixels: np.ndarray) -> np.ndarray:
    """Convert stored pixels to levels: uint16 to float32 in [0, 255]; others are returned unchanged."""
    return pixels.astype(np.float32) / np.float32(LEVEL_STEP) if pixels.dtype == np.uint16 else pixels


def viewable(pixels: np.ndarray) -> np.ndarray:
    """Convert stored pixels (..., C) to uint8 for a display: gray (..., 1), or the first three channels (..., 3)."""
    num_shown = 3 if pixels.shape[-1] >= 3 else 1
    shown = pixels[..., :num_shown]
    return np.rint(levels_of(shown)).astype(np.uint8) if shown.dtype == np.uint16 else shown


def describe_range(value_range: ValueRange) -> str:
    """Describe a range in words.

    >>> describe_range(((0.0, 119.0),))
    'values from 0 to 119'
    """
    spans = [f"{low:.6g} to {high:.6g}" for low, high in value_range]
    return f"values from {spans[0] if len(set(spans)) == 1 else ', '.join(spans)}"
