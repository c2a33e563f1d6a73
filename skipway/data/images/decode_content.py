"""Decoding of one image of a source, and the hashes by which the cache finds it.

Shapes: P the stored size, C channels; H, W the size of the original.
"""

import hashlib
import os
from dataclasses import dataclass

import numpy as np

from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.decode import BadImage, decode, decode_array
from skipway.data.sources.image_source import Item
from skipway.errors import InputError

__all__ = ["Decoded", "content_digest", "content_key", "decode_content", "fits", "key_variant"]


@dataclass(frozen=True)
class Decoded:
    """Pixels (P, P, C) of one image, notes, and original size."""

    pixels: np.ndarray
    notes: tuple[str, ...]
    width: int
    height: int


def decode_content(content: bytes | np.ndarray, name: str, settings: DecodeSettings) -> Decoded | InputError:
    """Decode an image, or return the reason why it cannot be decoded.

    Args:
        content: a file, or pixels (H, W) or (H, W, C).
        name: name of the image, whose extension is compared with the content.
        settings: how to decode.
    """
    try:
        if isinstance(content, np.ndarray):
            pixels = content if content.ndim == 3 else content[:, :, None]
            image = decode_array(pixels, **settings.decode_options)
        else:
            suffix = key_variant(name, content)
            image = decode(content, **settings.decode_options, max_pixels=settings.max_pixels, suffix=suffix)
    except BadImage as error:
        return error
    is_plain = isinstance(content, np.ndarray) and content.dtype == np.uint8
    notes = () if is_plain else image.notes
    return Decoded(np.ascontiguousarray(image.pixels), notes=notes, width=image.width, height=image.height)


def content_digest(content: bytes | np.ndarray) -> bytes:
    """Return the SHA-256 digest of a file, or of the bytes of an array."""
    if isinstance(content, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(content).data).digest()
    return hashlib.sha256(content).digest()


def key_variant(name: str, content: Item) -> str:
    """Return what the decoding of a content depends on, next to its bytes: its extension, or the shape of an array."""
    if isinstance(content, np.ndarray):
        return f"{content.shape} {content.dtype.str}"
    suffix = os.path.splitext(name)[1].lower()
    return "" if suffix.startswith(".parquet") else suffix


def content_key(digest: bytes, variant: str) -> bytes:
    """Return the hash of 16 bytes by which the cache finds an image.

    Args:
        digest: digest of the content.
        variant: result of `key_variant`.
    """
    return hashlib.sha256(digest + variant.encode("utf-8", "surrogatepass")).digest()[:16]


def fits(pixels: np.ndarray, settings: DecodeSettings) -> bool:
    """Return True if an array needs no conversion."""
    shape = (settings.stored_size, settings.stored_size, settings.channels)
    has_shape = pixels.shape == shape or (pixels.ndim == 2 and (*pixels.shape, 1) == shape)
    return has_shape and pixels.dtype == np.uint8 and not settings.value_range
