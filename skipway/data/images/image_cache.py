"""Cache of decoded images of one preparation on the disk, which are found by the hash of their content.

Shapes: P the stored size, C channels.
"""

import errno
import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from PIL import features

from skipway.data import value_range
from skipway.data.images.decoded_file import DamagedFile, DecodedFile, DecodedFileWriter
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources import decode
from skipway.data.value_range import stored_dtype
from skipway.utils.atomic_files import free_bytes
from skipway.utils.cache_folder import cache_folder, lock_writer, mark_used, remove_unused, sweep_unused, trim_cache

__all__ = ["ImageCache", "decoder_version"]

_MAX_FILE_BYTES = 1 << 30  # a killed writer loses at most one file
_MAX_FILE_ROWS = 1 << 17
_WORTH_SECONDS = 1.0  # datasets that are decoded faster are not stored


@cache
def decoder_version() -> str:
    """Return a hash of everything but the settings that pixels depend on: the code that decodes, and its libraries."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(decode.__file__).parent.glob("*.py")), Path(value_range.__file__)):
        with suppress(OSError):
            digest.update(path.read_bytes())
    codecs = [(name, features.version(name)) for name in ("jpg", "jpg_2000", "zlib", "libtiff", "webp", "avif")]
    readers = [(name, _version(name)) for name in ("pillow", "pillow-heif", "tifffile", "imagecodecs", "pydicom")]
    digest.update(repr((readers, codecs)).encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class ImageCache:
    """Decoded images of one preparation on the disk.

    Args:
        settings: the preparation, to which the version of the decoder is added.
        limit: size limit of the cache in bytes; 0 to write nothing.
        name: name of the dataset, for `skipway cache`.
        has_pixels: False to look up and write only facts about the images.
        root: the cache; default: `cache_folder()`.
    """

    def __init__(
        self, settings: DecodeSettings, *, limit: float, name: str, has_pixels: bool = True, root: Path | None = None
    ):
        self.root = root or cache_folder()
        preparation = (settings.identity, decoder_version())
        self.folder = self.root / "decoded" / hashlib.sha256(repr(preparation).encode()).hexdigest()[:32]
        self.shape = (settings.stored_size, settings.stored_size, settings.channels)
        self.dtype = np.dtype(stored_dtype(settings.value_range))
        self.limit, self.has_pixels = limit, has_pixels
        self.about = {"name": name, "size": settings.size, "shape": self.shape}
        self.files: list[DecodedFile] = []
        self.is_read_only = False
        self.damaged = 0  # files that were removed
        self.problem: OSError | None = None  # reason why nothing more is written
        self._keys = np.empty(0, "S16")
        self._places = np.empty((0, 2), np.int64)
        self._writer: DecodedFileWriter | None = None
        self._begin = 0.0
        self._notes: dict[tuple[str, ...], int] = {}
        if limit:
            self.reload()

    @property
    def can_write(self) -> bool:
        """True if images are written to the disk."""
        return self.limit > 0 and self.problem is None and not self.is_read_only

    def has_room(self, needed: int) -> bool:
        """Return True if the part of `needed` bytes that is not in the cache yet fits on the disk."""
        present = sum(len(file.facts) * file.row_bytes for file in self.files)
        return 1.05 * (needed - present) <= free_bytes(self.folder)

    def stop_writing(self, error: OSError | None = None) -> None:
        """Only read from now on.

        Args:
            error: the reason, which is reported.
        """
        self.is_read_only, self.problem = True, error and error.with_traceback(None)

    def reload(self) -> None:
        """Open the files that other processes have completed."""
        known = {file.path for file in self.files}
        for path in sorted(self.folder.glob("*.decoded")):
            if path in known:
                continue
            try:
                file = DecodedFile(path, self.shape, self.dtype)
            except DamagedFile:
                self.damaged += remove_unused(path)
            except OSError:  # another process has removed it, or the file is not readable
                pass
            else:
                if file.has_pixels or not self.has_pixels:
                    self.files.append(file)
                else:
                    file.close()
        self._index()

    def _index(self) -> None:
        keys = np.concatenate([np.empty(0, "S16"), *(file.facts["key"] for file in self.files)])
        places = [np.empty((0, 2), np.int64)]
        for i, file in enumerate(self.files):
            places.append(np.stack([np.full(len(file.facts), i), np.arange(len(file.facts))], axis=1))
        order = np.argsort(keys, kind="stable")
        self._keys, self._places = keys[order], np.concatenate(places)[order]

    def find(self, keys: Sequence[bytes | None]) -> list[tuple[int, int] | None]:
        """Return the file and row of each key, or None for an image that is not in the cache."""
        places: list[tuple[int, int] | None] = [None] * len(keys)
        known = [i for i, key in enumerate(keys) if key is not None]
        if not known or not len(self._keys):
            return places
        wanted = np.array([keys[i] for i in known], "S16")
        rows = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        for i, row in zip(np.array(known)[self._keys[rows] == wanted], rows[self._keys[rows] == wanted], strict=True):
            places[i] = int(self._places[row, 0]), int(self._places[row, 1])
        return places

    def facts(self, place: tuple[int, int]) -> np.void:
        """Return the facts about a stored image."""
        facts: np.void = self.files[place[0]].facts[place[1]]
        return facts

    def notes(self, place: tuple[int, int]) -> tuple[str, ...]:
        """Return the notes about a stored image."""
        file, row = self.files[place[0]], place[1]
        return file.notes[int(file.facts["notes"][row])]

    @contextmanager
    def writing(self, dataset: str, wait: Callable[[], None]) -> Iterator[None]:
        """Write images within this context, in which no other process decodes the same dataset.

        Args:
            dataset: hash of the dataset.
            wait: called repeatedly while another process decodes it; may raise.
        """
        with lock_writer(self.folder / f".lock-{dataset}", wait):
            sweep_unused(self.folder)
            self._begin = time.monotonic()
            try:
                self.reload()
                yield
            finally:
                if self._writer is not None:  # an exception: the images so far are complete
                    self._commit()

    def add(self, facts: np.ndarray, notes: tuple[str, ...], pixels: np.ndarray) -> tuple[int, int] | None:
        """Write an image, and return its place, which is in `files` after the next commit; None if it was not written.

        Args:
            facts: facts about the image, without the notes.
            notes: notes of its decoding.
            pixels: (P, P, C).
        """
        if not self.can_write:
            return None
        facts["notes"] = self._notes.setdefault(notes, len(self._notes))
        try:
            if self._writer is None:
                self._writer = DecodedFileWriter(
                    self.folder, self.shape, self.dtype, has_pixels=self.has_pixels, about=self.about
                )
            place = len(self.files), self._writer.add(facts, pixels)
        except OSError as error:
            self._fail(error)
            return None
        if self._writer.nbytes >= _MAX_FILE_BYTES or len(self._writer) >= _MAX_FILE_ROWS:
            self._commit()
        return place

    def finish(self, *, always: bool) -> None:
        """Complete the last file; images that were decoded within a second are discarded unless `always` is set."""
        if self._writer is not None and not always and time.monotonic() - self._begin < _WORTH_SECONDS:
            self._writer.discard()
            self._writer = None
        elif self._writer is not None:
            self._commit()

    def _commit(self) -> None:
        assert self._writer is not None
        writer, self._writer = self._writer, None
        try:
            file = writer.commit(list(self._notes))
        except OSError as error:
            writer.discard()
            self._fail(error)
            return
        if file is None:
            self._fail(OSError(errno.ENOENT, "removed by another process"))
            return
        self.files.append(file)
        trim_cache(self.limit, self.root)

    def _fail(self, error: OSError) -> None:
        """Write nothing more, because the disk is full or read-only."""
        self.problem = error.with_traceback(None)  # its frames would keep files open
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def release(self, used: Collection[int]) -> None:
        """Mark the files with the numbers `used`, and close those whose pixels are not needed any more."""
        for number, file in enumerate(self.files):
            if number in used:
                mark_used(file.path)
            if number not in used or not self.has_pixels:
                file.close()

    def close(self) -> None:
        """Close all files."""
        for file in self.files:
            file.close()
