"""Decompression of a tar archive to a temporary file, because a compressed one has no random access."""

import bz2
import gzip
import lzma
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from skipway.errors import STORAGE_ERRNOS, InputError, StorageError, printable, reason_of
from skipway.utils.atomic_files import make_folder
from skipway.utils.cache_folder import cache_folder

__all__ = ["decompressed", "is_compressed"]

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_PART = 1 << 24  # bytes that are decompressed at a time
_MAX_RATIO = 200  # of decompressed to compressed bytes, above _MIN_BOMB: images are compressed already
_MIN_BOMB = 1 << 30


def is_compressed(head: bytes) -> bool:
    """Return True for the first bytes of a gzip, bzip2 or xz file."""
    return head.startswith(tuple(_OPENERS))


def decompressed(path: Path) -> BinaryIO:
    """Decompress a file to a temporary file without a name, in the cache folder.

    Raises:
        InputError: the file is damaged, or expands like a decompression bomb.
        StorageError: the disk has too little free space.
    """
    folder, where = cache_folder(), printable(path)
    try:
        make_folder(folder)
        file = cast(BinaryIO, tempfile.TemporaryFile(dir=folder, prefix="skipway-"))
    except OSError as error:
        raise StorageError(
            f"cannot decompress {where} to {printable(folder)}: {error.strerror}. Set SKIPWAY_CACHE to a writable "
            "folder."
        ) from None
    try:
        with _opened(path) as source:
            _copy(source, file, path=path, folder=folder)
    except BaseException as error:
        file.close()
        if isinstance(error, OSError) and error.errno in STORAGE_ERRNOS:
            raise StorageError(
                f"cannot decompress {where} to {printable(folder)}: {error.strerror}. Set SKIPWAY_CACHE to a folder on "
                "a larger disk, or unpack it."
            ) from None
        if isinstance(error, (zlib.error, lzma.LZMAError, EOFError, OSError)) and not isinstance(error, StorageError):
            raise InputError(
                f"cannot decompress {where}: expected an intact archive, got {reason_of(error)}. Download or create it "
                "again."
            ) from None
        raise
    return file


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        head = file.read(8)
    opener = next(opener for magic, opener in _OPENERS.items() if head.startswith(magic))
    return cast(IO[bytes], opener(path, "rb"))


def _copy(source: IO[bytes], file: BinaryIO, *, path: Path, folder: Path) -> None:
    """Copy decompressed bytes, as long as the disk has space and the archive does not expand like a bomb."""
    packed, written = os.path.getsize(path), 0
    while part := source.read(_PART):
        written += len(part)
        if written > _MIN_BOMB and written > _MAX_RATIO * packed:
            raise InputError(
                f"cannot decompress {printable(path)}: expected at most {_MAX_RATIO} times its {packed:,} bytes, got "
                "more. Unpack it yourself, and pass the folder, if that is intended."
            )
        if shutil.disk_usage(folder).free < 2 * len(part):
            raise StorageError(
                f"cannot decompress {printable(path)}: expected more free space in {printable(folder)} than for its "
                f"first {written:,} bytes. Set SKIPWAY_CACHE to a folder on a larger disk, or unpack it."
            )
        file.write(part)
    file.flush()
