"""Files in a zip or tar archive, read without unpacking: every file is found by its place in the archive.

Reads use positions of their own (`pread`), so that threads and forked processes share one open file. A compressed tar
has no random access. It is decompressed once to a temporary file, which has no name and ends with the process.
"""

import bz2
import os
import stat
import struct
import tarfile
import threading
import weakref
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from skipway.data.sources.decode import BadImage
from skipway.data.sources.decompressed_tar import decompressed, is_compressed
from skipway.data.sources.file_tree import FileTree, Folder, is_junk
from skipway.data.sources.lazy_content import Stamp, stamp_of
from skipway.data.sources.other_files import ARCHIVES, suffix_of
from skipway.data.sources.read_bytes import MAX_BYTES, read_head
from skipway.errors import InputError, printable, reason_of
from skipway.utils.format_text import count_of

__all__ = ["ArchiveContent", "ArchiveTree", "is_archive", "open_archive"]

_ZIP_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field
_ENCRYPTED = 0x1  # bit of the flags of a zip entry
_STORED, _DEFLATED, _BZIP2 = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2
_BLOCK = tarfile.BLOCKSIZE
_BZIP2_BLOCK = 1 << 20  # bytes; a block of bzip2 is shorter
_OPENING = threading.Lock()
_TREES: "weakref.WeakValueDictionary[Stamp, ArchiveTree]" = weakref.WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class _Entry:
    """Place of a file in an archive; `reason` if it cannot be read.

    `offset` is that of the data of a tar entry, or of the local header of a zip entry; `packed` is the stored size.
    """

    offset: int
    packed: int
    size: int
    method: int = _STORED
    crc: int | None = None
    reason: str = ""


def is_archive(path: str | Path) -> bool:
    """Return True if a file name has the suffix of an archive that is read.

    >>> is_archive("photos.tar.gz"), is_archive("photos.rar")
    (True, False)
    """
    return suffix_of(os.path.basename(path)) in ARCHIVES


def open_archive(path: Path) -> "ArchiveTree":
    """Open an archive by its content; one that is already open and has not changed is not read again.

    Raises:
        InputError: it cannot be read, or it is neither a zip nor a tar archive.
    """
    try:
        stamp, head = stamp_of(os.path.abspath(path), os.stat(path)), read_head(path, _BLOCK)
    except (BadImage, OSError) as error:
        raise InputError(f"cannot read the archive {printable(path)}: {reason_of(error)}. Check the path.") from None
    if stamp not in _TREES:
        _TREES[stamp] = tree = _tree_of(path, head)
        return tree
    return _TREES[stamp]


def _tree_of(path: Path, head: bytes) -> "ArchiveTree":
    """Return the tree of an archive with these first bytes."""
    if head.startswith((b"PK\3\4", b"PK\5\6", b"PK\7\x08")):
        return _ZipTree(path)
    if head[257:262] == b"ustar" or is_compressed(head) or (len(head) == _BLOCK and suffix_of(path.name) == ".tar"):
        return _TarTree(path)
    kind = "an empty file" if not head else "another format"
    raise InputError(
        f"cannot read the archive {printable(path)}: expected the content of a zip or tar archive, got {kind}. "
        "Download or create it again."
    )


@dataclass(frozen=True, slots=True)
class ArchiveContent:
    """Content of a file in an archive, read when it is called."""

    tree: "ArchiveTree"
    path: str

    def __call__(self) -> bytes | BadImage:
        """Read the file, or return the reason why it cannot be read."""
        try:
            return self.tree.read(self.path)
        except BadImage as error:
            return error

    def __str__(self) -> str:
        return f"{self.tree.where}/{printable(self.path)}"

    def stamp(self) -> Stamp | None:
        """Return the state of the archive, with the place of the file in it."""
        return self.tree.stamp(self.path)


class _Contents(Sequence[ArchiveContent]):
    """Contents of files in an archive, in order and by index."""

    def __init__(self, tree: "ArchiveTree", paths: Sequence[str]) -> None:
        self._tree, self._paths = tree, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if isinstance(index, slice):
            return _Contents(self._tree, self._paths[index])
        return ArchiveContent(self._tree, self._paths[index])


