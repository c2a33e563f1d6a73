"""A tree of files: the folders and images below one root, in a folder on disk or in an archive.

Layouts are recognized on this tree, so that a folder and an archive of it mean the same dataset.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import overload

from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_formats import SNIFF_BYTES, SUFFIXES, image_format_of
from skipway.data.sources.lazy_content import FileContents
from skipway.data.sources.other_files import is_known
from skipway.data.sources.read_bytes import read_head
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["DiskTree", "FileTree", "Folder", "entries_of", "is_folder", "is_image_name", "is_junk"]

# Folders and files of operating systems, network drives and tools. Names that begin with a dot are also ignored.
_JUNK = frozenset(
    {
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini"),
        *("$recycle.bin", "recycler", "system volume information", "lost+found", "found.000"),
        *("@eadir", "@recycle", "@recently-snapshot", "@tmp", "@sharebin", "#recycle", "#snapshot", "__pycache__"),
    }
)


@dataclass(slots=True, eq=False)
class Folder:
    """One folder of a tree.

    Attributes:
        path: path below the root with "/" between names; "" for the root.
        images: names of the image files, sorted.
        others: names of the other files, sorted.
        folders: the subfolders by name, sorted.
    """

    path: str = ""
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    folders: dict[str, "Folder"] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the folder, without its parents."""
        return self.path.rpartition("/")[2]

    def below(self, name: str) -> str:
        """Return the path of a file or subfolder."""
        return f"{self.path}/{name}" if self.path else name

    def place(self, where: str) -> str:
        """Return the printable path of the folder, with that of the root, `where`."""
        return f"{where}/{printable(self.path)}" if self.path else where

    def walk(self) -> Iterator["Folder"]:
        """Iterate over this folder and all folders below it, each before its subfolders."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += reversed(folder.folders.values())

    def image_paths(self) -> list[str]:
        """Return the paths of all images at any depth, in a fixed order."""
        paths: list[str] = []
        for folder in self.walk():
            paths += map(folder.below, folder.images)
        return paths

    def other_paths(self) -> list[str]:
        """Return the paths of all other files at any depth, in a fixed order."""
        paths: list[str] = []
        for folder in self.walk():
            paths += map(folder.below, folder.others)
        return paths

    def has_images(self) -> bool:
        """Return True if there is an image at any depth."""
        return any(folder.images for folder in self.walk())

    def with_images(self) -> list["Folder"]:
        """Return the subfolders that contain images at any depth."""
        return [folder for folder in self.folders.values() if folder.has_images()]


class FileTree(ABC):
    """Files below one root. `read` and `head` are safe to call from several threads and from forked processes.

    Attributes:
        where: the root, printable.
        name: name of the dataset.
        warnings: remarks about files that are left out.
        outside: paths of links to folders that lead out of the root and are not followed.
    """

    def __init__(self, where: str | Path, name: str) -> None:
        self.where = printable(where)
        self.name = name or "data"
        self.warnings: list[str] = []
        self.outside: list[str] = []

    @cached_property
    def root(self) -> Folder:
        """The folders and files, listed at the first access.

        Raises:
            InputError: a folder or the archive cannot be listed.
        """
        return self._list()

    @abstractmethod
    def _list(self) -> Folder:
        """List the folders and files."""

    @abstractmethod
    def contents(self, paths: Sequence[str]) -> Sequence[Callable[[], bytes | BadImage]]:
        """Return the contents of files, in order, each read when it is called."""

    @abstractmethod
    def head(self, path: str, count: int) -> bytes:
        """Read at most `count` bytes from the beginning of a file; b"" if it cannot be read."""

    def _add_files(self, folder: Folder, names: Iterable[str]) -> None:
        """Add files to a folder, as images or as others; a file with an unknown suffix is an image by its content."""
        for name in sorted(names):
            is_image = is_image_name(name) or (not is_known(name) and self._has_image_content(folder.below(name)))
            (folder.images if is_image else folder.others).append(name)

    def _has_image_content(self, path: str) -> bool:
        return image_format_of(self.head(path, SNIFF_BYTES)) is not None


class DiskTree(FileTree):
    """Files below a folder on disk."""

    def __init__(self, root: Path, follow_links: bool = False) -> None:
        super().__init__(root, root.resolve().name)
        self._base = root
        self._follow_links = follow_links
        self._linked: set[str] = set()
        self._repeated: list[str] = []

    def contents(self, paths: Sequence[str]) -> FileContents:
        """Return the contents of files, each read when it is called."""
        return FileContents(_PathsBelow(self._base, paths), self._base, self._follow_links)

    def head(self, path: str, count: int) -> bytes:
        """Read the beginning of a file."""
        try:
            return read_head(self._base / path, count, self._base, follow_links=self._follow_links)
        except BadImage:
            return b""

    def _list(self) -> Folder:
        root = Folder()
        waiting = [root]
        while waiting:
            folder = waiting.pop()
            self._add_files(folder, self._add_folders(folder, entries_of(self._base / folder.path)))
            waiting += folder.folders.values()
        _move_empty_folders_named_like_images(root)
        if self._repeated:
            links = count_of(len(self._repeated), "link")
            self.warnings.append(
                f"ignored {links} to folders that are read already, first {printable(self._repeated[0])}"
            )
        return root

    def _add_folders(self, folder: Folder, entries: Iterable[os.DirEntry[str]], is_last: bool = False) -> list[str]:
        """Add the subfolders to a folder, unless it `is_last` to be listed, and return the names of its files."""
        files = []
        for entry in entries:
            if is_junk(entry.name):
                continue
            if not is_folder(entry):
                files.append(entry.name)
            elif not is_last and (not entry.is_symlink() or self._follows(entry, folder.below(entry.name))):
                folder.folders[entry.name] = Folder(folder.below(entry.name))
        return files

    def _follows(self, entry: os.DirEntry[str], path: str) -> bool:
        """Return True for a link to a folder that is read; other links are recorded."""
        target = os.path.realpath(entry.path)
        home = os.path.realpath(self._base)
        if not self._follow_links and os.path.commonpath([target, home]) != home:
            self.outside.append(path)
            return False
        parent = os.path.realpath(os.path.dirname(entry.path))
        # A link to a parent folder has no end, and links to folders with such links grow exponentially.
        if os.path.commonpath([target, parent]) == target or target in self._linked:
            self._repeated.append(path)
            return False
        self._linked.add(target)
        return True


class _PathsBelow(Sequence[str]):
    """Paths of files on disk, joined when they are used, because a million of them would fill memory."""

    def __init__(self, base: Path, paths: Sequence[str]) -> None:
        self._base, self._paths = base, paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "_PathsBelow": ...
    def __getitem__(self, index: int | slice) -> "str | _PathsBelow":
        if isinstance(index, slice):
            return _PathsBelow(self._base, self._paths[index])
        return os.path.join(self._base, self._paths[index])


def is_junk(name: str) -> bool:
    """Return True for files and folders of operating systems, network drives and tools."""
    return name.startswith(".") or name.lower() in _JUNK


def is_image_name(name: str) -> bool:
    """Return True if a file name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _move_empty_folders_named_like_images(root: Folder) -> None:
    """Make empty folders such as "a.jpg" within a class unreadable images, so that they are reported."""
    for folder in root.walk():
        odd = [name for name, inner in folder.folders.items() if is_image_name(name) and _is_empty(inner)]
        if odd and folder.images:
            for name in odd:
                del folder.folders[name]
            folder.images = sorted([*folder.images, *odd])


def _is_empty(folder: Folder) -> bool:
    return not (folder.images or folder.others or folder.folders)


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder on disk, sorted by name.

    Raises:
        InputError: the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"cannot list the folder {printable(folder)}: {error.strerror}. Check its permissions."
        ) from None


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return True for a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False
