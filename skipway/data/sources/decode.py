"""Decoding of image files and arrays to square pixels.

Shapes: H, W are the height and width of the original in EXIF orientation; a decoded image is (size, size, channels),
uint8, or uint16 if there is a value range. Every conversion of the stored pixels is recorded as a note, a fixed phrase,
so that a run can count and report it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from skipway.data.image_spec import RESIZE_MODES, Interpolation, ResizeMode
from skipway.data.sources.array_files import ArrayImage, checked_values, read_array_file
from skipway.data.sources.color_modes import (
    NEARLY_BLACK,
    narrow_to_8_bits,
    nearly_black_notes,
    to_channels,
    to_gray_or_rgb,
    with_channels,
)
from skipway.data.sources.image_formats import FORMAT_OF_SUFFIX, SNIFF_BYTES, SUFFIXES, BadImage, image_format_of
from skipway.data.sources.pillow_file import (
    TURNS,
    bits_of,
    deep_values,
    file_notes,
    load_pixels,
    open_image,
    orientation_of,
)
from skipway.data.sources.pillow_warnings import CollectedWarnings, collect_warnings, number_in
from skipway.data.sources.resize_image import ReducedImage, draft, resize
from skipway.data.value_range import MAX_CHANNELS, ValueRange, checked_range, stored_pixels, to_levels
from skipway.errors import InputError, printable

__all__ = [
    "MAX_PIXELS",
    "MISSING_VALUES",
    "NEARLY_BLACK",
    "REPORTED_NOTES",
    "SUFFIXES",
    "BadImage",
    "DecodedImage",
    "ImageHeader",
    "TargetImage",
    "decode",
    "decode_array",
    "deep_values_of",
    "header_of",
    "size_of",
]

MAX_PIXELS = 50_000_000
MISSING_VALUES = "NaN, infinite or no-data values replaced"
REPORTED_NOTES = (NEARLY_BLACK, MISSING_VALUES)  # about images for which a prediction may be wrong


@dataclass(frozen=True)
class TargetImage:
    """The pixels that decoding returns.

    Args:
        size: height and width of the result, in pixels.
        channels: 1 (gray), 3 (RGB), or the number of bands that every image has, up to 16.
        resize_mode: "squash" ignores the aspect ratio, "crop" resizes the shorter side and crops the longer one, "pad"
            resizes the longer side and adds bars of gray 128.
        interpolation: "bilinear" or "bicubic".
        crop_size: size of a later center crop, with which "crop" is aligned to the pixel. Default: `size`.
        value_range: range of deep images, for pixels of 16 bits; empty for pixels of 8 bits.
    """

    size: int
    channels: int = 3
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bilinear"
    crop_size: int | None = None
    value_range: ValueRange = ()

    def __post_init__(self) -> None:
        if self.size < 1 or not 1 <= self.channels <= MAX_CHANNELS or self.resize_mode not in RESIZE_MODES:
            raise InputError(
                f"cannot decode: expected size >= 1, 1 to {MAX_CHANNELS} channels and resize_mode "
                f"{', '.join(RESIZE_MODES)}, got {self.size}, {self.channels} and {printable(self.resize_mode)!r}. "
                "Pass supported values."
            )
        object.__setattr__(self, "value_range", checked_range(self.value_range, self.channels))


@dataclass(frozen=True)
class DecodedImage:
    """One decoded image and the properties of its original.

    `pixels` is (size, size, channels), `notes` are fixed phrases, each at most once, and `mode` is Pillow's name of the
    pixel format, such as "CMYK" or "I;16", or the type of an array, such as "uint16".
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    width: int  # of the original, in EXIF orientation
    height: int
    mode: str


@dataclass(frozen=True)
class ImageHeader:
    """Size of an image in EXIF orientation, its channels (1 gray, 3 RGB, or bands), and whether it is deep."""

    width: int
    height: int
    channels: int
    is_deep: bool
    mode: str = field(default="", compare=False)


