"""Conversion of decoded values to gray or RGB, and of deep values to 8 bits, with a note for each conversion."""

import numpy as np
from PIL import Image

from skipway.data.sources.image_formats import BadImage

__all__ = ["NEARLY_BLACK", "narrow_to_8_bits", "nearly_black_notes", "to_channels", "to_gray_or_rgb", "with_channels"]

NEARLY_BLACK = "nearly black: 16-bit values that use only the lowest bits (rescale them to 0 to 65535)"
_BLACK = 16  # of 256 levels; 12-bit values in a 16-bit file stay below it
_CONVERSIONS = {"1": "bilevel converted to gray", "P": "palette converted to RGB", "PA": "palette converted to RGB"}
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def to_gray_or_rgb(image: Image.Image, bits: int, notes: list[str]) -> Image.Image:
    """Convert an image to mode "L" or "RGB", at the same size.

    Args:
        image: the loaded image.
        bits: bits of each stored value.
        notes: list to which notes are added.
    """
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode in ("I", "F") or mode.startswith("I;"):
        values = np.asarray(image)
        narrow = narrow_to_8_bits(values, notes, bits=bits)
        clear = image.info.get("transparency")
        if isinstance(clear, int):
            notes.append("transparency composited over white")
            narrow[values == clear] = 255
        return Image.fromarray(narrow)
    is_gray = mode in ("1", "L", "LA", "La")
    if mode not in ("L", "LA", "La", "RGB", "RGBA"):
        notes.append(_CONVERSIONS.get(mode, f"{mode} converted to RGB"))
    if not image.has_transparency_data:
        return image.convert("L" if is_gray else "RGB")
    notes.append("transparency composited over white")
    layered = "LA" if is_gray else "RGBA"
    image = image if mode == layered else image.convert(layered)  # converting to the same mode copies
    white = Image.new("L" if is_gray else "RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def narrow_to_8_bits(values: np.ndarray, notes: list[str], bits: int = 16) -> np.ndarray:
    """Convert values of more than 8 bits to uint8, for a model that has no value range.

    16-bit and 12-bit values are divided by their range. 32-bit integers are read as 8-bit or 16-bit values, depending
    on their maximum. Floats must be in [0, 1] or [0, 255].

    Args:
        values: integers or floats of any shape.
        notes: list to which notes are added.
        bits: bits of each stored value: 12 for values up to 4095.
    """
    low, high = values.min(), values.max()
    kind = "gray" if values.ndim == 2 or values.shape[2] == 1 else "color"
    if values.dtype.kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadImage(f"NaN or infinite values in float {kind}")
        if low < 0 or high > 255:
            raise BadImage(f"unsupported range of float {kind}: expected [0, 1] or [0, 255], got [{low:g}, {high:g}]")
        notes.append(f"float {kind} rescaled" if high <= 1 else f"float {kind} rounded")
        scaled = values * np.float32(255 if high <= 1 else 1)
        return np.rint(scaled, out=scaled).astype(np.uint8)
    if low < 0 or high > 65535:
        raise BadImage(f"unsupported range of 32-bit {kind}: expected 0 to 255 or 0 to 65535, got {low} to {high}")
    if values.dtype.itemsize > 2 and high <= 255:
        notes.append(f"32-bit {kind} read as 8-bit values")
        return values.astype(np.uint8)
    deep: np.ndarray = values.astype(np.uint16)
    bits = 12 if bits == 12 else 16
    notes.append(f"{bits}-bit {kind} rescaled to 8 bits")
    if bits == 12:
        deep = (deep << 4) | (deep >> 8)
    # Divide by 257 with rounding. Values above 65407 become 255 and are clipped, or the sum would overflow 16 bits.
    narrow = ((np.minimum(deep, 65407) + 128) // 257).astype(np.uint8)
    if high > 0 and narrow.max() < _BLACK:
        notes.append(NEARLY_BLACK)
    return narrow


def nearly_black_notes(image: Image.Image) -> list[str]:
    """Return a note if Pillow's upper 8 bits of 16-bit color are nearly black."""
    brightest = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band not in "AX")
    return [NEARLY_BLACK] if brightest < _BLACK else []


def to_channels(image: Image.Image, channels: int, notes: list[str]) -> np.ndarray:
    """Return the pixels of a gray or RGB image as (H, W, channels)."""
    if image.mode == "RGB" and channels == 1:
        notes.append("color converted to gray")
        image = image.convert("L")
    pixels = np.array(image)
    return with_channels(pixels[:, :, None] if pixels.ndim == 2 else pixels, channels, notes)


def with_channels(values: np.ndarray, channels: int, notes: list[str]) -> np.ndarray:
    """Convert values (H, W, C) to (H, W, channels), if C is the same number, or both are 1 or 3.

    Raises:
        BadImage: the image has another number of channels.
    """
    if values.shape[2] == channels:
        return values
    if (values.shape[2], channels) == (1, 3):
        notes.append("gray repeated to three channels")
        return np.repeat(values, 3, axis=2)
    if (values.shape[2], channels) == (3, 1):
        notes.append("color converted to gray")
        return (values @ np.array(_LUMA))[:, :, None]
    raise BadImage(f"expected an image of {channels} channels, got {values.shape[2]}")
