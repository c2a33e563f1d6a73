"""Index of unchanged files: the digest of each file's content by path, size, times and inode, as in git's index.

A file that was changed shortly before it was read is not indexed: it may change again within the granularity of its
times. Each dataset has a file of its own, whose header names the folder of the dataset.
"""

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.sources.lazy_content import Stamp
from skipway.utils.atomic_files import make_folder, write_file
from skipway.utils.cache_folder import cache_folder, mark_used

__all__ = ["ContentStamps"]

_RECORD = np.dtype(
    [("name", "S16"), ("size", "<u8"), ("mtime", "<i8"), ("ctime", "<i8"), ("inode", "<u8"), ("digest", "V32")]
)
_SUFFIX = ".stamps"
_RACY_NS = 2_000_000_000  # the coarsest granularity of file times, that of FAT
_HEADER_BYTES = 1 << 16
_MOST_OLD = 2_000_000  # records of files outside of this run


class ContentStamps:
    """Digests of the files of a dataset that have not changed since they were read.

    Args:
        place: common folder of the files.
        root: folder of the index; default: that of the cache.
    """

    def __init__(self, place: str, root: Path | None = None):
        self.place = place
        self.root = root or cache_folder("stamps")
        self._records = np.empty(0, _RECORD)
        self._used = np.empty(0, bool)
        self._new: list[tuple[Any, ...]] = []
        self.reload()

    @property
    def path(self) -> Path:
        """File of the index of this dataset."""
        return self.root / f"{hashlib.sha256(os.fsencode(self.place)).hexdigest()[:32]}{_SUFFIX}"

    def reload(self) -> None:
        """Read the index of the dataset, and those of folders in it or around it."""
        parts = [self._read(path) for path in sorted(self.root.glob(f"*{_SUFFIX}"), key=lambda path: path == self.path)]
        records = np.concatenate([np.empty(0, _RECORD), *parts])
        # The last record of a name counts: that of this dataset.
        _, last = np.unique(records["name"][::-1], return_index=True)
        self._records = records[len(records) - 1 - last]
        self._used = np.zeros(len(self._records), bool)

    def _read(self, path: Path) -> np.ndarray:
        """Return the records of a file, which is removed if it is damaged; none if it is of another dataset."""
        nothing = np.empty(0, _RECORD)
        try:
            with open(path, "rb") as file:
                header = json.loads(file.readline(_HEADER_BYTES))
                if not _are_nested(header["place"], self.place):
                    return nothing
                data = file.read()
            if zlib.crc32(data) != header["checksum"] or len(data) % _RECORD.itemsize:
                raise ValueError("the records are damaged")
        except OSError:
            return nothing
        except (ValueError, KeyError, TypeError):
            with contextlib.suppress(OSError):
                path.unlink()
            return nothing
        mark_used(path)
        return np.frombuffer(data, _RECORD)

    def __len__(self) -> int:
        return len(self._records)

    def find(self, stamps: Sequence[Stamp | None]) -> list[bytes | None]:
        """Return the SHA-256 digest of each file's content, or None for a file that is new or may have changed."""
        digests: list[bytes | None] = [None] * len(stamps)
        known = [i for i, stamp in enumerate(stamps) if stamp is not None]
        if not known or not len(self._records):
            return digests
        wanted = np.array([_record(stamps[i], bytes(32)) for i in known], _RECORD)
        places = np.searchsorted(self._records["name"], wanted["name"])
        found = self._records[np.minimum(places, len(self._records) - 1)]
        same = np.ones(len(known), bool)
        for name in _RECORD.names[:-1]:  # type: ignore[index]
            same &= found[name] == wanted[name]
        self._used[places[same]] = True
        for row in np.flatnonzero(same):
            digests[known[row]] = found["digest"][row].tobytes()
        return digests

    def add(self, before: Stamp, after: Stamp | None, digest: bytes) -> None:
        """Record the digest of a file.

        Args:
            before: state of the file before it was read.
            after: state of the file after it was read.
            digest: SHA-256 digest of its content.
        """
        if before == after and max(before.mtime_ns, before.ctime_ns) < time.time_ns() - _RACY_NS:
            self._new.append(_record(before, digest))

    def save(self) -> None:
        """Write the new records.

        Raises:
            StorageError: the file cannot be written.
        """
        if not self._new:
            return
        new = np.array(self._new, _RECORD)
        old = ~np.isin(self._records["name"], new["name"])
        if (old & ~self._used).sum() > _MOST_OLD:  # of files that were removed from the dataset, or are in other splits
            old &= self._used
        data = np.concatenate([self._records[old], new]).tobytes()
        header = json.dumps({"place": self.place, "checksum": zlib.crc32(data)}).encode()
        with contextlib.suppress(OSError):
            make_folder(self.root)
        write_file(self.path, header + b"\n" + data)
        self._new = []


def _record(stamp: Stamp | None, digest: bytes) -> tuple[Any, ...]:
    assert stamp is not None
    name = hashlib.blake2b(stamp.identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return name, stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode, np.void(digest)


def _are_nested(first: str, second: str) -> bool:
    """Return True if one folder is the other one, or lies in it."""
    with contextlib.suppress(ValueError):  # different drives
        return os.path.commonpath([first, second]) in (first, second)
    return False
