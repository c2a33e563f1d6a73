"""One pass over the images of a split, in threads: each one is found in the cache, or read and decoded.

Shapes: P the stored size, C channels.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from skipway.data.images.content_stamps import ContentStamps
from skipway.data.images.decode_content import content_digest, content_key, decode_content, fits, key_variant
from skipway.data.images.decoded_file import fact_type, row_checksum
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.image_cache import ImageCache
from skipway.data.sources.image_source import Item, read_content
from skipway.data.sources.lazy_content import Stamp
from skipway.errors import InputError
from skipway.utils.devices import available_cores, local_processes
from skipway.utils.map_ahead import map_ahead

__all__ = ["DecodePass", "Outcome", "Resolved", "channel_sums"]

_CHUNK = 8  # images that a thread decodes at a time
_MAX_THREADS = 16  # that wait for a slow disk
NamedItem = tuple[str, Item]


@dataclass
class Resolved:
    """An image that was found in the cache, or decoded.

    Attributes:
        digest: SHA-256 hex digest of the content.
        facts: record of `fact_type`.
        notes: notes of the decoding.
        pixels: (P, P, C) uint8, or None if they are on the disk only.
        place: file and row in the cache; None if the image is not in it.
        is_kept: the image belongs in the cache.
    """

    digest: str
    facts: np.ndarray
    notes: tuple[str, ...]
    pixels: np.ndarray | None
    place: tuple[int, int] | None
    is_kept: bool = True


Outcome = Resolved | InputError


class _NeedsLock(Exception):
    """An image is not in the cache, and this process is not its writer yet."""


class DecodePass:
    """Looks up or decodes images in order.

    Args:
        settings: how to decode images.
        cache: cache of the preparation.
        stamps: digests of unchanged files, or None.
        in_memory: True to return the pixels of every image.
        verify: True to check the pixels of images in the cache, because they cannot be decoded again later.
        lock: called when an image is not in the cache; makes this process its writer.
    """

    def __init__(
        self,
        settings: DecodeSettings,
        cache: ImageCache,
        stamps: ContentStamps | None,
        *,
        in_memory: bool,
        verify: bool,
        lock: Callable[[], None],
    ):
        self.settings, self.cache, self.stamps = settings, cache, stamps
        self.in_memory, self.verify, self._lock = in_memory, verify, lock
        self.is_writer = not cache.can_write
        self.repaired = 0
        self.cores = available_cores().count
        if not cache.can_write:  # else other processes wait while this one decodes
            self.cores = max(1, self.cores // local_processes())
        self.threads = 0
        self._is_over = False

    def outcomes(self, items: Iterable[NamedItem]) -> Iterator[Outcome]:
        """Yield the outcome of each item (name, content), in order."""
        self._is_over = False
        iterator = iter(items)
        chunks = iter(lambda: list(islice(iterator, _CHUNK)), [])
        try:
            if not self.threads:
                yield from self._measured(next(chunks, []))
            for part, found in map_ahead(self._try, chunks, threads=self.threads, ahead=self.threads + 1):
                yield from self._resolved(part) if found is None else found
        finally:
            self._is_over = True  # threads end after the image at hand

    def _measured(self, chunk: list[NamedItem]) -> list[Outcome]:
        """Resolve the first chunk in this thread, and set the number of threads by the share of time it waited."""
        begin, cpu = time.perf_counter(), time.thread_time()
        outcomes = self._resolved(chunk)
        seconds, cpu = time.perf_counter() - begin, time.thread_time() - cpu
        threads = round(self.cores * seconds / max(cpu, 1e-6))
        self.threads = max(self.cores, min(threads, _MAX_THREADS))
        return outcomes

    def _resolved(self, chunk: list[NamedItem]) -> list[Outcome]:
        part, found = self._try(chunk)
        if found is None:
            if not self.is_writer:
                self._lock()
                self.is_writer = True
            found = self._try(chunk)[1]
        assert found is not None
        return found

    def _try(self, chunk: list[NamedItem]) -> tuple[list[NamedItem], list[Outcome] | None]:
        """Return the chunk and its outcomes, or None if an image is not in the cache and others may be writing it."""
        before = [_stamp(content) for _, content in chunk]
        digests = [None] * len(chunk) if self.stamps is None else self.stamps.find(before)
        variants = [key_variant(name, content) for name, content in chunk]
        keys = [d and content_key(d, variant) for d, variant in zip(digests, variants, strict=True)]
        outcomes: list[Outcome] = []
        try:
            for i, place in enumerate(self.cache.find(keys)):
                if self._is_over:
                    break
                name, content = chunk[i]
                hit = digests[i] and place and self._cached(digests[i], place)
                outcomes.append(hit or self._decoded(name, content, before[i]))
        except _NeedsLock:
            return chunk, None
        return chunk, outcomes

    def _cached(self, digest: Any, place: tuple[int, int]) -> Resolved | None:
        """Return a stored image, or None if it has too many pixels or is damaged."""
        facts = self.cache.facts(place)
        if int(facts["width"]) * int(facts["height"]) > self.settings.max_pixels:
            return None
        pixels = None
        if self.in_memory or self.verify:
            pixels = np.empty(self.cache.shape, self.cache.dtype)
            if self.cache.has_pixels and not self.cache.files[place[0]].read_row(place[1], pixels):
                return None
        image = np.array(facts)
        kept = pixels if self.in_memory else None
        return Resolved(digest.hex(), image, self.cache.notes(place), kept, place)

    def _decoded(self, name: str, content: Item, before: Any) -> Outcome:
        """Read an image, and look it up by its content or decode it."""
        is_fitting = self.in_memory and isinstance(content, np.ndarray) and fits(content, self.settings)
        if not self.is_writer and not is_fitting and not isinstance(content, InputError):
            raise _NeedsLock
        raw = read_content(content)
        if isinstance(raw, InputError):
            return raw
        digest = content_digest(raw)
        key = content_key(digest, key_variant(name, raw))
        if self.stamps is not None and before is not None:
            self.stamps.add(before, _stamp(content), digest)
        place = self.cache.find([key])[0]
        if place is not None and (hit := self._cached(digest, place)):
            return hit
        decoded = decode_content(raw, name, self.settings)
        if isinstance(decoded, InputError):
            return decoded
        if place is not None and self.cache.has_pixels:
            self.cache.files[place[0]].repair_row(place[1], decoded.pixels)
            self.repaired += 1
        facts = np.zeros((), fact_type(decoded.pixels.shape[2]))
        facts["key"], facts["checksum"] = key, row_checksum(decoded.pixels)
        facts["width"], facts["height"], facts["sums"] = decoded.width, decoded.height, channel_sums(decoded.pixels)
        return Resolved(digest.hex(), facts, decoded.notes, decoded.pixels, place, not is_fitting)


def channel_sums(pixels: np.ndarray) -> np.ndarray:
    """Return the sum and the sum of squares of each channel of an image (P, P, C), as exact integers (2, C)."""
    channels = pixels.shape[-1]
    if pixels.dtype != np.uint8:
        values = pixels.reshape(-1, channels).astype(np.uint64)
        return np.stack([values.sum(axis=0), (values * values).sum(axis=0)])
    rows = np.ones((channels + 1, pixels.size // channels))
    rows[:channels] = pixels.reshape(-1, channels).T
    products = rows @ rows.T  # exact: integers below 2**53 in float64
    return np.stack([products[channels, :channels], products.diagonal()[:channels]]).astype(np.uint64)


def _stamp(content: Item) -> Stamp | None:
    """Return the state of the file of a lazy content, or None if it has no file or must be read."""
    stamp = getattr(content, "stamp", None)
    result: Stamp | None = None if stamp is None else stamp()
    return result
