"""Image files that Pillow does not read: .npy arrays, TIFF of several bands, and DICOM.

Shapes: values are (H, W, C) with 1 to 16 channels, in the type of the file.
"""

import io
import re
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import TiffImagePlugin

from skipway.data.sources.image_formats import BadImage
from skipway.data.sources.optional_readers import optional_module
from skipway.data.sources.pillow_warnings import collect_warnings
from skipway.data.value_range import MAX_CHANNELS
from skipway.errors import printable

__all__ = ["ArrayImage", "checked_values", "read_array_file"]

_MAX_HEADER = 10_000  # bytes of the header of a .npy file, which numpy parses as Python
_SPACE = rb"(?:\s+|#[^\n]*\n)+"
_PPM_HEADER = re.compile(b"P6" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})\s")
_TIFF_GRAY, _TIFF_RGB = (0, 1), 2  # photometric interpretations
_PILLOW_GRAY = frozenset({*((bits, 1) for bits in (1, 2, 4, 8, 12, 16, 32)), (16, 2), (32, 2), (32, 3)})
_ALPHA = (1, 2)  # ExtraSamples: associated and unassociated alpha


@dataclass(frozen=True)
class ArrayImage:
    """Values (H, W, C) of an image file, and fixed phrases about their conversion.

    Without `values`, only the header was read, and `shape` and `dtype` describe them.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    values: np.ndarray | None = None
    notes: tuple[str, ...] = field(default=())


def read_array_file(
    data: bytes, file_format: str | None, max_pixels: int, *, channels: int | None = None, header: bool = False
) -> ArrayImage | None:
    """Read a file of a format that holds arrays, or return None if Pillow reads it.

    Args:
        data: content of the file.
        file_format: its format, as `image_format_of` returns it.
        max_pixels: largest number of pixels.
        channels: channels that are wanted, so that Pillow may read the first three bands of a TIFF file.
        header: True to read only the header.

    Raises:
        BadImage: the array cannot be used as an image, or the package that reads it is not installed.
    """
    if file_format == "NPY":
        return _read_npy(data, max_pixels)
    if file_format == "DICOM":
        return _read_dicom(data, max_pixels, header)
    if file_format == "PPM" and data.startswith(b"P6"):
        return _read_deep_ppm(data, max_pixels)
    if file_format == "TIFF" and _needs_tifffile(data, channels):
        return _read_tiff(data, max_pixels, header)
    return None


def checked_values(values: np.ndarray, notes: tuple[str, ...] = ()) -> ArrayImage:
    """Return an array as (H, W, C): (H, W) gets an axis, and the channels of (C, H, W) are moved to the end.

    Raises:
        BadImage: the shape is not that of an image, or the type is not a real number.

    >>> checked_values(np.zeros((3, 40, 50), np.uint16)).shape
    (40, 50, 3)
    """
    if values.dtype.kind not in "biuf":
        raise BadImage(f"expected an array of real numbers, got the type {printable(values.dtype)}")
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.ndim == 3 and values.shape[2] > MAX_CHANNELS >= values.shape[0]:
        values = values.transpose(1, 2, 0)
        notes += ("channels moved from the first axis to the last",)
    if values.ndim != 3 or 0 in values.shape or values.shape[2] > MAX_CHANNELS:
        raise BadImage(
            f"expected an array of shape (H, W), (H, W, C) or (C, H, W) with 1 to {MAX_CHANNELS} channels, got "
            f"{values.shape}"
        )
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
        notes += ("bilevel converted to gray",)
    if values.dtype.kind == "f" and values.dtype.itemsize not in (4, 8):
        values = values.astype(np.float32 if values.dtype.itemsize == 2 else np.float64)
    height, width, channels = values.shape
    return ArrayImage((height, width, channels), values.dtype, values, notes)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"too many pixels: expected at most {max_pixels:,} (--max-pixels), got {height * width:,}")


def _read_npy(data: bytes, max_pixels: int) -> ArrayImage:
    """Read a .npy file without pickle; the header is checked against the length before memory is allocated."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, in_columns, dtype = read_header(file, max_header_size=_MAX_HEADER)
        if min(shape, default=0) < 0:
            raise ValueError("a negative length")
    except Exception as error:
        raise BadImage(f"broken: cannot read the header of the array: {printable(error)[:120]}") from error
    if dtype.hasobject:
        raise BadImage("array of Python objects, which could run code: expected numbers")
    count = 1
    for length in shape:
        count *= length
    needed, present = count * dtype.itemsize, len(data) - file.tell()
    if needed > present:
        raise BadImage(f"truncated: expected {needed:,} bytes of values, got {present:,}")
    values = np.frombuffer(data, dtype, count, file.tell()) if count else np.empty(0, dtype)
    values = values.reshape(shape, order="F" if in_columns else "C")
    image = checked_values(values.astype(dtype.newbyteorder("=")) if dtype.kind in "biuf" else values)
    _check_pixels(image.shape[0], image.shape[1], max_pixels)
    return image


def _read_deep_ppm(data: bytes, max_pixels: int) -> ArrayImage | None:
    """Read a binary PPM file of 16 bits, of which Pillow keeps 8; return None if it has 8 bits or no such header."""
    match = _PPM_HEADER.match(data)
    width, height, highest = (int(number) for number in match.groups()) if match else (0, 0, 0)
    if match is None or not 255 < highest < 65536 or width * height == 0:
        return None
    _check_pixels(height, width, max_pixels)
    needed, present = width * height * 6, len(data) - match.end()
    if needed > present:
        raise BadImage(f"truncated: expected {needed:,} bytes of values, got {present:,}")
    values = np.frombuffer(data, ">u2", width * height * 3, match.end()).reshape(height, width, 3)
    scaled = np.minimum(values.astype(np.float64) * (65535 / highest), 65535)  # as Pillow scales gray of 16 bits
    return checked_values(np.rint(scaled).astype(np.uint16))


