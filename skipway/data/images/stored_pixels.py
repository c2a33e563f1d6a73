"""Pixels of images that are not in memory: read from files of the cache, or decoded when a batch needs them.

Shapes: N images, P the stored size, C channels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.data.images.decoded_file import DecodedFile
from skipway.utils.devices import available_cores, local_processes
from skipway.utils.map_ahead import map_ahead

__all__ = ["Pixels", "StoredPixels", "gather", "gather_ahead", "gather_into", "threads_ahead"]

_AHEAD = 2  # batches that are read or decoded ahead of the one in use


@dataclass
class StoredPixels:
    """Pixels (N, P, P, C) of images on the disk, which are read or decoded by index.

    Attributes:
        shape: (N, P, P, C).
        files: files of the cache.
        places: (N, 2) file and row of each image; file -1 for an image that is decoded when it is needed.
        decode: function of an image's index that decodes it again.
        report: called once if a file of the cache is damaged, with a line.
        dtype: uint8, or uint16 of deep images.
    """

    shape: tuple[int, ...]
    files: list[DecodedFile]
    places: np.ndarray
    decode: Callable[[int], np.ndarray]
    report: Callable[[str], None]
    dtype: np.dtype[Any]
    _is_reported: bool = False

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes: 4."""
        return len(self.shape)

    @property
    def is_decoded(self) -> bool:
        """True if all images are on the disk."""
        return bool((self.places[:, 0] >= 0).all())

    def __getitem__(self, index: int | np.integer | slice | np.ndarray) -> np.ndarray:
        """Return the pixels of one image (P, P, C), or of several (B, P, P, C)."""
        if isinstance(index, int | np.integer):
            return self._take(np.array([range(len(self))[index]]))[0]
        return self._take(np.arange(len(self))[index])

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self._take(np.arange(len(self)))

    def _take(self, ids: np.ndarray) -> np.ndarray:
        pixels = np.empty((len(ids), *self.shape[1:]), self.dtype)
        self.take_into(ids, pixels)
        return pixels

    def take_into(self, ids: np.ndarray, pixels: np.ndarray) -> None:
        """Write the pixels of the images `ids` to `pixels` (B, P, P, C)."""
        files, rows = self.places[ids].T
        for i in np.lexsort((ids, rows, files)):  # neighbors in a file are read one after the other
            self._read(int(ids[i]), int(files[i]), int(rows[i]), pixels[i])

    def _read(self, image: int, file: int, row: int, pixels: np.ndarray) -> None:
        if file >= 0 and self.files[file].read_row(row, pixels):
            return
        pixels[...] = self.decode(image)
        if file >= 0:
            if not self._is_reported:
                self._is_reported = True
                self.report(f"repaired damaged images in {self.files[file].path.name} of the cache: decoded again")
            self.files[file].repair_row(row, pixels)


Pixels = np.ndarray | StoredPixels


def gather(pixels: Pixels, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return an array of pixels, and the rows of the images `ids` in it; pixels in memory are not copied."""
    return (pixels, ids) if isinstance(pixels, np.ndarray) else (pixels[ids], np.arange(len(ids)))


def gather_into(pixels: Pixels, ids: np.ndarray, out: np.ndarray) -> None:
    """Write the pixels of the images `ids` to `out` (B, P, P, C)."""
    if isinstance(pixels, StoredPixels):
        pixels.take_into(ids, out)
    elif pixels.flags.c_contiguous:
        np.take(pixels, ids, axis=0, out=out, mode="clip")  # "raise" would gather into a second array first
    else:  # which `take` would copy as a whole
        out[...] = pixels[ids]


def threads_ahead(pixels: Pixels) -> int:
    """Return the number of threads that gather batches: several if images are decoded again for each batch."""
    if isinstance(pixels, np.ndarray) or pixels.is_decoded:
        return 1
    return max(1, available_cores().count // local_processes())


def gather_ahead(
    pixels: Pixels, batches: Iterable[np.ndarray]
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]]:
    """Yield the ids of each batch with the result of `gather`, in threads ahead of the batch in use.

    Args:
        pixels: pixels of all images.
        batches: (B,) ids of each batch.
    """
    if isinstance(pixels, np.ndarray):
        for ids in batches:
            yield ids, gather(pixels, ids)
        return
    threads = threads_ahead(pixels)
    yield from map_ahead(lambda ids: (ids, gather(pixels, ids)), batches, threads=threads, ahead=max(_AHEAD, threads))
