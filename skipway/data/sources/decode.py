"""Decoding of image files to uint8 arrays.

Shapes: H, W are the height and width of the original in EXIF orientation; a decoded image is (size, size, channels).
Every conversion of the stored pixels is recorded as a note, a fixed phrase, so that a run can count and report it.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from skipway.data.image_spec import RESIZE_MODES, Interpolation, ResizeMode
from skipway.data.sources.image_formats import FORMAT_OF_SUFFIX, SNIFF_BYTES, SUFFIXES, image_format_of, pillow_formats
from skipway.data.sources.pillow_warnings import CollectedWarnings, collect_warnings, number_in
from skipway.errors import InputError, printable

__all__ = ["MAX_PIXELS", "NEARLY_BLACK", "SUFFIXES", "BadImage", "DecodedImage", "decode", "size_of"]

MAX_PIXELS = 50_000_000
_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_EXIF_CARRIERS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
# EXIF orientation -> the operation that makes the image upright, and whether it moves the right or bottom edge to the
# beginning. The last pixels of a reduced JPEG are partly filled and lie at these edges.
_TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False),
    3: (Image.Transpose.ROTATE_180, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, False, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, False, True),
}
_CONVERSIONS = {"1": "bilevel converted to gray", "P": "palette converted to RGB", "PA": "palette converted to RGB"}
NEARLY_BLACK = "nearly black: 16-bit values that use only the lowest bits (rescale them to 0 to 65535)"
_BLACK = 16  # of 256 levels; 12-bit values in a 16-bit file stay below it
_REDUCING_GAP = 2.0  # fast integer reductions stop at this multiple of the target size, before the antialiased filter
_PAD_GRAY = 128  # mid-gray, because black or white bars would add strong edges


class BadImage(InputError):
    """An image file cannot be decoded; the message is a short reason without the file name."""


@dataclass(frozen=True)
class DecodedImage:
    """One decoded image and the properties of its original.

    `pixels` is (size, size, channels) uint8, `notes` are fixed phrases, each at most once, and `mode` is Pillow's name
    of the pixel format, such as "CMYK" or "I;16".
    """

    pixels: np.ndarray
    notes: tuple[str, ...]
    width: int  # of the original, in EXIF orientation
    height: int
    mode: str


def size_of(data: bytes, max_pixels: int = MAX_PIXELS, suffix: str = "") -> tuple[int, int, str]:
    """Read the width, height and Pillow mode from the header of an image file, in EXIF orientation.

    Raises:
        BadImage: the file is not a supported image, or has more than `max_pixels` pixels.
    """
    with _pillow(data, max_pixels), Image.open(io.BytesIO(data), formats=pillow_formats(suffix)) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(width * height, max_pixels)
        return (width, height, image.mode) if _orientation(image, []) < 5 else (height, width, image.mode)


def decode(
    data: bytes,
    *,
    size: int,
    channels: int = 3,
    resize_mode: ResizeMode = "squash",
    max_pixels: int = MAX_PIXELS,
    suffix: str = "",
    interpolation: Interpolation = "bilinear",
    crop_size: int | None = None,
) -> DecodedImage:
    """Decode an image file to an upright (size, size, channels) uint8 array.

    Resizing is antialiased; an image of the target size keeps its exact pixels. Only the first frame is used,
    transparency is composited over white, and gray of more than 8 bits is rescaled.

    Args:
        size: height and width of the result, in pixels.
        channels: 1 (gray) or 3 (RGB).
        resize_mode: "squash" ignores the aspect ratio, "crop" resizes the shorter side and crops the longer one, "pad"
            resizes the longer side and adds bars of gray 128.
        max_pixels: maximum pixels of the original.
        suffix: file extension, to record a mismatch with the content.
        interpolation: "bilinear" or "bicubic".
        crop_size: size of a later center crop, with which "crop" is aligned to the pixel.

    Raises:
        BadImage: the file cannot be decoded.
    """
    if size < 1 or channels not in (1, 3) or resize_mode not in RESIZE_MODES:
        raise InputError(
            f"cannot decode: expected size >= 1, channels 1 or 3 and resize_mode {', '.join(RESIZE_MODES)}, got "
            f"{size}, {channels} and {printable(resize_mode)!r}. Pass supported values."
        )
    with _pillow(data, max_pixels) as collected, Image.open(io.BytesIO(data), formats=pillow_formats(suffix)) as opened:
        width, height = opened.size
        if width * height > max_pixels:
            raise _too_large(width * height, max_pixels)
        mode, file_format = opened.mode, "JPEG" if opened.format == "MPO" else opened.format
        notes = _oddities(data, opened, str(file_format))
        if suffix and FORMAT_OF_SUFFIX.get(suffix.lower(), file_format) != file_format:
            notes.append("extension does not match content")
        reduces = file_format == "JPEG" and max(width, height) > 2 * size
        scale = _draft(opened, size, resize_mode) if reduces else 1.0
        image = _load(data, opened, size=size, resize_mode=resize_mode)
        orientation = _orientation(opened, notes)
        notes += _deep_color_notes(data, image, str(file_format))
        image = _to_gray_or_rgb(image, notes)
        corner = (0.0, 0.0)
        if orientation in _TURNS:
            notes.append("rotated or flipped by EXIF orientation")
            operation, from_right, from_bottom = _TURNS[orientation]
            image = image.transpose(operation)
            width, height = (height, width) if orientation >= 5 else (width, height)
            corner = ((image.width - width / scale) * from_right, (image.height - height / scale) * from_bottom)
        reduced = _ReducedImage(image, original_size=(width, height), corner=corner, scale=scale)
        image = _resize(
            reduced, size=size, resize_mode=resize_mode, interpolation=interpolation, crop_size=crop_size or size
        )
        pixels = _to_channels(image, channels, notes)
        if collected.any_damage:
            notes.append("damaged metadata ignored")
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


def _oddities(data: bytes, image: Image.Image, file_format: str) -> list[str]:
    """Return notes on the file structure; call it before loading the pixels, when the reader is behind the header."""
    notes = []
    if file_format == "JPEG":
        if not data.endswith(_END_OF_JPEG):
            # Search from the scan on, because an embedded thumbnail also has an end marker.
            end = data.rfind(_END_OF_JPEG, image.fp.tell())  # type: ignore[attr-defined]
            if end < 0:
                notes.append("no end marker")
            elif data[end + 2 :].strip(b"\0"):
                notes.append("bytes after the end")
    elif file_format == "PNG":
        notes += _png_oddities(data)
    elif file_format == "WEBP" and data[8 + int.from_bytes(data[4:8], "little") :].strip(b"\0"):
        notes.append("bytes after the end")
    elif file_format == "TIFF" and image.tag_v2.get(_ORIENTATION) in _TURNS:  # type: ignore[attr-defined]
        notes.append("rotated or flipped by EXIF orientation")
    try:
        if getattr(image, "is_animated", False):
            notes.append("first of several frames used")
    except Exception:
        # Pillow reads the second frame of a GIF here, which may be broken; only the first frame is used.
        notes.append("damaged metadata ignored")
    return notes


def _png_oddities(data: bytes) -> list[str]:
    notes, kind, position, view = [], b"", 8, memoryview(data)
    while kind != b"IEND" and position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 <= len(data) and zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            notes = ["checksum wrong, pixels readable"]
        position = end + 4
    if kind != b"IEND":
        notes.append("no end marker")
    elif data[position:].strip(b"\0"):
        notes.append("bytes after the end")
    return notes


def _deep_color_notes(data: bytes, image: Image.Image, file_format: str) -> list[str]:
    """Return notes on 16-bit color, of which Pillow keeps the upper 8 bits; 16-bit gray keeps all bits."""
    if image.mode not in ("RGB", "RGBA", "RGBX", "LA"):
        return []
    bits = data[24] if file_format == "PNG" else max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    if bits != 16:
        return []
    brightest = max(int(np.asarray(image.getchannel(band)).max()) for band in image.getbands() if band not in "AX")
    return ["16-bit color reduced to 8 bits", *([NEARLY_BLACK] if brightest < _BLACK else [])]


def _orientation(image: Image.Image, notes: list[str]) -> int:
    """Return the EXIF orientation, 1 to 8: 1 if it cannot be read, and for TIFF, which Pillow rotates."""
    if image.format == "TIFF" or not _EXIF_CARRIERS & image.info.keys():
        return 1
    try:
        # The method of the base class; that of PNG loads the pixels to search for more metadata.
        exif = Image.Image.getexif(image)
        orientation = exif.get(_ORIENTATION, 1)
        # When Pillow reads a broken block again, it raises no error and returns no tags.
        broken = not exif and len(image.info.get("exif", b"")) > 20
    except Exception:
        orientation, broken = 1, True
    if broken:
        notes.append("broken EXIF ignored")
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _target_size(original_size: tuple[int, int], size: int, resize_mode: ResizeMode) -> tuple[int, int]:
    if resize_mode != "pad":
        return size, size
    width, height = original_size
    longest = max(width, height)
    return max(1, round(width * size / longest)), max(1, round(height * size / longest))


def _draft(image: Image.Image, size: int, resize_mode: ResizeMode) -> float:
    """Let libjpeg decode at 1/2, 1/4 or 1/8 scale, within `_REDUCING_GAP`; return the divisor."""
    target_width, target_height = _target_size(image.size, size, resize_mode)
    width = image.width
    drafted = image.draft("", (int(target_width * _REDUCING_GAP), int(target_height * _REDUCING_GAP)))
    return width / drafted[1][2] if drafted else 1.0


def _load(data: bytes, image: Image.Image, size: int, resize_mode: ResizeMode) -> Image.Image:
    """Load the pixels of `image`, also those of a JPEG that lacks only its end marker.

    Pillow rejects a JPEG that is cut within its pixels and one that ends right after them. To distinguish the two,
    several fillers, longer than a block, are appended: complete pixels do not depend on the filler.
    """
    scan = image.fp.tell() if image.format == "JPEG" else 0  # type: ignore[attr-defined]
    try:
        image.load()
        return image
    except OSError:
        components = data[data.rfind(b"\xff\xda", 0, scan) + 4 :][:1]
        # Later scans only refine a progressive JPEG, or add color to a split one, so a missing scan would be missed.
        one_scan = "progressive" not in image.info and components == bytes([len(image.getbands())])
        if not scan or not one_scan or data.endswith(b"\xff"):
            raise
        decoded_pixels = set()
        for filler in (b"", b"\x55", b"\xaa", b"\xff\0", b"\x33", b"\xcc"):
            candidate = Image.open(io.BytesIO(data + filler * 4096 + _END_OF_JPEG), formats=("JPEG",))
            _draft(candidate, size, resize_mode)
            decoded_pixels.add(candidate.tobytes())
            if len(decoded_pixels) > 1:
                raise
        return candidate


def _to_gray_or_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert an image to mode "L" or "RGB", at the same size."""
    mode = image.mode
    if mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if mode in ("I", "F") or mode.startswith("I;"):
        return _to_8_bit_gray(image, notes)
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


