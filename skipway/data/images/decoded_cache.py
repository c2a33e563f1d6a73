"""Decode cache: all images of a dataset, decoded once into one array in memory or on disk.

Shapes: N images, P the stored size; `pixels` is (N, P, P, C).
"""

import ctypes
import hashlib
import math
import os
import shutil
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from skipway.data.images.decoded_images import DecodedImages, DecodeSettings, take_values
from skipway.data.sources.decode import BadImage, decode, decode_array
from skipway.data.sources.image_source import SPLITS, Item, Skipped, Source
from skipway.data.value_range import stored_dtype
from skipway.errors import InputError, Interrupted, StorageError, printable
from skipway.utils.atomic_files import allocate
from skipway.utils.console import Console
from skipway.utils.devices import available_cores, local_processes
from skipway.utils.format_text import join_names
from skipway.utils.stop_signals import StopFlag

__all__ = [
    "decode_images",
    "decoding_seconds",
    "fingerprint",
    "pixels_fingerprint",
    "share_decoded",
]

RAM_LIMIT = 1 << 30  # bytes; larger datasets are memory-mapped
_THREADS = max(2, available_cores().count // local_processes())  # of Pillow; OMP_NUM_THREADS does not apply
_TIMED = 16  # images in the decoding benchmark
_SMALL_FILE = 4096  # bytes; for smaller files the work under the GIL dominates, and threads do not help


def decode_images(
    source: Source,
    settings: DecodeSettings,
    max_unreadable: float = 0.01,
    console: Console | None = None,
    stop: StopFlag | None = None,
    *,
    need_every_class: bool = True,
    ram_limit: int = RAM_LIMIT,
) -> DecodedImages:
    """Decode all images of `source`; unreadable images are left out and listed in `skipped`.

    Args:
        source, settings: the images, and how to decode them.
        max_unreadable: maximum share of unreadable images.
        console, stop: progress bar, and a flag that interrupts the decoding.
        need_every_class: True to require a readable training image of every class.
        ram_limit: size in bytes above which the pixels are memory-mapped.

    Raises:
        InputError: too many images are unreadable, or a class has no readable training image.
        StorageError: the memory map cannot be created.
        Interrupted: `stop` was set.
    """
    shared, request = _SHARED.get(), (source.name, source.keys, settings, max_unreadable, need_every_class)
    if shared is not None and shared.get("request") == request:
        return _copy_of(shared["images"])
    console, stop = console or Console(quiet=True), stop or StopFlag()
    splits = [split for split in SPLITS if source.count(split)]
    total = sum(source.count(split) for split in splits)
    shape = (total, settings.stored_size, settings.stored_size, settings.channels)
    pixels = _allocate(shape, stored_dtype(settings.value_range), ram_limit)
    bar = console.bar("decoding", total)
    images = DecodedImages(
        name=source.name,
        class_names=source.class_names,
        settings=settings,
        pixels=pixels,
        targets=np.empty(0),
        keys=[],
        digests=[],
        splits={},
        skipped=list(source.skipped),
        notes=Counter(),
        sizes="",
        mirrored=source.mirrored,
        warnings=list(source.warnings),
        task=source.task,
        target_names=source.target_names,
        label_sep=source.label_sep,
    )
    num_decoded = 0
    usable: list[int] = []  # positions in the order of the source
    unreadable: list[tuple[int, Skipped]] = []
    sizes: list[tuple[int, int]] = []
    for split in splits:
        split_start = len(images.keys)
        for key, outcome in _decode_split(source, split, settings):
            num_decoded += 1
            if stop.requested:
                raise Interrupted(f"stopped by {stop.name} while decoding, before training. Run it again.")
            if isinstance(outcome, InputError):
                unreadable.append((num_decoded - 1, Skipped(key, split, "", printable(outcome))))
            else:
                row = len(images.keys)
                pixels[row] = outcome.pixels
                usable.append(num_decoded - 1)
                images.keys.append(key)
                images.digests.append(outcome.digest)
                images.notes.update(outcome.notes)
                sizes.append((outcome.width, outcome.height))
            bar.at(num_decoded)
        images.splits[split] = np.arange(split_start, len(images.keys))
    bar.done()
    count = len(images.keys)
    images.pixels, images.sizes = pixels[:count], _describe_sizes(sizes)
    take_values(images, source, splits, np.array(usable, np.int64), unreadable)
    _refuse_too_many_unreadable(images, total, max_unreadable)
    if need_every_class:
        _refuse_lost_classes(images)
    if shared is not None:
        shared.update(request=request, images=_copy_of(images))
    return images


_SHARED: ContextVar[dict[str, Any] | None] = ContextVar("shared", default=None)


@contextmanager
def share_decoded() -> Iterator[None]:
    """Reuse decoded images within this context, for the folds of a cross-validation."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _copy_of(images: DecodedImages) -> DecodedImages:
    """Return a copy that shares pixels and labels, with its own splits, notes and warnings."""
    return replace(images, splits=dict(images.splits), notes=Counter(images.notes), warnings=list(images.warnings))


def decoding_seconds(source: Source, settings: DecodeSettings) -> float:
    """Estimate the decoding time per image in seconds, from a sample, with all decoding threads."""
    seconds = []
    for content in source.peek()[:_TIMED]:
        begin = time.monotonic()
        _decode_content(content, "", settings)
        seconds.append(time.monotonic() - begin)
    return float(np.mean(seconds)) / max(available_cores().count // local_processes(), 1) if seconds else 0.0


def fingerprint(images: DecodedImages) -> str:
    """Return a SHA-256 hex digest of all names, labels, splits and contents, and of the decode settings.

    `max_pixels` is excluded, because it does not change decoded pixels.
    """
    digest = hashlib.sha256(repr((images.settings.identity, images.class_names)).encode("utf-8", "surrogatepass"))
    for split, indices in images.splits.items():
        for i in indices:
            target = images.targets[i] if images.task == "classification" else images.targets[i].tolist()
            line = f"{split}\0{images.keys[i]}\0{target}\0{images.digests[i]}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))  # names need not be UTF-8
    return digest.hexdigest()


def pixels_fingerprint(images: DecodedImages) -> str:
    """Return a SHA-256 hex digest of all contents and of the decode settings, independent of the splits."""
    return hashlib.sha256(repr((images.settings.identity, images.digests)).encode()).hexdigest()


def _mute_libtiff() -> None:
    """Disable messages of libtiff, which it prints to the terminal; Pillow raises the same as exceptions."""
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype = ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):  # libtiff is not exported by this build of Pillow
        pass


_mute_libtiff()


@dataclass(frozen=True)
class _DecodedImage:
    """Pixels (P, P, C) of one image, SHA-256 digest of its file, notes, and original size."""

    pixels: np.ndarray
    digest: str
    notes: tuple[str, ...]
    width: int
    height: int


_Outcome = _DecodedImage | InputError


def _decode_split(source: Source, split: str, settings: DecodeSettings) -> Iterator[tuple[str, _Outcome]]:
    """Decode the images of a split in order, large files in threads with a bounded queue."""
    waiting: deque[tuple[str, Callable[[], _Outcome]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for key, item in zip(source.keys[split], source.contents(split), strict=True):
            task = partial(_decode_content, item, key=key, settings=settings)
            is_slow = callable(item) or (isinstance(item, bytes) and len(item) > _SMALL_FILE)
            waiting.append((key, pool.submit(task).result if is_slow else task))
            if len(waiting) > 8 * _THREADS:
                first_key, result = waiting.popleft()
                yield first_key, result()
        while waiting:
            first_key, result = waiting.popleft()
            yield first_key, result()
    finally:  # do not decode the rest of the queue if the consumer stops early
        pool.shutdown(cancel_futures=True)


def _decode_content(item: Item, key: str, settings: DecodeSettings) -> _Outcome:
    content = item() if callable(item) else item
    if isinstance(content, InputError):
        return content
    if isinstance(content, np.ndarray):
        pixels = content if content.ndim == 3 else content[:, :, None]
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        try:
            image = decode_array(pixels, **settings.decode_options)
        except BadImage as error:
            return error
        notes = () if pixels.dtype == np.uint8 else image.notes
        return _DecodedImage(image.pixels, digest=digest, notes=notes, width=image.width, height=image.height)
    suffix = os.path.splitext(key)[1].lower()
    suffix = "" if suffix.startswith(".parquet") else suffix
    try:
        image = decode(content, **settings.decode_options, max_pixels=settings.max_pixels, suffix=suffix)
    except BadImage as error:
        return error
    digest = hashlib.sha256(content).hexdigest()
    return _DecodedImage(image.pixels, digest=digest, notes=image.notes, width=image.width, height=image.height)


def _allocate(shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]], ram_limit: int) -> np.ndarray:
    """Allocate an array of pixels in memory, or above `ram_limit` in a temporary memory-mapped file."""
    needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if needed <= ram_limit:
        return np.empty(shape, dtype)
    folder = os.environ.get("SKIPWAY_CACHE") or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
        if free < needed * 1.05:
            raise StorageError(
                f"cannot cache the decoded images: expected {needed:,} bytes of free space in {printable(folder)}, got "
                f"{free:,}. Set SKIPWAY_CACHE to a folder on a larger disk, or use a smaller --img-size."
            )
        with tempfile.TemporaryFile(dir=folder, prefix="skipway-") as file:
            allocate(file, needed)
            return np.memmap(file, dtype, "r+", shape=shape)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot cache the decoded images in {printable(folder)}: {error.strerror}. Set SKIPWAY_CACHE to a "
            "writable folder."
        ) from None


def _refuse_too_many_unreadable(images: DecodedImages, total: int, max_unreadable: float) -> None:
    bad = images.skipped
    if bad and len(bad) > max_unreadable * total:
        raise InputError(
            f"cannot read {len(bad):,} of {total:,} images of {printable(images.name)} ({_reasons(bad)}). Repair or "
            f"remove them, or use --max-unreadable {math.ceil(1000 * len(bad) / total) / 1000}."
        )


def _reasons(bad: list[Skipped]) -> str:
    """Return the reasons of unreadable images, each once, with the first images that have it."""
    keys: dict[str, list[str]] = {}
    for image in bad:
        keys.setdefault(image.reason, []).append(printable(image.key))
    named = (f"{join_names(group, limit=3)}: {reason}" for reason, group in keys.items())
    return join_names(named, limit=5, separator="; ")


def _refuse_lost_classes(images: DecodedImages) -> None:
    if images.task == "regression":
        return
    trained = images.targets[images.splits["train"]]
    counts = trained.sum(axis=0)
    if images.task == "classification":
        counts = np.bincount(trained, minlength=len(images.class_names))
    lost = [name for name, count in zip(images.class_names, counts, strict=True) if not count]
    if lost:
        raise InputError(
            f"cannot use {printable(images.name)}: expected readable training images of every class, got none of "
            f"{printable(lost[0])!r}. Repair them, or remove the class."
        )


def _describe_sizes(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return "no images"
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    smallest, middle, largest = by_area[0], by_area[len(by_area) // 2], by_area[-1]
    if smallest == largest:
        return f"all {smallest[0]} x {smallest[1]} pixels"
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels, median {middle[0]} x {middle[1]}"
