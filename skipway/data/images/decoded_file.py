"""File of decoded images in the cache: rows of pixels that never change, and a table of facts about them.

Format: R rows of pixels (P, P, C) uint8, or none; R facts; a header in JSON; its length, checksum and a signature. Each
row and the table have checksums, because caches outlive crashes and bad disks.

Shapes: P the stored size, C channels.
"""

import contextlib
import json
import os
import struct
import threading
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.utils.atomic_files import make_folder, temporary_path
from skipway.utils.cache_folder import lock_shared

__all__ = ["DecodedFile", "DecodedFileWriter", "DamagedFile", "about_file", "fact_type", "row_checksum"]

SUFFIX = ".decoded"
_END = struct.Struct("<II8s")  # length and checksum of the header
_SIGNATURE = b"skipway\x01"
_SEEKING = threading.Lock()  # for systems without positional reads


class DamagedFile(Exception):
    """A file of the cache is damaged or incomplete."""


def fact_type(channels: int) -> np.dtype[Any]:
    """Return the dtype of the facts about an image with `channels` channels.

    `key` is a hash of the content, `checksum` that of the pixels, `width` and `height` those of the original. `notes`
    is an index into a list of notes. `sums` (2, C) are the sum and the sum of squares of the pixels of each channel.
    """
    sizes = [("checksum", "<u4"), ("width", "<u4"), ("height", "<u4"), ("notes", "<u4")]
    return np.dtype([("key", "S16"), *sizes, ("sums", "<u8", (2, channels))])


def row_checksum(pixels: np.ndarray) -> int:
    """Return the checksum of the pixels of an image, which must be contiguous."""
    return zlib.crc32(pixels.data.cast("B"))


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape)) * dtype.itemsize


def about_file(path: Path) -> dict[str, Any]:
    """Return the plain values in the header of a file, or nothing if it is damaged."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            length, checksum, signature = _END.unpack(file.read())
            file.seek(max(0, size - _END.size - length))
            header = file.read(length)
        values: dict[str, Any] = json.loads(header)
        return values if signature == _SIGNATURE and zlib.crc32(header) == checksum else {}
    except (OSError, ValueError, struct.error):
        return {}


class DecodedFile:
    """A complete file of decoded images, which is in use until it is closed.

    Args:
        path: the file.
        shape: (P, P, C) of a row.
        dtype: uint8 or uint16.

    Raises:
        DamagedFile: the file is damaged, or of another shape.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]):
        self.path, self.shape, self.dtype = path, shape, dtype
        flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.descriptor = os.open(path, flags)
        self._close = weakref.finalize(self, os.close, self.descriptor)
        lock_shared(self.descriptor)
        try:
            self._read_header()
        except OSError:
            self.close()
            raise
        except (ValueError, KeyError, TypeError, struct.error) as error:
            self.close()
            raise DamagedFile(str(path)) from error

    def _read_header(self) -> None:
        size = os.fstat(self.descriptor).st_size
        length, checksum, signature = _END.unpack(self._read(size - _END.size, _END.size))
        header = self._read(size - _END.size - length, length)
        if signature != _SIGNATURE or zlib.crc32(header) != checksum:
            raise ValueError("the header is damaged")
        values = json.loads(header)
        dtype = fact_type(self.shape[-1])
        count, row_bytes = values["count"], values["row_bytes"]
        start = size - _END.size - length - count * dtype.itemsize
        table = self._read(start, count * dtype.itemsize)
        if zlib.crc32(table) != values["table_checksum"] or start != count * row_bytes:
            raise ValueError("the table is damaged")
        self.has_pixels: bool = row_bytes > 0
        if self.has_pixels and row_bytes != _row_bytes(self.shape, self.dtype):
            raise ValueError("the rows have another shape")
        self.row_bytes: int = row_bytes
        self.facts = np.frombuffer(table, dtype)
        self.notes = [tuple(notes) for notes in values["notes"]]

    def close(self) -> None:
        """Close the file, after which another process may remove it."""
        self._close()

    def _read(self, position: int, length: int) -> bytes:
        if position < 0 or length < 0:
            raise ValueError("the file is too short")
        data = bytearray(length)
        if not self._read_into(memoryview(data), position):
            raise ValueError("the file is too short")
        return bytes(data)

    def _read_into(self, buffer: memoryview, position: int) -> bool:
        """Fill `buffer` from the file; return False if the file ends before."""
        while buffer:
            if hasattr(os, "preadv"):
                count = os.preadv(self.descriptor, [buffer], position)
            else:
                with _SEEKING:
                    os.lseek(self.descriptor, position, os.SEEK_SET)
                    part = os.read(self.descriptor, len(buffer))
                    buffer[: len(part)] = part
                    count = len(part)
            if not count:
                return False
            buffer, position = buffer[count:], position + count
        return True

    def read_row(self, row: int, pixels: np.ndarray) -> bool:
        """Read the pixels of a row into `pixels` (P, P, C); return False if they are damaged or cannot be read."""
        try:
            is_complete = self._read_into(pixels.data.cast("B"), row * self.row_bytes)
        except OSError:
            return False
        return is_complete and row_checksum(pixels) == int(self.facts["checksum"][row])

    def repair_row(self, row: int, pixels: np.ndarray) -> None:
        """Write the pixels of a damaged row again, if the file can be written."""
        with contextlib.suppress(OSError), open(self.path, "r+b", buffering=0) as file:
            if os.path.samestat(os.fstat(file.fileno()), os.fstat(self.descriptor)):
                file.seek(row * self.row_bytes)
                file.write(pixels.data.cast("B"))