class ArchiveTree(FileTree):
    """Files in an archive."""

    def __init__(self, path: Path) -> None:
        name = path.name
        super().__init__(path, name[: len(name) - len(suffix_of(name))])
        self._path = path
        self._entries: dict[str, _Entry] = {}
        self._file: BinaryIO | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}  # an open file cannot be sent to another process

    def contents(self, paths: Sequence[str]) -> Sequence[ArchiveContent]:
        """Return the contents of files, each read when it is called."""
        return _Contents(self, paths)

    def read(self, path: str) -> bytes:
        """Read a file.

        Raises:
            BadImage: the file is damaged, encrypted, too large, empty or compressed by an unsupported method.
        """
        entry = self._entries[path]
        if entry.reason:
            raise BadImage(entry.reason)
        if entry.size > MAX_BYTES:
            raise BadImage(f"file too large: expected at most {MAX_BYTES:,} bytes, got {entry.size:,}")
        data = self._unpacked(entry, entry.size)
        if len(data) != entry.size or (entry.crc is not None and zlib.crc32(data) != entry.crc):
            raise BadImage("damaged in the archive: its size or checksum does not match")
        if not data:
            raise BadImage("empty file")
        return data

    def head(self, path: str, count: int) -> bytes:
        """Read the beginning of a file."""
        entry = self._entries[path]
        try:
            return b"" if entry.reason else self._unpacked(entry, min(count, entry.size))
        except BadImage:
            return b""

    def stamp(self, path: str) -> Stamp | None:
        """Return the state of the archive, with the place of a file in it; None if it cannot be read."""
        try:
            return stamp_of(f"{os.path.abspath(self._path)}:{self._entries[path].offset}", os.stat(self._path))
        except OSError:
            return None

    @abstractmethod
    def _index(self) -> Iterator[tuple[str, _Entry | None]]:
        """Yield the name and place of every entry; None for a folder."""

    @abstractmethod
    def _open(self) -> BinaryIO:
        """Open the file of the archive for reads by position."""

    def _opened(self) -> BinaryIO:
        """Return the open archive; an archive that came from another process is opened at the first read."""
        with _OPENING:
            if self._file is None:
                self._file = self._open()
                weakref.finalize(self, self._file.close)
            return self._file

    def _read_at(self, offset: int, count: int) -> bytes:
        """Read `count` bytes at a position, or fewer at the end of the archive."""
        try:
            data = _read_at(self._opened(), offset, count)
            while 0 < len(data) < count and (part := _read_at(self._opened(), offset + len(data), count - len(data))):
                data += part
        except OSError as error:
            raise BadImage(f"not readable: {printable(error.strerror or error)}") from error
        return data

    def _unpacked(self, entry: _Entry, count: int) -> bytes:
        """Return the first `count` bytes of a file."""
        return self._read_at(entry.offset, min(count, entry.packed))

    def _list(self) -> Folder:
        root, unsafe, repeated = Folder(), list[str](), 0
        files: dict[str, list[str]] = {}
        folders = {"": root}
        for name, entry in self._index():
            parts = _safe_parts(name)
            if parts is None:
                unsafe.append(name)
                continue
            kept = list(takewhile(lambda part: not is_junk(part), parts))
            if entry is None or kept != parts or not parts:
                _folder_at(folders, kept)
                continue
            parent = _folder_at(folders, parts[:-1])
            path = parent.below(parts[-1])
            repeated += path in self._entries
            if path not in self._entries:
                files.setdefault(parent.path, []).append(parts[-1])
            self._entries[path] = entry
        for place, names in files.items():
            self._add_files(folders[place], names)
        for folder in root.walk():
            folder.folders = dict(sorted(folder.folders.items()))
        if unsafe:
            self.warnings.append(
                f"ignored {count_of(len(unsafe), 'entry', 'entries')} of the archive with unsafe names, first "
                f"{printable(unsafe[0])[:100]}"
            )
        if repeated:
            count = count_of(repeated, "entry", "entries")
            self.warnings.append(f"ignored {count} of the archive whose names occur again later in it")
        return root

    def _damaged(self, reason: object) -> InputError:
        return InputError(
            f"cannot read the archive {self.where}: expected an intact archive, got {reason}. Download or create it "
            "again."
        )