def size_of(data: bytes, max_pixels: int = MAX_PIXELS, suffix: str = "") -> tuple[int, int, str]:
    """Read the width, height and mode from the header of an image file, in EXIF orientation.

    Raises:
        BadImage: the file is not a supported image, or has more than `max_pixels` pixels.
    """
    header = header_of(data, max_pixels, suffix)
    return header.width, header.height, header.mode


def header_of(content: bytes | np.ndarray, max_pixels: int = MAX_PIXELS, suffix: str = "") -> ImageHeader:
    """Read the properties of an image from its file header, or from an array.

    Raises:
        BadImage: it is not a supported image, or has more than `max_pixels` pixels.
    """
    if isinstance(content, np.ndarray):
        return _array_header(checked_values(content))
    with _pillow(content, max_pixels):
        file_format = image_format_of(content[:SNIFF_BYTES])
        array = read_array_file(content, file_format, max_pixels, header=True)
        if array is not None:
            return _array_header(array)
        with open_image(content, suffix) as image:
            width, height = image.size
            _check_pixels(width * height, max_pixels)
            bits, mode = bits_of(content, image, _format_name(image)), image.mode
            is_deep = mode in ("I", "F") or mode.startswith("I;") or (bits == 16 and image.format in ("PNG", "TIFF"))
            channels = {"1": 1, "L": 1, "LA": 1, "La": 1, "F": 1, "RGBX": 4}.get(mode, 1 if mode[0] == "I" else 3)
            if orientation_of(image, []) >= 5:
                width, height = height, width
            return ImageHeader(width, height, channels, is_deep, mode)


def _array_header(array: ArrayImage) -> ImageHeader:
    height, width, channels = array.shape
    return ImageHeader(width, height, channels, array.dtype != np.uint8, str(array.dtype))


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, suffix: str = "", **target: Any) -> DecodedImage:
    """Decode an image file to upright, square pixels.

    Resizing is antialiased; an image of the target size keeps its exact pixels. Only the first frame is used, and
    transparency is composited over white. With a value range, deep values are scaled by it; without one, they are
    rescaled to 8 bits.

    Args:
        data: content of the file.
        max_pixels: maximum pixels of the original.
        suffix: file extension, to record a mismatch with the content.
        **target: fields of `TargetImage`.

    Raises:
        BadImage: the file cannot be decoded.
    """
    wanted = TargetImage(**target)
    with _pillow(data, max_pixels) as collected:
        file_format = image_format_of(data[:SNIFF_BYTES])
        array = read_array_file(data, file_format, max_pixels, channels=wanted.channels)
        if array is not None:
            image = _fit_array(array, wanted)
            return replace(image, notes=(*image.notes, *_suffix_notes(suffix, str(file_format))))
        with open_image(data, suffix) as opened:
            _check_pixels(opened.width * opened.height, max_pixels)
            image = _decode_opened(data, opened, wanted, suffix)
        return replace(image, notes=(*image.notes, "damaged metadata ignored")) if collected.any_damage else image


def decode_array(values: np.ndarray, **target: Any) -> DecodedImage:
    """Convert an array (H, W), (H, W, C) or (C, H, W) as `decode` converts a file with these values.

    Args:
        values: real numbers; uint8 is read as 8 bits, everything else as deep values.
        **target: fields of `TargetImage`.

    Raises:
        BadImage: the array is no image, or has other channels than those of the target.
    """
    return _fit_array(checked_values(values), TargetImage(**target))


def deep_values_of(content: bytes | np.ndarray, channels: int, max_pixels: int = MAX_PIXELS) -> np.ndarray | None:
    """Return the values (H, W, channels) of a deep image, at its size and without alpha; None for one of 8 bits.

    Raises:
        BadImage: the image cannot be read, or has other channels.
    """
    if isinstance(content, np.ndarray):
        array: ArrayImage | None = checked_values(content)
    else:
        with _pillow(content, max_pixels):
            file_format = image_format_of(content[:SNIFF_BYTES])
            array = read_array_file(content, file_format, max_pixels, channels=channels)
            if array is None:
                with open_image(content) as opened:
                    _check_pixels(opened.width * opened.height, max_pixels)
                    values = deep_values(content, opened, bits_of(content, opened, _format_name(opened)))
                return None if values is None else with_channels(_split_alpha(values, opened)[0], channels, [])
    assert array is not None and array.values is not None
    return None if array.dtype == np.uint8 else with_channels(array.values, channels, [])


