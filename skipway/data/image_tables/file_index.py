"""FileIndex: the image files that the texts of a column name.

A text names a file by its path, by the end of its path (as `gs://bucket/cats/1.jpg` names `cats/1.jpg`), or without
its suffix.
"""

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from skipway.data.sources.file_tree import FileTree, is_image_name
from skipway.data.sources.image_source import split_of_folder

__all__ = ["FileIndex", "Match", "is_url", "looks_like_image"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.I)
_UPLOAD_HASH = re.compile(r"[0-9a-f]{8}-(?=.)")  # Label Studio puts it in front of the names of uploaded files
_LOCAL_FILES = re.compile(r"/?data/local-files/?\?d=")  # Label Studio's path of files on its disk
_LONGEST = 4096  # characters of a path; longer texts name no file
_MOST = 0.9  # share of the files found whose parent folders must be those of the text, so that others must be, too


@dataclass(frozen=True, slots=True)
class Match:
    """The file that a text names, at `path` below the root, or the reason why it names none.

    `kept` is the number of names at the end of the path that are those of the text.
    """

    path: str = ""
    kept: int = 0
    problem: Literal["", "missing", "ambiguous", "outside"] = ""
    others: tuple[str, ...] = ()


@dataclass
class FileIndex:
    """Files of a tree by their names.

    Args:
        tree: the files.
        base: folder of the tree on disk; None for an archive.
        follow_links: True to use files outside of `base`.
    """

    tree: FileTree
    base: Path | None = None
    follow_links: bool = False

    @property
    def has_images(self) -> bool:
        """True if there is an image at any depth."""
        return self.tree.root.has_images()

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        names: dict[str, list[str]] = {}
        for folder in self.tree.root.walk():
            for name in (*folder.images, *folder.others):
                names.setdefault(_plain(name), []).append(folder.below(name))
        return names

    @cached_property
    def _stems(self) -> dict[str, list[str]]:
        stems: dict[str, list[str]] = {}
        for folder in self.tree.root.walk():
            for name in folder.images:
                stems.setdefault(_plain(os.path.splitext(name)[0]), []).append(folder.below(name))
        return stems

    def matches(self, texts: Sequence[str], folder: str = "", split: str | None = None) -> list[Match]:
        """Find the file that each text names.

        If nearly all texts name files together with their parent folders, so must the others. A file that is missing
        in one folder is thus not taken from another folder.

        Args:
            texts: the texts.
            folder: folder of the table, which texts are relative to first.
            split: split of the table; of two files of a name, that in a folder of this split is used.
        """
        found = [self._match(text, folder, split) for text in texts]
        depths = [len(_parts(text)) for text in texts]
        shared = _shared_depth([(m.kept, depth) for m, depth in zip(found, depths, strict=True) if m.path])
        return [
            Match(problem="missing") if m.path and m.kept < min(shared, depth) else m
            for m, depth in zip(found, depths, strict=True)
        ]

    def _match(self, text: str, folder: str, split: str | None) -> Match:
        if len(text) > _LONGEST or "\0" in text:
            return Match(problem="missing")
        parts = _parts(text)
        if not parts:
            return Match(problem="missing")
        inside = self._inside(text, parts, folder)
        if ".." in parts and inside is not None:
            parts = inside.split("/")
        if inside is None and self.follow_links and self._is_outside_file(text, folder):
            return Match(os.path.normpath(os.path.join(self.base or "", folder, text)), kept=len(parts))
        name = _plain(parts[-1])
        for key in dict.fromkeys((name, _UPLOAD_HASH.sub("", name, count=1))):
            paths = self._names.get(key) or self._stems.get(key)
            if paths:
                exact = [path for path in paths if inside and _plain(path) in (inside, os.path.splitext(inside)[0])]
                return _best(parts, exact or paths, folder, split)
        if inside is None and self._is_outside_file(text, folder):
            return Match(problem="outside")
        return Match(problem="missing")

    def _inside(self, text: str, parts: list[str], folder: str) -> str | None:
        """Return the path of a text below the root, plain; None if it leads out of the root."""
        slashed = text.replace("\\", "/")
        if not is_url(text) and posixpath.isabs(slashed):
            base = posixpath.abspath(self.base) if self.base is not None else ""
            if not base or posixpath.commonpath([base, posixpath.normpath(slashed)]) != base:
                return None
            return _plain(posixpath.relpath(slashed, base))
        path = posixpath.normpath(posixpath.join(folder, *parts))
        return None if path == ".." or path.startswith("../") else _plain(path)

    def _is_outside_file(self, text: str, folder: str) -> bool:
        return self.base is not None and not is_url(text) and os.path.isfile(os.path.join(self.base, folder, text))


def _shared_depth(depths: list[tuple[int, int]]) -> int:
    """Return the largest number of names at the ends of paths that nearly all matches share with their texts."""
    depth = 1
    while True:
        deep = [kept >= depth + 1 for kept, available in depths if available >= depth + 1]
        if not deep or sum(deep) < _MOST * len(deep):
            return depth
        depth += 1


def _best(parts: list[str], paths: Iterable[str], folder: str, split: str | None) -> Match:
    """Return the match with the longest common end, near the table, or in a folder of its split."""
    ranked = [(_common_end(parts, path), path) for path in paths]
    most = max(kept for kept, _ in ranked)
    best = [path for kept, path in ranked if kept == most]
    equal = [path for path in best if path.split("/")[-most:] == parts[-most:]]  # also in case
    near = [path for path in best if folder and path.startswith(f"{folder}/")]
    same = [path for path in best if split and any(split_of_folder(part) == split for part in path.split("/")[:-1])]
    for choice in (best, equal, near, same):
        if len(choice) == 1:
            return Match(choice[0], kept=most)
    return Match(problem="ambiguous", others=tuple(best))


def _common_end(parts: list[str], path: str) -> int:
    """Return the number of names at the end of a path that are those of a text; the file itself counts as equal."""
    kept = 1
    for ours, theirs in zip(reversed(parts[:-1]), reversed(path.split("/")[:-1]), strict=False):
        if _plain(ours) != _plain(theirs):
            break
        kept += 1
    return kept


def is_url(text: str) -> bool:
    """Return True for the address of a file on a server, such as "gs://bucket/1.jpg"."""
    return _URL.match(text) is not None


def looks_like_image(text: str) -> bool:
    """Return True for a text that ends with the suffix of an image."""
    return len(text) <= _LONGEST and is_image_name(text.split("?", 1)[0] if is_url(text) else text)


def _parts(text: str) -> list[str]:
    """Return the names of the folders and of the file in a path or URL."""
    if is_url(text):
        text = unquote(text.split("?", 1)[0].split("://", 1)[1])
    text = _LOCAL_FILES.sub("", text).replace("\\", "/")
    return [part for part in text.split("/") if part not in ("", ".")]


def _plain(name: str) -> str:
    """Return a name as it is compared: file systems differ in Unicode form and in case."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()