class _ZipTree(ArchiveTree):
    """Files in a zip archive."""

    def _open(self) -> BinaryIO:
        return open(self._path, "rb")

    def _index(self) -> Iterator[tuple[str, _Entry | None]]:
        try:
            with zipfile.ZipFile(self._opened()) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, struct.error) as error:
            raise self._damaged(f"{reason_of(error)}") from None
        for info in infos:
            name = info.filename if "/" in info.filename else info.filename.replace("\\", "/")
            yield name, None if name.endswith("/") else _zip_entry(info)

    def _unpacked(self, entry: _Entry, count: int) -> bytes:
        header = self._read_at(entry.offset, _ZIP_LOCAL_HEADER.size)
        if len(header) < _ZIP_LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
            raise BadImage("damaged in the archive: no header at its place")
        _, name_length, extra_length = _ZIP_LOCAL_HEADER.unpack(header)
        begin = entry.offset + _ZIP_LOCAL_HEADER.size + name_length + extra_length
        if entry.method == _STORED:
            return self._read_at(begin, min(count, entry.packed))
        most = _BZIP2_BLOCK if entry.method == _BZIP2 else 1024  # before the first byte, and what packing may add
        packed = self._read_at(begin, min(entry.packed, count + count // 8 + most))
        try:
            return _decompressed(packed, entry.method, count) if count else b""
        except (zlib.error, OSError, EOFError, ValueError) as error:
            raise BadImage(f"damaged in the archive: {reason_of(error)}") from error


class _TarTree(ArchiveTree):
    """Files in a tar archive, decompressed to a temporary file first if it is compressed."""

    def _is_compressed(self) -> bool:
        with open(self._path, "rb") as file:
            return is_compressed(file.read(_BLOCK))

    def _open(self) -> BinaryIO:
        return decompressed(self._path) if self._is_compressed() else open(self._path, "rb")

    def _index(self) -> Iterator[tuple[str, _Entry | None]]:
        file = self._opened()
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        ignored, links = 0, list[tuple[str, str]]()
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would hold all members in memory
                    if member.isdir():
                        yield member.name, None
                    elif member.isreg():
                        if member.offset_data + member.size > size:
                            raise self._damaged("the end of the file within an entry")
                        yield member.name, _tar_entry(member)
                    elif member.islnk():
                        links.append((member.name, member.linkname))
                    else:
                        ignored += 1
                end = archive.offset
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise self._damaged(reason_of(error)) from None
        ending = self._read_at(end, _BLOCK)
        if ending.strip(b"\0"):  # tarfile ends at a damaged header without an error
            raise self._damaged(f"a damaged header at byte {end:,}")
        if not ending:
            self.warnings.append("the archive has no end marker; it may be incomplete")
        for name, target in links:  # a hard link is another name of an entry
            entry = self._entries.get("/".join(_safe_parts(target) or ()))
            ignored += entry is None
            if entry is not None:
                yield name, entry
        if ignored:
            count = count_of(ignored, "entry", "entries")
            self.warnings.append(f"ignored {count} of the archive that are links or devices")
        if self._is_compressed():
            self.warnings.append(
                f"decompressed the archive to a temporary file of {size:,} bytes; a .tar or .zip file is read in place"
            )


def _decompressed(packed: bytes, method: int, count: int) -> bytes:
    """Return the first `count` bytes of a zip entry, or fewer if there are no more."""
    if method == _DEFLATED:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, count)
    decompressor, data = bz2.BZ2Decompressor(), b""
    while len(data) < count and not decompressor.eof:
        part = decompressor.decompress(b"" if data else packed, count - len(data))
        if not part and decompressor.needs_input:
            break
        data += part
    return data


def _zip_entry(info: zipfile.ZipInfo) -> _Entry:
    reason = ""
    if stat.S_ISLNK(info.external_attr >> 16):
        reason = "a symbolic link, which is not followed in an archive"
    elif info.flag_bits & _ENCRYPTED:
        reason = "encrypted: unpack the archive with its password"
    elif info.compress_type not in (_STORED, _DEFLATED, _BZIP2):
        reason = f"compressed by the unsupported zip method {info.compress_type}: pack it again with deflate"
    return _Entry(
        info.header_offset, info.compress_size, info.file_size, method=info.compress_type, crc=info.CRC, reason=reason
    )


def _tar_entry(member: tarfile.TarInfo) -> _Entry:
    reason = "a sparse file: pack it again without --sparse" if member.issparse() else ""
    return _Entry(member.offset_data, member.size, member.size, reason=reason)


def _safe_parts(name: str) -> list[str] | None:
    """Return the parts of the name of an entry, or None if it leads out of the archive."""
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or (len(parts[0]) == 2 and parts[0][1] == ":"):
        return None
    return [part for part in parts if part not in ("", ".")]


def _folder_at(folders: dict[str, Folder], parts: list[str]) -> Folder:
    """Return the folder of a path, added to its parents if it is new."""
    path = "/".join(parts)
    if path not in folders:
        missing, parent = [path], path.rpartition("/")[0]
        while parent not in folders:
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        for place in reversed(missing):
            folder = folders[place] = Folder(place)
            folders[place.rpartition("/")[0]].folders[folder.name] = folder
    return folders[path]


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), count, offset)
    with open(file.name, "rb") as own:  # Windows has no reads by position
        own.seek(offset)
        return own.read(count)
