"""Decode cache: all images of a dataset, decoded once into arrays in memory or on the disk.

Shapes: N images, P the stored size; `pixels` is (N, P, P, C).
"""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import numpy as np

from skipway.data.images.decode_content import decode_content
from skipway.data.images.decode_source import DEFAULT_STORAGE, DecodedRows, Storage, decode_source
from skipway.data.images.decoded_images import DecodedImages, DecodeSettings, take_values
from skipway.data.sources.image_source import Skipped, Source
from skipway.data.tables.columns import Column
from skipway.data.tables.row_digests import digest_encoded
from skipway.errors import InputError, printable
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

_TIMED = 16  # images in the decoding benchmark


def decode_images(
    source: Source,
    settings: DecodeSettings,
    max_unreadable: float = 0.01,
    console: Console | None = None,
    stop: StopFlag | None = None,
    *,
    need_every_class: bool = True,
    storage: Storage = DEFAULT_STORAGE,
) -> DecodedImages:
    """Decode all images of `source`; unreadable images are left out and listed in `skipped`.

    Args:
        source, settings: the images, and how to decode them.
        max_unreadable: maximum share of unreadable images.
        console, stop: progress bar, and a flag that interrupts the decoding.
        need_every_class: True to require a readable training image of every class.
        storage: place of the pixels.

    Raises:
        InputError: too many images are unreadable, or a class has no readable training image.
        StorageError: the pixels fit neither into memory nor on the disk, and the data can be read only once.
        Interrupted: `stop` was set.
    """
    shared = _SHARED.get()
    request = (source.name, source.keys, settings, max_unreadable, need_every_class, storage)
    if shared is not None and shared.get("request") == request:
        return _copy_of(shared["images"])
    console, stop = console or Console(quiet=True), stop or StopFlag()
    rows = decode_source(source, settings, storage, console=console, stop=stop)
    total = sum(source.count(split) for split in rows.kept)
    images = DecodedImages(
        name=source.name,
        class_names=source.class_names,
        settings=settings,
        pixels=rows.pixels,
        targets=np.empty(0),
        keys=[],
        digests=rows.digests,
        splits={},
        skipped=list(source.skipped),
        notes=rows.notes,
        sizes=_describe_sizes(rows.sizes),
        mirrored=source.mirrored,
        warnings=list(source.warnings),
        task=source.task,
        target_names=source.target_names,
        label_sep=source.label_sep,
        sums=rows.sums,
    )
    _take_rows(images, source, rows)
    _refuse_too_many_unreadable(images, total, max_unreadable)
    if need_every_class:
        _refuse_lost_classes(images)
    if shared is not None:
        shared.update(request=request, images=_copy_of(images))
    return images


def _take_rows(images: DecodedImages, source: Source, rows: DecodedRows) -> None:
    """Take the names, splits, targets and other values of the images that were decoded."""
    first, usable = 0, [np.empty(0, np.int64)]
    offsets = {}
    for split, kept in rows.kept.items():
        offsets[split] = first
        images.splits[split] = np.arange(len(images.keys), len(images.keys) + len(kept))
        images.keys += [source.keys[split][i] for i in kept]
        usable.append(first + kept)
        first += source.count(split)
    unreadable = [
        (offsets[split] + i, Skipped(source.keys[split][i], split, "", printable(reason)))
        for split, i, reason in rows.failed
    ]
    take_values(images, source, list(rows.kept), np.concatenate(usable), unreadable)


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
        if not isinstance(content, InputError):
            decode_content(content, "", settings)
        seconds.append(time.monotonic() - begin)
    return float(np.mean(seconds)) / max(available_cores().count // local_processes(), 1) if seconds else 0.0


def fingerprint(images: DecodedImages, columns: Sequence[Column] = ()) -> str:
    """Return a SHA-256 hex digest of all names, labels, splits, contents and weights, and of the decode settings.

    `max_pixels` is excluded, because it does not change decoded pixels.

    Args:
        images: images of a run.
        columns: encoders of the feature columns, whose cells are included.
    """
    digest = hashlib.sha256(repr((images.settings.identity, images.class_names)).encode("utf-8", "surrogatepass"))
    if columns and images.columns is not None:
        no_targets = np.empty((len(images.keys), 0))
        digest.update("".join(digest_encoded(images.columns, columns, no_targets)).encode())
    for split, indices in images.splits.items():
        for i in indices:
            target = images.targets[i] if images.task == "classification" else images.targets[i].tolist()
            weight = "" if images.weights is None else f"\0{images.weights[i]!r}"
            line = f"{split}\0{images.keys[i]}\0{target}\0{images.digests[i]}{weight}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))  # names need not be UTF-8
    return digest.hexdigest()


def pixels_fingerprint(images: DecodedImages) -> str:
    """Return a SHA-256 hex digest of all contents and of the decode settings, independent of the splits."""
    return hashlib.sha256(repr((images.settings.identity, images.digests)).encode()).hexdigest()


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


def _describe_sizes(sizes: np.ndarray) -> str:
    """Describe the widths and heights (N, 2) of the original images."""
    if not len(sizes):
        return "no images"
    width, height = sizes.T
    by_area = sizes[np.lexsort((height, width, width * height))].tolist()
    smallest, middle, largest = by_area[0], by_area[len(by_area) // 2], by_area[-1]
    if smallest == largest:
        return f"all {smallest[0]} x {smallest[1]} pixels"
    return f"{smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]} pixels, median {middle[0]} x {middle[1]}"
