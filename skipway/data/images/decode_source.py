"""Decoding of all images of a source: into memory, into the cache on the disk, or for each batch when it is needed.

Shapes: N decoded images, P the stored size, C channels.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np

from skipway.data.images.content_stamps import ContentStamps
from skipway.data.images.decode_content import content_digest, decode_content
from skipway.data.images.decode_pass import DecodePass, Resolved
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.image_cache import ImageCache
from skipway.data.images.stored_pixels import Pixels, StoredPixels
from skipway.data.sources.image_source import SPLITS, Item, Source, read_content
from skipway.data.value_range import stored_dtype
from skipway.errors import InputError, Interrupted, StorageError, printable
from skipway.utils.cache_folder import cache_folder, default_cache_size
from skipway.utils.console import Console
from skipway.utils.devices import local_processes
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = ["DEFAULT_STORAGE", "RAM_LIMIT", "DecodedRows", "Storage", "decode_source"]

RAM_LIMIT = 1 << 30  # bytes; larger datasets are read from the disk
_GB = 10**9
_SAMPLED_PATHS = 64


@dataclass(frozen=True)
class Storage:
    """Place of decoded pixels: in memory, on the disk, or nowhere, in which case each batch is decoded.

    Args:
        ram_limit: bytes of pixels of all processes above which they are not in memory; None for `RAM_LIMIT`.
        cache_size: size limit of the cache in GB, above which pixels are decoded for each batch; 0 for no cache; None
            for `default_cache_size()`.
        keep_pixels: False if few pixels will be used, which are then read or decoded when they are used.
    """

    ram_limit: int | None = None
    cache_size: float | None = None
    keep_pixels: bool = True


DEFAULT_STORAGE = Storage()


@dataclass
class DecodedRows:
    """Decoded images of a source, in the order of its splits and names.

    Attributes:
        pixels: (N, P, P, C) uint8, or uint16 of deep images.
        kept: {split: positions in the source of the images that were decoded}.
        failed: (split, position in the source, reason) of the others.
        digests: N SHA-256 hex digests of the files.
        notes: counts of conversions.
        sizes: (N, 2) width and height of the originals.
        sums: (N, 2, C) sum and sum of squares of the pixels of each channel.
    """

    pixels: Pixels
    kept: dict[str, np.ndarray]
    failed: list[tuple[str, int, InputError]]
    digests: list[str]
    notes: Counter[str]
    sizes: np.ndarray
    sums: np.ndarray


def decode_source(
    source: Source, settings: DecodeSettings, storage: Storage, *, console: Console, stop: StopFlag
) -> DecodedRows:
    """Decode all images of a source, or find them in the cache.

    Args:
        source: the images.
        settings: how to decode them.
        storage: place of the pixels.
        console: console for progress.
        stop: flag that interrupts the decoding.

    Raises:
        StorageError: the pixels fit neither into memory nor on the disk, and the source can be read only once.
        Interrupted: `stop` was set.
    """
    return _Decoding(source, settings, storage, console=console, stop=stop).run()


class _Contents:
    """Contents of a split, which are iterated over once, and by index if the source allows it."""

    def __init__(self, contents: Iterable[Item], remember: bool):
        self.by_index: Sequence[Item] | None = contents if isinstance(contents, Sequence) else None
        self._items: Iterable[Item] = contents
        self._remembered: list[Item] | None = None
        if self.by_index is None:
            items = iter(contents)
            first = list(islice(items, 1))
            self._items = chain(first, items)
            if first and callable(first[0]):
                self._items = self.by_index = list(self._items)
            elif remember and (not first or isinstance(first[0], np.ndarray)):  # arrays are in memory already
                self.by_index = self._remembered = []

    def __iter__(self) -> Iterator[Item]:
        for content in self._items:
            if self._remembered is not None:
                self._remembered.append(content)
            yield content


class _Decoding:
    """One call of `decode_source`."""

    def __init__(self, source: Source, settings: DecodeSettings, storage: Storage, *, console: Console, stop: StopFlag):
        self.source, self.settings, self.console, self.stop = source, settings, console, stop
        self.splits = [split for split in SPLITS if source.count(split)]
        self.total = sum(source.count(split) for split in self.splits)
        self.shape = (settings.stored_size, settings.stored_size, settings.channels)
        self.cache_size = default_cache_size() if storage.cache_size is None else storage.cache_size
        self.dtype = np.dtype(stored_dtype(settings.value_range))
        self.needed = self.total * int(np.prod(self.shape)) * self.dtype.itemsize
        ram_limit = RAM_LIMIT if storage.ram_limit is None else storage.ram_limit
        self.in_memory = storage.keep_pixels and self.needed <= ram_limit // local_processes()
        self.cache = self._cache(self.needed, storage.keep_pixels)
        is_remembered = not self.in_memory
        self.contents = {split: _Contents(source.contents(split), is_remembered) for split in self.splits}
        self.can_repeat = all(contents.by_index is not None for contents in self.contents.values())
        if not self.in_memory and not self.cache.has_pixels and not self.can_repeat:
            raise self._no_place()
        self.stamps = self._stamps()
        self.origins = np.empty((self.total, 2), np.int64)  # split and position in the source of each image
        self.places = np.full((self.total, 2), -1, np.int64)
        self.used: set[int] = set()  # files of the cache
        self.rows = DecodedRows(
            pixels=np.empty((self.total if self.in_memory else 0, *self.shape), self.dtype),
            kept={},
            failed=[],
            digests=[],
            notes=Counter(),
            sizes=np.empty((self.total, 2), np.int64),
            sums=np.empty((self.total, 2, settings.channels), np.uint64),
        )

    def _cache(self, needed: int, keep_pixels: bool) -> ImageCache:
        """Return the cache of the preparation: of pixels if they are within its limit, else of facts only."""
        limit = self.cache_size * _GB
        has_pixels = keep_pixels and needed <= limit
        if self.in_memory and not has_pixels:
            limit = 0.0  # facts do not replace pixels
        cache = ImageCache(self.settings, limit=limit, name=self.source.name, has_pixels=has_pixels)
        reason = f"{needed / _GB:,.1f} GB exceed --cache-size {self.cache_size:g}"
        if has_pixels and not cache.has_room(needed):
            reason = f"the disk of {printable(self._folder)} has too little free space for {needed / _GB:,.1f} GB"
            if self.in_memory:
                self.console.print(f"cache: not written, because {reason}; the images stay in memory")
                cache.stop_writing()
                return cache
            cache.close()
            cache, has_pixels = ImageCache(self.settings, limit=limit, name=self.source.name, has_pixels=False), False
        if keep_pixels and not self.in_memory and not has_pixels:
            self.console.print(f"images: decoded for each batch, because {reason}")
        return cache

    @property
    def _folder(self) -> str:
        return os.fspath(cache_folder())

    def _no_place(self) -> StorageError:
        return StorageError(
            f"cannot keep the decoded images of {printable(self.source.name)}: expected {self.needed:,} bytes in "
            f"memory or in {printable(self._folder)}, got less free space or a lower --cache-size. Set SKIPWAY_CACHE "
            "to a folder on a larger disk, raise --cache-size, or use a smaller --img-size."
        )

    def _stamps(self) -> ContentStamps | None:
        """Return the index of unchanged files, or None for contents that are not in files."""
        if not self.cache.limit:
            return None
        identities = []
        for contents in self.contents.values():
            items = contents.by_index or []
            for i in range(0, len(items), max(1, len(items) // _SAMPLED_PATHS)):
                stamp = getattr(items[i], "stamp", None)
                if stamp is None:
                    break
                state = stamp()
                identities += [] if state is None else [os.path.dirname(state.identity)]
        try:
            return ContentStamps(os.path.commonpath(identities)) if identities else None
        except ValueError:  # files on different drives
            return None

    def run(self) -> DecodedRows:
        """Decode every image."""
        bar = self.console.bar("decoding", self.total)
        count = num_seen = 0
        with ExitStack() as stack:
            resolving = DecodePass(
                self.settings,
                self.cache,
                self.stamps,
                in_memory=self.in_memory,
                verify=not self.in_memory and not self.can_repeat,
                lock=lambda: self._lock(stack),
            )
            for number, split in enumerate(self.splits):
                positions = []
                items = zip(self.source.keys[split], self.contents[split], strict=True)
                for position, outcome in enumerate(resolving.outcomes(items)):
                    num_seen += 1
                    self._refuse_stopped()
                    if isinstance(outcome, InputError):
                        self.rows.failed.append((split, position, outcome))
                    else:
                        self._keep(count, outcome)
                        self.origins[count] = number, position
                        positions.append(position)
                        count += 1
                    bar.at(num_seen)
                self.rows.kept[split] = np.array(positions, np.int64)
            self._finish(resolving)
        bar.done()
        return self._finished(count)

    def _refuse_stopped(self) -> None:
        if self.stop.requested:
            raise Interrupted(f"stopped by {self.stop.name} while decoding, before training. Run it again.")

    def _lock(self, stack: ExitStack) -> None:
        """Become the only process that decodes this dataset; wait while another one does."""
        names = (name for split in self.splits for name in self.source.keys[split])
        digest = hashlib.sha256(self.source.name.encode("utf-8", "surrogatepass"))
        for name in names:
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
        is_reported = False

        def wait() -> None:
            nonlocal is_reported
            self._refuse_stopped()
            if not is_reported:
                is_reported = True
                self.console.print("waiting for another process that decodes the same images")

        try:
            stack.enter_context(self.cache.writing(digest.hexdigest()[:32], wait))
        except OSError as error:
            self.cache.stop_writing(error)
        if self.stamps is not None:
            self.stamps.reload()

    def _keep(self, row: int, image: Resolved) -> None:
        """Store one decoded image."""
        place = image.place
        if place is None and image.is_kept and self.cache.can_write:
            assert image.pixels is not None
            place = self.cache.add(image.facts, image.notes, image.pixels)
        if place is not None:
            self.used.add(place[0])
        if self.in_memory:
            assert isinstance(self.rows.pixels, np.ndarray)
            self.rows.pixels[row] = image.pixels
        elif self.cache.has_pixels and place is not None:
            self.places[row] = place
        elif not self.can_repeat:
            raise self._no_place()
        self.rows.digests.append(image.digest)
        self.rows.notes.update(image.notes)
        self.rows.sizes[row] = image.facts["width"], image.facts["height"]
        self.rows.sums[row] = image.facts["sums"]

    def _finish(self, resolving: DecodePass) -> None:
        """Complete the files of the cache, and report problems with it."""
        self.cache.finish(always=not self.in_memory or local_processes() > 1)
        if self.stamps is not None and self.cache.files:
            try:
                self.stamps.save()
            except StorageError as error:
                self.cache.problem = self.cache.problem or OSError(0, str(error))
        if resolving.repaired or self.cache.damaged:
            what = count_of(resolving.repaired, "image") if resolving.repaired else "files"
            self.console.print(f"cache: decoded damaged {what} again in {printable(self._folder)}")
        if self.cache.problem is not None:
            reason = printable(self.cache.problem.strerror or self.cache.problem)
            where = "stay in memory" if self.in_memory else "are decoded for each batch"
            self.console.print(f"cache: not written to {printable(self._folder)} ({reason}); the images {where}")

    def _finished(self, count: int) -> DecodedRows:
        rows = self.rows
        rows.sizes, rows.sums = rows.sizes[:count], rows.sums[:count]
        self.cache.release(self.used)
        if self.in_memory:
            assert isinstance(rows.pixels, np.ndarray)
            rows.pixels = rows.pixels[:count]
            self.cache.close()
            return rows
        places = self.places[:count]
        places[places[:, 0] >= len(self.cache.files)] = -1  # of a file that could not be completed
        decode_again = _decode_again(self, rows.digests)
        shape = (count, *self.shape)
        rows.pixels = StoredPixels(shape, self.cache.files, places, decode_again, self.console.print, self.dtype)
        return rows


def _decode_again(decoding: _Decoding, digests: list[str]) -> Callable[[int], np.ndarray]:
    """Return a function that decodes an image by its number."""
    splits, origins, settings = decoding.splits, decoding.origins, decoding.settings
    keys, contents = decoding.source.keys, {split: part.by_index for split, part in decoding.contents.items()}

    def decode_again(image: int) -> np.ndarray:
        split, position = splits[origins[image, 0]], int(origins[image, 1])
        items, name = contents[split], keys[split][position]
        if items is None:
            raise StorageError(
                f"cannot read {printable(name)} from the cache: expected an undamaged file, got a damaged one, and the "
                "data can be read only once. Run it again."
            )
        raw = read_content(items[position])
        decoded = raw if isinstance(raw, InputError) else decode_content(raw, name, settings)
        if isinstance(decoded, InputError):
            raise InputError(f"cannot read {printable(name)} again: {printable(decoded)}. Restore it, and run again.")
        assert not isinstance(raw, InputError)
        if content_digest(raw).hex() != digests[image]:
            raise InputError(
                f"cannot use {printable(name)}: expected the content that it had at the start, got another one. "
                "Restore it, or start a new run."
            )
        return decoded.pixels

    return decode_again