def _suffix_notes(suffix: str, file_format: str) -> list[str]:
    is_other = bool(suffix) and FORMAT_OF_SUFFIX.get(suffix.lower(), file_format) != file_format
    return ["extension does not match content"] if is_other else []


def _format_name(image: Image.Image) -> str:
    return "JPEG" if image.format == "MPO" else str(image.format)


def _decode_opened(data: bytes, opened: Image.Image, target: TargetImage, suffix: str) -> DecodedImage:
    """Decode a file that Pillow has opened."""
    width, height, mode, file_format = opened.width, opened.height, opened.mode, _format_name(opened)
    bits = bits_of(data, opened, file_format)
    notes = file_notes(data, opened, file_format)
    notes += _suffix_notes(suffix, file_format)
    values = deep_values(data, opened, bits) if target.value_range else None
    if values is not None:
        return _fit_deep(values, opened, target, notes)
    reduces = file_format == "JPEG" and max(width, height) > 2 * target.size
    scale = draft(opened, target.size, target.resize_mode) if reduces else 1.0
    image = load_pixels(data, opened, size=target.size, resize_mode=target.resize_mode)
    orientation = orientation_of(opened, notes)
    if bits > 8 and image.mode in ("RGB", "RGBA", "RGBX", "LA"):
        notes += [f"{bits}-bit color reduced to 8 bits", *(nearly_black_notes(image) if bits == 16 else [])]
    if not (image.mode == "RGBX" and target.channels == 4):
        image = to_gray_or_rgb(image, bits if file_format == "TIFF" else 16, notes)
    corner = (0.0, 0.0)
    if orientation in TURNS:
        notes.append("rotated or flipped by EXIF orientation")
        operation, from_right, from_bottom = TURNS[orientation]
        image = image.transpose(operation)
        width, height = (height, width) if orientation >= 5 else (width, height)
        corner = ((image.width - width / scale) * from_right, (image.height - height / scale) * from_bottom)
    reduced = ReducedImage(image, original_size=(width, height), corner=corner, scale=scale)
    pixels = to_channels(_resize(reduced, target), target.channels, notes)
    return _decoded(pixels, target, notes, width=width, height=height, mode=mode)


def _fit_deep(values: np.ndarray, opened: Image.Image, target: TargetImage, notes: list[str]) -> DecodedImage:
    """Scale and resize the deep values (H, W, C) of a file that Pillow has opened, alpha last."""
    values, alpha = _split_alpha(values, opened)
    if alpha is not None:
        notes.append("transparency composited over white")
    levels = _levels(with_channels(values, target.channels, notes), target, notes)
    if alpha is not None:
        levels = levels * alpha + 255 * (1 - alpha)
    orientation = orientation_of(opened, notes)
    if orientation in TURNS:
        notes.append("rotated or flipped by EXIF orientation")
        turned = [Image.fromarray(levels[:, :, c]).transpose(TURNS[orientation][0]) for c in range(levels.shape[2])]
        levels = np.stack([np.asarray(channel) for channel in turned], axis=2)
    return _fit_channels(levels, target, notes, mode=opened.mode)


