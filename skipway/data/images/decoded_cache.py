"""The packed set: every picture decoded once, before the first step, into one uint8 array in memory or on disk.

Shapes: N pictures, P the packed size; `pixels` is (N, P, P, C).
"""

import ctypes
import hashlib
import io
import math
import os
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from skipway.data.sources.base import SPLITS, Content, Skipped, Source
from skipway.data.sources.decode import BadPicture, decode, size_of
from skipway.errors import InputError, Interrupted, StorageError, printable
from skipway.utils.console import Console
from skipway.utils.devices import available_cores, local_processes
from skipway.utils.signals import StopFlag
from skipway.utils.text import join_names

__all__ = ["Packed", "Packing", "fingerprint", "fitted_array", "natural_packing", "pack"]

RAM_LIMIT = 1 << 30  # bytes; a larger set goes to a memory map
SMALL = 96  # pictures up to this size are trained on as they are
PHOTOGRAPH = 128  # the size that larger ones are trained at
ROOM = 1.15  # larger ones are packed with this much room to crop from
_SQUARE, _LONG = 1.1, 2.0  # longest side over the shortest, up to which pictures are squashed, and cropped
_THREADS = max(2, available_cores().count // local_processes())  # Pillow's, which OMP_NUM_THREADS does not count
_SMALL_FILE = 4096  # bytes, up to which Python's own part of decoding, which one thread at a time runs, is the larger


@dataclass(frozen=True)
class Packing:
    """How pictures become (packed, packed, channels) pixels, of which a network is given (size, size)."""

    size: int
    packed: int
    channels: int
    resize_mode: str = "squash"
    max_pixels: int = 50_000_000
    interpolation: str = "bilinear"

    @property
    def preparation(self) -> dict[str, Any]:
        """How a picture becomes pixels, as the arguments of `decode`."""
        how = {"resize_mode": self.resize_mode, "interpolation": self.interpolation}
        return {"size": self.packed, "cut": self.size, "channels": self.channels, **how}


@dataclass
class Packed:
    """Decoded pictures of all splits, one after the other, with what there is to say about them."""

    name: str
    class_names: tuple[str, ...]
    packing: Packing
    pixels: np.ndarray
    labels: np.ndarray
    keys: list[str]
    digests: list[str]  # SHA-256 of each picture's file
    splits: dict[str, np.ndarray]  # indices of each split
    skipped: list[Skipped]
    notes: Counter[str]
    sizes: str
    mirrored: bool
    warnings: list[str] = field(default_factory=list)


def natural_packing(source: Source, size: int | None, resize_mode: str, max_pixels: int) -> Packing:
    """The sizes and channels that suit the pictures: small ones as they are, photographs at 128 with room to crop.

    With `resize_mode` "auto" nine of ten pictures decide: near squares are squashed, up to 2:1 they are cropped,
    beyond padded.
    """
    sides, ratios, grey = [], [], True
    for content in source.peek():
        if isinstance(content, np.ndarray):
            sides.append(max(content.shape[:2]))
            ratios.append(max(content.shape[:2]) / min(content.shape[:2]))
            grey = grey and content.ndim == 2
        elif isinstance(content, bytes):
            try:
                width, height, mode = size_of(content, max_pixels)
            except BadPicture:
                continue
            sides.append(max(width, height))
            ratios.append(max(width, height) / min(width, height))
            grey = grey and (mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"))
    natural = int(np.median(sides)) if sides else PHOTOGRAPH
    small = natural <= SMALL
    size = size or (natural if small else PHOTOGRAPH)
    if resize_mode == "auto":
        most = float(np.quantile(ratios, 0.9)) if ratios else 1.0
        resize_mode = "squash" if most <= _SQUARE else "crop" if most <= _LONG else "pad"
    packed = size if natural <= size else min(natural, round(size * ROOM))
    return Packing(size, packed, 1 if grey and sides else 3, resize_mode, max_pixels)


def pack(
    source: Source,
    packing: Packing,
    max_unreadable: float = 0.01,
    console: Console | None = None,
    stop: StopFlag | None = None,
    *,
    need_every_class: bool = True,
    ram_limit: int = RAM_LIMIT,
) -> Packed:
    """Decode every picture of `source`; unreadable ones are left out, named and counted, never replaced.

    Raises:
        InputError: more than `max_unreadable` of the pictures are unreadable, or a class that needs one has none.
        StorageError: the memory map does not resize_mode on the disk.
        Interrupted: `stop` was set meanwhile.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    splits = [split for split in SPLITS if source.count(split)]
    total = sum(source.count(split) for split in splits)
    pixels = _room((total, packing.packed, packing.packed, packing.channels), ram_limit)
    bar = console.bar("decoding", total)
    packed = Packed(
        source.name,
        source.class_names,
        packing,
        pixels,
        np.empty(total, np.int64),
        [],
        [],
        {},
        [],
        Counter(),
        "",
        source.mirrored,
        list(source.warnings),
    )
    done = kept = 0
    sizes: list[tuple[int, int]] = []
    for split in splits:
        begun = kept
        for key, label, outcome in _decoded(source, split, packing):
            done += 1
            if stop.requested:
                raise Interrupted(f"stopped by {stop.name} while decoding; nothing was trained yet, start again")
            if isinstance(outcome, InputError):
                packed.skipped.append(Skipped(key, split, source.class_names[label], printable(outcome)))
            else:
                picture, digest, size, notes = outcome
                pixels[kept], packed.labels[kept] = picture, label
                packed.keys.append(key)
                packed.digests.append(digest)
                packed.notes.update(notes)
                sizes.append(size)
                kept += 1
            bar.at(done)
        packed.splits[split] = np.arange(begun, kept)
    bar.done()
    packed.pixels, packed.labels, packed.sizes = pixels[:kept], packed.labels[:kept], _described(sizes)
    _refuse_too_many(packed, total, max_unreadable)
    if need_every_class:
        _refuse_lost_classes(packed)
    return packed


def fingerprint(packed: Packed) -> str:
    """SHA-256 over every picture's name, class, split and content, and over what is made of them.

    Equal sets have equal ones; a limit on what may be read is no part of that.
    """
    shape = replace(packed.packing, max_pixels=0)
    digest = hashlib.sha256(repr((shape, packed.class_names)).encode("utf-8", "surrogatepass"))
    for split, indices in packed.splits.items():
        for i in indices:
            line = f"{split}\0{packed.keys[i]}\0{packed.labels[i]}\0{packed.digests[i]}\n"
            digest.update(line.encode("utf-8", "surrogatepass"))  # names need not be UTF-8
    return digest.hexdigest()


def _mute_libtiff() -> None:
    """libtiff prints what it thinks of a damaged file straight to the terminal; Pillow's exception says it as well."""
    try:
        library = ctypes.CDLL(Image.core.__file__)
        for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
            setter.restype = ctypes.c_void_p
            setter(None)
    except (OSError, AttributeError):  # a Pillow that keeps its libtiff to itself
        pass


_mute_libtiff()

Outcome = tuple[np.ndarray, str, tuple[int, int], tuple[str, ...]]


def _decoded(source: Source, split: str, packing: Packing) -> Iterator[tuple[str, int, Outcome | InputError]]:
    """Every picture of a split in order, decoded by threads that stay a little ahead; small files need none."""
    waiting: deque[tuple[str, int, Callable[[], Outcome | InputError]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        for key, label, content in zip(source.keys[split], source.labels[split], source.contents(split), strict=True):
            decoded = partial(_decode_one, content, key, packing)
            large = isinstance(content, bytes) and len(content) > _SMALL_FILE
            waiting.append((key, int(label), pool.submit(decoded).result if large else decoded))
            if len(waiting) > 8 * _THREADS:
                first_key, first_label, result = waiting.popleft()
                yield first_key, first_label, result()
        while waiting:
            first_key, first_label, result = waiting.popleft()
            yield first_key, first_label, result()
    finally:  # whoever stops listening does not wait for pictures that nobody will see
        pool.shutdown(cancel_futures=True)


def _decode_one(content: Content, key: str, packing: Packing) -> Outcome | InputError:
    if isinstance(content, InputError):
        return content
    if isinstance(content, np.ndarray):
        pixels = content if content.ndim == 3 else content[:, :, None]
        digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        height, width = pixels.shape[:2]
        fitted = fitted_array(pixels, **packing.preparation)
        return fitted, digest, (width, height), ()
    suffix = os.path.splitext(key)[1].lower()
    try:
        picture = decode(
            content,
            **packing.preparation,
            max_pixels=packing.max_pixels,
            suffix="" if suffix.startswith(".parquet") else suffix,
        )
    except BadPicture as error:
        return error
    return picture.pixels, hashlib.sha256(content).hexdigest(), (picture.width, picture.height), picture.notes


def fitted_array(pixels: np.ndarray, *, size: int, channels: int, **preparation: Any) -> np.ndarray:
    """Pixels (H, W, C) as (size, size, channels): as they are where that fits, else as of a lossless file."""
    if pixels.shape == (size, size, channels):
        return pixels
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return decode(file.getvalue(), size=size, channels=channels, **preparation).pixels


def _room(shape: tuple[int, ...], ram_limit: int) -> np.ndarray:
    """An array of that shape in memory, or where it is large in a file that vanishes with the process."""
    needed = int(np.prod(shape))
    if needed <= ram_limit:
        return np.empty(shape, np.uint8)
    folder = os.environ.get("SKIPWAY_CACHE") or tempfile.gettempdir()
    try:
        free = shutil.disk_usage(folder).free
        if free < needed * 1.05:
            raise StorageError(
                f"the packed pictures need {needed:,} bytes, but {printable(folder)} has {free:,} free; set "
                "SKIPWAY_CACHE to a folder on a larger disk, or give a smaller --img-size"
            )
        with tempfile.TemporaryFile(dir=folder, prefix="skipway-") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, needed)  # a disk that fills up later would kill the process
            file.truncate(needed)
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(
            f"cannot pack the pictures into {printable(folder)}: {error.strerror}; set SKIPWAY_CACHE to a folder that "
            "can be written"
        ) from None


def _refuse_too_many(packed: Packed, total: int, max_unreadable: float) -> None:
    bad = packed.skipped
    if bad and len(bad) > max_unreadable * total:
        reasons = join_names((f"{printable(s.key)}: {s.reason}" for s in bad), limit=5, separator="; ")
        raise InputError(
            f"{len(bad):,} of {total:,} pictures of {printable(packed.name)} cannot be read ({reasons}); mend or "
            f"remove them, or accept a share of {math.ceil(1000 * len(bad) / total) / 1000} with --max-unreadable"
        )


def _refuse_lost_classes(packed: Packed) -> None:
    left = np.bincount(packed.labels[packed.splits["train"]], minlength=len(packed.class_names))
    gone = [name for name, count in zip(packed.class_names, left, strict=True) if not count]
    if gone:
        raise InputError(
            f"no training picture of the class {printable(gone[0])!r} of {printable(packed.name)} can be read; mend "
            "or remove them"
        )


def _described(sizes: list[tuple[int, int]]) -> str:
    if not sizes:
        return "no picture"
    by_area = sorted(sizes, key=lambda s: (s[0] * s[1], s))
    least, middle, most = by_area[0], by_area[len(by_area) // 2], by_area[-1]
    if least == most:
        return f"all {least[0]} x {least[1]} pixels"
    return f"{least[0]} x {least[1]} to {most[0]} x {most[1]} pixels, median {middle[0]} x {middle[1]}"
