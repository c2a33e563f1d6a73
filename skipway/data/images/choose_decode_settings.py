"""Choice of the settings for decoding a dataset: size, channels, resize mode and value range, by a sample of it."""

from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from skipway.data.image_spec import ResizeMode
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.decode import BadImage, deep_values_of, header_of
from skipway.data.sources.image_source import Content, Source
from skipway.data.value_range import ValueRange, compute_range
from skipway.errors import InputError

__all__ = ["ROOM", "SMALL", "choose_decode_settings"]

SMALL = 96  # images up to this size are not resized
PHOTOGRAPH = 128  # default input size for larger images
ROOM = 1.15  # larger images are stored at this multiple of the input size, to crop from
_SQUASHED_RATIO = 1.1  # longest over shortest side; images up to this ratio are squashed
_CROPPED_RATIO = 2.0  # images up to this ratio are cropped, others are padded


def choose_decode_settings(source: Source, size: int | None, resize_mode: str, max_pixels: int) -> DecodeSettings:
    """Choose size, channels and resize mode from a sample of the training images.

    Deep images (16-bit, 32-bit or float) get a value range from the same sample. Without a `size`, small images keep
    theirs, and larger ones get 128. With `resize_mode` "auto", the 90th percentile
    of the aspect ratio decides between squash, crop and pad. `max_pixels` limits the pixels of a source image.
    """
    contents = source.peek()
    headers = []
    for content in contents:
        try:
            headers += [] if isinstance(content, InputError) else [header_of(content, max_pixels)]
        except BadImage:
            continue
    sides = [max(header.width, header.height) for header in headers]
    ratios = [max(header.width, header.height) / min(header.width, header.height) for header in headers]
    channels = _channels_for([header.channels for header in headers])
    is_deep = any(header.is_deep for header in headers)
    natural = int(np.median(sides)) if sides else PHOTOGRAPH
    small = natural <= SMALL
    size = size or (natural if small else PHOTOGRAPH)
    return DecodeSettings(
        size=size,
        stored_size=size if natural <= size else min(natural, round(size * ROOM)),
        channels=channels,
        resize_mode=_resize_mode_for(ratios) if resize_mode == "auto" else cast(ResizeMode, resize_mode),
        max_pixels=max_pixels,
        value_range=_value_range_of(contents, channels, max_pixels) if is_deep else (),
    )


def _channels_for(counts: list[int]) -> int:
    """Return 1 if all images are gray, 3 for gray and RGB, else the most frequent number of channels."""
    if set(counts) <= {1, 3}:
        return 1 if set(counts) == {1} else 3
    return max(set(counts), key=lambda channels: (counts.count(channels), channels))


def _resize_mode_for(ratios: list[float]) -> ResizeMode:
    ratio = float(np.quantile(ratios, 0.9)) if ratios else 1.0
    if ratio <= _SQUASHED_RATIO:
        return "squash"
    return "crop" if ratio <= _CROPPED_RATIO else "pad"


def _value_range_of(contents: Sequence[Content], channels: int, max_pixels: int) -> ValueRange:
    """Compute the range of the deep images among `contents`; unreadable images and images of 8 bits are left out."""
    return compute_range(_deep_images(contents, channels, max_pixels), channels)


def _deep_images(contents: Sequence[Content], channels: int, max_pixels: int) -> Iterator[np.ndarray]:
    for content in contents:
        if not isinstance(content, bytes | np.ndarray):
            continue
        try:
            values = deep_values_of(content, channels, max_pixels)
        except BadImage:
            continue
        if values is not None:
            yield values