def _split_alpha(values: np.ndarray, opened: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Split deep values into color and alpha (H, W, 1) in [0, 1], or None if the image has no transparency."""
    if opened.mode in ("RGBA", "LA") and values.shape[2] in (2, 4):
        return values[:, :, :-1], values[:, :, -1:].astype(np.float32) / 65535
    clear = opened.info.get("transparency")
    if isinstance(clear, int) and values.shape[2] == 1:
        return values, (values != clear).astype(np.float32)
    return values, None


def _levels(values: np.ndarray, target: TargetImage, notes: list[str]) -> np.ndarray:
    levels, any_missing = to_levels(values, target.value_range)
    if any_missing:
        notes.append(MISSING_VALUES)
    return levels


def _fit_array(array: ArrayImage, target: TargetImage) -> DecodedImage:
    """Convert the values of an array to the target."""
    assert array.values is not None
    values, notes, mode = array.values, list(array.notes), str(array.dtype)
    if values.dtype != np.uint8 and target.value_range:
        values = _levels(with_channels(values, target.channels, notes), target, notes)
        return _fit_channels(values, target, notes, mode=mode)
    if values.dtype != np.uint8:
        values = narrow_to_8_bits(values, notes)
    if values.shape[2] in (1, 3) and target.channels in (1, 3):
        height, width = values.shape[:2]
        image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else np.ascontiguousarray(values))
        reduced = ReducedImage(image, original_size=(width, height), corner=(0.0, 0.0), scale=1.0)
        pixels = to_channels(_resize(reduced, target), target.channels, notes)
        return _decoded(pixels, target, notes, width=width, height=height, mode=mode)
    return _fit_channels(with_channels(values, target.channels, notes), target, notes, mode=mode)


def _fit_channels(levels: np.ndarray, target: TargetImage, notes: list[str], *, mode: str) -> DecodedImage:
    """Resize uint8 values, or float32 levels in [0, 255], one channel at a time."""
    height, width = levels.shape[:2]
    channels = []
    for channel in range(levels.shape[2]):
        image = Image.fromarray(np.ascontiguousarray(levels[:, :, channel]))
        reduced = ReducedImage(image, original_size=(width, height), corner=(0.0, 0.0), scale=1.0)
        channels.append(np.asarray(_resize(reduced, target)))
    return _decoded(np.stack(channels, axis=2), target, notes, width=width, height=height, mode=mode)


def _resize(reduced: ReducedImage, target: TargetImage) -> Image.Image:
    return resize(
        reduced,
        size=target.size,
        resize_mode=target.resize_mode,
        interpolation=target.interpolation,
        crop_size=target.crop_size or target.size,
    )


def _decoded(
    pixels: np.ndarray, target: TargetImage, notes: list[str], *, width: int, height: int, mode: str
) -> DecodedImage:
    if target.value_range:
        if pixels.dtype == np.uint8:
            notes.append("8-bit image among deep ones, scaled by 255")
        pixels = stored_pixels(pixels)
    return DecodedImage(pixels, notes=tuple(dict.fromkeys(notes)), width=width, height=height, mode=mode)


@contextmanager
def _pillow(data: bytes, max_pixels: int) -> Iterator[CollectedWarnings]:
    """Convert exceptions of Pillow to BadImage; damaged files raise nearly every exception type."""
    try:
        with collect_warnings(max_pixels) as collected:
            yield collected
    except (BadImage, MemoryError):  # the number of pixels was checked, so the machine is out of memory
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(number_in(error), min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))) from error
    except UnidentifiedImageError as error:
        if data.startswith(b"BM") or image_format_of(data[:SNIFF_BYTES]) is not None:
            raise BadImage("broken: cannot read the header") from error
        raise BadImage(
            "unsupported format: expected the content of an image file, such as JPEG, PNG or TIFF"
        ) from error
    except Exception as error:
        text = printable(error)[:200] or type(error).__name__
        is_truncated = isinstance(error, EOFError) or "truncated" in text.lower()
        raise BadImage(f"truncated: {text}" if is_truncated else f"broken: {text}") from error


def _too_large(pixels: int, limit: int) -> BadImage:
    return BadImage(f"too many pixels: expected at most {limit:,} (--max-pixels), got {pixels:,}")


def _check_pixels(pixels: int, limit: int) -> None:
    if pixels > limit:
        raise _too_large(pixels, limit)