class DecodedFileWriter:
    """Writer of a file of decoded images, which has a temporary name until it is complete.

    Args:
        folder: folder of the file, which is created.
        shape: (P, P, C) of a row.
        dtype: uint8 or uint16.
        has_pixels: False to write only facts.
        about: plain values for the header, which `skipway cache` lists.

    Raises:
        OSError: the file cannot be created.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], *, has_pixels: bool, about: dict[str, Any]
    ):
        make_folder(folder)
        self.dtype = dtype
        self.shape, self.has_pixels, self.about = shape, has_pixels, about
        self.path = temporary_path(folder / f"new{SUFFIX}")
        self._facts = np.empty(1024, fact_type(shape[-1]))
        self._count = 0
        self.nbytes = 0
        self._file = open(self.path, "xb", buffering=0)  # noqa: SIM115
        lock_shared(self._file.fileno())

    def __len__(self) -> int:
        return self._count

    def add(self, facts: np.ndarray, pixels: np.ndarray) -> int:
        """Write an image, and return the number of its row."""
        if self.has_pixels:
            self._write(pixels.data.cast("B"))
        if self._count == len(self._facts):
            self._facts = np.concatenate([self._facts, np.empty_like(self._facts)])
        self._facts[self._count] = facts
        self._count += 1
        return self._count - 1

    def _write(self, data: memoryview) -> None:
        self.nbytes += len(data)
        while data:  # a call writes at most 2 GiB, and less if the disk is full
            data = data[self._file.write(data) :]

    def commit(self, notes: Sequence[tuple[str, ...]]) -> DecodedFile | None:
        """Complete the file and open it; return None if it is empty or another process has removed it.

        Args:
            notes: list of notes to which the facts refer.
        """
        if not self._count:
            self.discard()
            return None
        table = self._facts[: self._count].tobytes()
        header = {
            **self.about,
            "count": self._count,
            "row_bytes": _row_bytes(self.shape, self.dtype) if self.has_pixels else 0,
            "notes": notes,
            "table_checksum": zlib.crc32(table),
        }
        text = json.dumps(header).encode()
        self._write(memoryview(table + text + _END.pack(len(text), zlib.crc32(text), _SIGNATURE)))
        path = self.path.with_name(f"{self.path.name.split('-')[-2]}{SUFFIX}")
        os.rename(self.path, path)
        try:
            return DecodedFile(path, self.shape, self.dtype)
        except (OSError, DamagedFile):
            return None
        finally:
            self._file.close()

    def discard(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        self._file.close()
