"""Files as Pillow opens them: notes on their structure, their orientation, and pixels of files without an end.

Notes are fixed phrases; `decode` documents them.
"""

import ctypes
import io
import logging
import struct
import sys
import zlib
from typing import Any

import numpy as np
from PIL import Image

from skipway.data.image_spec import ResizeMode
from skipway.data.sources.image_formats import SNIFF_BYTES, image_format_of, pillow_formats
from skipway.data.sources.optional_readers import optional_module
from skipway.data.sources.resize_image import draft

__all__ = [
    "TURNS",
    "bits_of",
    "deep_values",
    "file_notes",
    "load_pixels",
    "open_image",
    "orientation_of",
]

_END_OF_JPEG = b"\xff\xd9"
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE = 0x0102
_PHOTOMETRIC, _RGB, _SAMPLES = 0x0106, 2, 0x0115
_PNG_GRAY_ALPHA = 4  # color type
_EXIF_CARRIERS = frozenset({"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"})
# EXIF orientation -> the operation that makes the image upright, and whether it moves the right or bottom edge to the
# beginning. The last pixels of a reduced JPEG are partly filled and lie at these edges.
TURNS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, True, False),
    3: (Image.Transpose.ROTATE_180, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, True),
    5: (Image.Transpose.TRANSPOSE, False, False),
    6: (Image.Transpose.ROTATE_270, True, False),
    7: (Image.Transpose.TRANSVERSE, True, True),
    8: (Image.Transpose.ROTATE_90, False, True),
}


def open_image(data: bytes, suffix: str = "") -> Image.Image:
    """Open an image file with one of the reviewed decoders of Pillow, or with pillow-heif.

    Raises:
        BadImage: the file is a HEIC file, and the extra is not installed.
    """
    if image_format_of(data[:SNIFF_BYTES]) == "HEIF":
        return optional_module("pillow_heif", "HEIF").as_plugin.HeifImageFile(io.BytesIO(data))
    return Image.open(io.BytesIO(data), formats=pillow_formats(suffix))


def file_notes(data: bytes, image: Image.Image, file_format: str) -> list[str]:
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
    elif file_format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        notes += ["rotated or flipped by EXIF orientation"] if tags.get(_ORIENTATION) in TURNS else []
        if tags.get(_PHOTOMETRIC) == _RGB and tags.get(_SAMPLES, 3) > len(image.getbands()):
            notes.append("bands after RGB ignored")
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


def bits_of(data: bytes, image: Image.Image, file_format: str) -> int:
    """Return the bits of each stored value, by the header, such as 8, 10, 12 or 16; 8 if it has no such value."""
    if file_format == "PNG":
        return data[24]
    if file_format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (8,)))  # type: ignore[attr-defined]
    if file_format == "JPEG2000":
        start = data.find(b"\xff\x51", 0, 4096)  # the marker SIZ, which has the depth of the first component
        return 8 if start < 0 or start + 40 >= len(data) else (data[start + 40] & 0x7F) + 1
    if file_format == "AVIF":
        start = data.find(b"av1C")
        flags = data[start + 6] if 0 <= start < len(data) - 6 else 0
        return {0x40: 10, 0x60: 12}.get(flags & 0x60, 8)
    if file_format == "SGI":
        return 8 * data[3]
    return int(image.info.get("bit_depth", 8))  # pillow-heif has the key


def deep_values(data: bytes, image: Image.Image, bits: int) -> np.ndarray | None:
    """Return the values (H, W, C) of an image of more than 8 bits with all their bits, or None if it has 8.

    Pillow keeps the upper byte of 16-bit color. With the opposite byte order it reads the lower byte instead, so that
    two passes give both. Alpha, if any, is the last channel.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        values = np.asarray(image)[:, :, None]
        # Integers of FITS files have a sign, which Pillow drops.
        return values.view(np.int16) if image.format == "FITS" and values.dtype == np.uint16 else values
    if bits != 16 or image.format not in ("PNG", "TIFF"):
        return None
    if image.format == "PNG" and data[25] == _PNG_GRAY_ALPHA:
        # Two 16-bit values have the size of four 8-bit ones, as which Pillow reads them unchanged.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        rewritten = data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]
        bytes_of_pixels = np.asarray(Image.open(io.BytesIO(rewritten), formats=("PNG",))).astype(np.uint16)
        return bytes_of_pixels[:, :, 0::2] << 8 | bytes_of_pixels[:, :, 1::2]
    twin = Image.open(io.BytesIO(data), formats=(image.format,))
    twin.tile = [tile._replace(args=_other_byte(tile.args)) for tile in twin.tile]
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(twin)


def _other_byte(args: Any) -> Any:
    """Return the arguments of a tile of Pillow with the opposite byte order."""
    if isinstance(args, tuple):
        return (_other_byte(args[0]), *args[1:])
    raw_mode, _, order = str(args).partition(";16")
    order = order.replace("N", "L" if sys.byteorder == "little" else "B")
    return f"{raw_mode};16{'B' if order == 'L' else 'L'}"


def orientation_of(image: Image.Image, notes: list[str]) -> int:
    """Return the EXIF orientation, 1 to 8: 1 if it cannot be read, and for TIFF and HEIC, whose readers rotate."""
    if image.format in ("TIFF", "HEIF") or not _EXIF_CARRIERS & image.info.keys():
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


def load_pixels(data: bytes, image: Image.Image, size: int, resize_mode: ResizeMode) -> Image.Image:
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
            draft(candidate, size, resize_mode)
            decoded_pixels.add(candidate.tobytes())
            if len(decoded_pixels) > 1:
                raise
        return candidate


def _mute_libtiff() -> None:
    """Disable messages of libtiff, which it prints to the terminal; Pillow raises the same as exceptions."""
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype = ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):  # libtiff is not exported by this build of Pillow
        pass


_mute_libtiff()