def _tiff_tags(data: bytes) -> dict[int, Any]:
    """Return the tags of the first page of a TIFF file; none if they cannot be read."""
    try:
        file = io.BytesIO(data)
        start = file.read(8)
        start += file.read(8) if start[2] == 43 or start[3] == 43 else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(start)
        file.seek(tags.next)
        tags.load(file)
        return {number: tags.get(number) for number in (258, 262, 277, 284, 317, 338, 339) if number in tags}
    except Exception:
        return {}


def _needs_tifffile(data: bytes, channels: int | None) -> bool:
    """Return True for a TIFF file of which Pillow would drop bands or bits, or which it cannot read.

    Pillow reads gray, RGB, RGBA and RGBX, palettes and CMYK, in 8 or 16 bits, and gray in 32 bits.
    """
    tags = _tiff_tags(data)
    bands, bits, photometric = tags.get(277, 1), tags.get(258, (1,)), tags.get(262)
    if photometric not in (*_TIFF_GRAY, _TIFF_RGB) or not isinstance(bands, int):
        return False
    kinds, is_planar = set(tags.get(339, (1,))), tags.get(284, 1) == 2 and bands > 1
    alphas = sum(kind in _ALPHA for kind in tags.get(338, ()))
    if photometric == _TIFF_RGB:
        is_color = bands - alphas == 3 or (bands == 4 and 338 not in tags) or (channels == 3 and bands > 3)
        return not is_color or kinds != {1} or max(bits) > 16 or (is_planar and max(bits) > 8)
    if bands > 1:  # gray and alpha of 8 bits
        return bands > 2 or alphas != 1 or max(bits) > 8
    # (bits, kind) with the kinds 1 unsigned, 2 signed and 3 float.
    return len(kinds) != 1 or (max(bits), *kinds) not in _PILLOW_GRAY


def _read_tiff(data: bytes, max_pixels: int, header: bool) -> ArrayImage:
    tifffile = optional_module("tifffile", "TIFF")
    try:
        with collect_warnings(max_pixels), tifffile.TiffFile(io.BytesIO(data)) as file:
            page, count = file.pages[0], len(file.pages)
            shape, axes, dtype = tuple(page.shape), str(page.axes), page.dtype
            if axes == "SYX":
                shape = (*shape[1:], shape[0])
            elif axes == "YX":
                shape = (*shape, 1)
            elif axes != "YXS":
                raise BadImage(f"expected a TIFF page of axes YX, YXS or SYX, got {printable(axes)}")
            _check_pixels(shape[0], shape[1], max_pixels)
            if shape[2] > MAX_CHANNELS:
                raise BadImage(f"expected 1 to {MAX_CHANNELS} bands, got {shape[2]:,}")
            if header:
                return ArrayImage(shape, np.dtype(dtype))
            values = page.asarray()
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        if "imagecodecs" in str(error):
            raise BadImage(f"TIFF of this compression: install skipway[tiff] ({printable(error)[:80]})") from error
        raise BadImage(f"broken: {printable(error)[:200]}") from error
    image = checked_values(values.transpose(1, 2, 0) if axes == "SYX" else values)
    return replace(image, notes=(*image.notes, *(["first of several frames used"] if count > 1 else [])))


def _read_dicom(data: bytes, max_pixels: int, header: bool) -> ArrayImage:
    """Read the first frame of a DICOM file in its own unit, such as Hounsfield units."""
    pydicom = optional_module("pydicom", "DICOM")
    try:
        with collect_warnings(max_pixels):
            dataset = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=header)
            height, width = int(dataset.Rows), int(dataset.Columns)
            _check_pixels(height, width, max_pixels)
            photometric = str(dataset.PhotometricInterpretation)
            frames = int(dataset.get("NumberOfFrames") or 1)
            channels = 3 if photometric == "PALETTE COLOR" else int(dataset.SamplesPerPixel)
            if header:
                dtype = np.dtype(np.uint8 if int(dataset.BitsAllocated) <= 8 else np.float64)
                return ArrayImage((height, width, channels), dtype)
            values = pydicom.pixels.pixel_array(dataset, index=0)
            notes = ["first of several frames used"] if frames > 1 else []
            if photometric == "PALETTE COLOR":
                values = pydicom.pixels.apply_color_lut(values, dataset)
                values = (values >> 8).astype(np.uint8) if values.dtype == np.uint16 else values
                notes.append("palette converted to RGB")
            elif channels == 1:
                values = pydicom.pixels.apply_modality_lut(values, dataset)
            if photometric == "MONOCHROME1":
                values = _inverted(values, dataset)
                notes.append("MONOCHROME1 inverted")
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage(f"DICOM without a readable image: {printable(error)[:200]}") from error
    return checked_values(values, tuple(notes))


def _inverted(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Return values so that large ones are white: mirrored within the bits that the file stores."""
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    bits, is_signed = int(dataset.BitsStored), int(dataset.get("PixelRepresentation") or 0)
    total = -1 if is_signed else 2**bits - 1  # the sum of the smallest and the largest stored value
    mirrored = total * slope + 2 * intercept - values.astype(np.float64)
    return mirrored.astype(values.dtype) if values.dtype.kind in "iu" else mirrored
