"""Lazy content: image files that are read in the decoding threads, and the state of a file on the disk.

A source may yield callables instead of bytes. If a callable has a method `stamp`, the decode cache finds unchanged
files without reading them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

from skipway.data.sources.decode import BadImage
from skipway.data.sources.read_bytes import checked_status, read_image_file

__all__ = ["FileContent", "FileContents", "Stamp", "stamp_of"]


class Stamp(NamedTuple):
    """State of a file on the disk: if no field has changed, neither has the content.

    `identity` is the path of the file; for a part of a file, the path and the place of the part.
    """

    identity: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def stamp_of(identity: str, status: os.stat_result) -> Stamp:
    """Return the stamp of a file, or of a part of it, from the result of `os.stat`."""
    return Stamp(identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@dataclass(frozen=True, slots=True)
class FileContent:
    """Content of an image file, read when it is called.

    Args:
        path: the file.
        root: data folder that symbolic links must not lead out of; None for no restriction.
        follow_links: True to allow links that lead out of `root`.
        inside: cache of {folder: it is inside `root`}, to share between files.
    """

    path: str | Path
    root: Path | None
    follow_links: bool
    inside: dict[str, bool]

    def __call__(self) -> bytes | BadImage:
        """Read the file, or return the reason why it cannot be read."""
        try:
            return read_image_file(self.path, self.root, follow_links=self.follow_links, inside=self.inside)
        except BadImage as error:
            return error

    def stamp(self) -> Stamp | None:
        """Return the state of the file, or None if it must not or cannot be read."""
        try:
            status = checked_status(self.path, self.root, follow_links=self.follow_links, inside=self.inside)
        except BadImage:
            return None
        return stamp_of(os.path.abspath(self.path), status)


class FileContents(Sequence[FileContent]):
    """Contents of image files, in order and by index.

    Args:
        paths: the files.
        root: data folder that symbolic links must not lead out of; None for no restriction.
        follow_links: True to allow links that lead out of `root`.
    """

    def __init__(self, paths: Sequence[str | Path], root: Path | None = None, follow_links: bool = False):
        self.paths, self.root, self.follow_links = paths, root, follow_links
        self.inside: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> FileContent: ...
    @overload
    def __getitem__(self, index: slice) -> "FileContents": ...
    def __getitem__(self, index: int | slice) -> "FileContent | FileContents":
        if isinstance(index, slice):
            return FileContents(self.paths[index], self.root, self.follow_links)
        return FileContent(self.paths[index], self.root, self.follow_links, self.inside)

    def __iter__(self) -> Iterator[FileContent]:
        return (FileContent(path, self.root, self.follow_links, self.inside) for path in self.paths)
