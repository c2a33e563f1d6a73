"""Image formats that are read, and how a file is recognized as an image.

A file counts as an image by its suffix, or by its first bytes if the suffix belongs to no format.
"""

import re

from PIL import Image

from skipway.errors import InputError

__all__ = [
    "FORMAT_OF_SUFFIX",
    "LEFT_OUT",
    "NOT_READ",
    "PILLOW_FORMATS",
    "SNIFF_BYTES",
    "SUFFIXES",
    "BadImage",
    "image_format_of",
    "pillow_formats",
]


class BadImage(InputError):
    """An image file cannot be decoded; the message is a short reason without the file name."""


# Reviewed decoders of Pillow: they decode in this process only, and open no other file. The first line has those that
# earlier versions read. Pillow tries the formats in this order.
PILLOW_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"),
    *("AVIF", "JPEG2000", "PPM", "PSD", "QOI", "DDS", "ICO", "ICNS", "CUR", "FITS", "SGI", "SUN", "BLP", "FTEX"),
    *("DCX", "FLI", "PIXAR", "MSP", "XPM"),
)
# Decoders that accept nearly any content. They are used only for a file with their suffix.
_BY_SUFFIX_ONLY = ("TGA", "PCX", "DIB", "XBM", "GBR", "PCD")
LEFT_OUT = {
    "EPS": "runs Ghostscript, an interpreter of programs",
    "WMF": "draws with an interface of Windows, or a handler of another package",
    "IPTC": "opens embedded content of any format",
    "BUFR": "only names the format; a handler of another package would decode",
    "GRIB": "only names the format; a handler of another package would decode",
    "HDF5": "only names the format; a handler of another package would decode",
    "MPEG": "only names the format; no decoder for video",
    "IM": "is deprecated in Pillow",
    "IMT": "has no suffix and no signature",
    "MCIDAS": "has no suffix",
    "SPIDER": "has no suffix and no signature",
    "XVTHUMB": "has no suffix; thumbnails of an image viewer",
}
_MORE_SUFFIXES = {
    "JPEG": (".mpo",),
    "HEIF": (".heic", ".heif", ".hif", ".heics", ".heifs"),
    "DICOM": (".dcm", ".dicom", ".dic"),
    "NPY": (".npy",),
}
_RAW = "camera raw: expected a developed image. Convert it to JPEG, PNG or TIFF"
NOT_READ = dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"), _RAW)
NOT_READ |= dict.fromkeys((".svg", ".eps", ".ps", ".pdf", ".wmf", ".emf"), "drawing: convert it to PNG")
NOT_READ |= dict.fromkeys(
    (".mp4", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"), "video: save its frames as images"
)
NOT_READ |= {
    ".jxl": "JPEG XL: convert it to PNG or JPEG",
    ".exr": "OpenEXR: convert it to TIFF or .npy",
    ".nii": "volume: save its slices as .npy, TIFF or DICOM files",
    ".npz": "archive of arrays: save one image per .npy file",
    ".mat": "MATLAB file: save one image per .npy file",
    ".h5": "HDF5 file: save one image per .npy file",
}


def _suffixes() -> dict[str, str]:
    """Return {suffix: format} of the reviewed formats that the installed Pillow decodes, and of the extras."""
    Image.init()
    reviewed = {name for name in (*PILLOW_FORMATS, *_BY_SUFFIX_ONLY) if name in Image.OPEN}
    formats = {suffix: name for suffix, name in Image.registered_extensions().items() if name in reviewed}
    for name, suffixes in _MORE_SUFFIXES.items():
        formats |= dict.fromkeys(suffixes, name)
    return formats


FORMAT_OF_SUFFIX = _suffixes()
SUFFIXES = frozenset(FORMAT_OF_SUFFIX)
SNIFF_BYTES = 144  # the signature of DICOM ends at 132
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"8BPS\0\1", "PSD"),
    (b"qoif", "QOI"),
    (b"DDS \x7c\0\0\0", "DDS"),
    (b"SIMPLE  =", "FITS"),
    (b"\x93NUMPY", "NPY"),
)
_NETPBM = re.compile(rb"P([1-6]\s+[\d#]|[fF]\s+\d)")
_BMP_HEADERS = frozenset((12, 40, 52, 56, 64, 108, 124))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


def image_format_of(first_bytes: bytes) -> str | None:
    """Return the format of an image file by its first `SNIFF_BYTES` bytes, or None if they are not those of an image.

    Formats without a distinctive signature, such as TGA, are recognized by their suffix only.

    >>> image_format_of(b"\\xff\\xd8\\xff\\xe0"), image_format_of(b"BMW is a brand of cars.")
    ('JPEG', None)
    """
    for signature, name in _SIGNATURES:
        if first_bytes.startswith(signature):
            return name
    if first_bytes[:4] == b"RIFF" and first_bytes[8:12] == b"WEBP":
        return "WEBP"
    if first_bytes[:2] == b"BM" and int.from_bytes(first_bytes[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if first_bytes[4:8] == b"ftyp":
        return _format_of_brands(first_bytes)
    if first_bytes[128:132] == b"DICM":
        return "DICOM"
    return "PPM" if _NETPBM.match(first_bytes) else None


def _format_of_brands(first_bytes: bytes) -> str | None:
    """Return "AVIF" or "HEIF" by the brands of an ISO media file, or None for others, such as video."""
    end = min(int.from_bytes(first_bytes[:4], "big"), len(first_bytes))
    brands = {first_bytes[8:12], *(first_bytes[i : i + 4] for i in range(16, end, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


def pillow_formats(suffix: str) -> tuple[str, ...]:
    """Return the formats in which Pillow may decode a file with this suffix."""
    own = FORMAT_OF_SUFFIX.get(suffix.lower(), "")
    return (*PILLOW_FORMATS, own) if own in _BY_SUFFIX_ONLY else PILLOW_FORMATS