def _to_8_bit_gray(image: Image.Image, notes: list[str]) -> Image.Image:
    """Convert gray of more than 8 bits to mode "L".

    16-bit and 12-bit values are divided by their range. 32-bit integers are read as 8-bit or 16-bit values, depending
    on their maximum. Floats must be in [0, 1] or [0, 255].
    """
    values = np.asarray(image)
    low, high = values.min(), values.max()
    if image.mode == "F":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise BadImage("NaN or infinite values in float gray")
        if low < 0 or high > 255:
            raise BadImage(f"unsupported range of float gray: expected [0, 1] or [0, 255], got [{low:g}, {high:g}]")
        notes.append("float gray rescaled" if high <= 1 else "float gray rounded")
        scaled = values * np.float32(255 if high <= 1 else 1)
        return Image.fromarray(np.rint(scaled, out=scaled).astype(np.uint8))
    if low < 0 or high > 65535:
        raise BadImage(f"unsupported range of 32-bit gray: expected 0 to 255 or 0 to 65535, got {low} to {high}")
    if image.mode == "I" and high <= 255:
        notes.append("32-bit gray read as 8-bit values")
        return Image.fromarray(values.astype(np.uint8))
    deep: np.ndarray = values.astype(np.uint16)
    bits = 12 if getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE) == (12,) else 16
    notes.append(f"{bits}-bit gray rescaled to 8 bits")
    if bits == 12:
        deep = (deep << 4) | (deep >> 8)
    # Divide by 257 with rounding. Values above 65407 become 255 and are clipped, or the sum would overflow 16 bits.
    narrow = ((np.minimum(deep, 65407) + 128) // 257).astype(np.uint8)
    if high > 0 and narrow.max() < _BLACK:
        notes.append(NEARLY_BLACK)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        notes.append("transparency composited over white")
        narrow[values == clear] = 255
    return Image.fromarray(narrow)


def _to_channels(image: Image.Image, channels: int, notes: list[str]) -> np.ndarray:
    """Return the pixels of a gray or RGB image as (H, W, channels)."""
    if image.mode == "RGB" and channels == 1:
        notes.append("color converted to gray")
        image = image.convert("L")
    pixels = np.array(image)
    if image.mode == "L":
        notes += ["gray repeated to three channels"] if channels == 3 else []
        pixels = np.repeat(pixels[:, :, None], channels, axis=2)
    return pixels


@dataclass(frozen=True)
class _ReducedImage:
    """An upright image, reduced by `scale` from `original_size` (width, height); the original begins at `corner`."""

    image: Image.Image
    original_size: tuple[int, int]
    corner: tuple[float, float]
    scale: float


def _resize(
    reduced: _ReducedImage, *, size: int, resize_mode: ResizeMode, interpolation: Interpolation, crop_size: int
) -> Image.Image:
    """Resize an image to size x size."""
    image, original_size = reduced.image, reduced.original_size
    target = _target_size(original_size, size, resize_mode)
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
    reduced: _ReducedImage, *, axis: int, size: int, resize_mode: ResizeMode, crop_size: int
) -> tuple[float, float]:
    """Return the begin and end of the square along one axis, in pixels of the reduced image."""
    length = reduced.original_size[axis]
    resized = size * length // min(reduced.original_size) if resize_mode == "crop" else size
    first = round((resized - crop_size) / 2) - round((size - crop_size) / 2)
    begin, end = first * length / resized, (first + size) * length / resized
    corner = reduced.corner[axis]
    return corner + begin / reduced.scale, corner + end / reduced.scale
