"""Folders of images: one sub-folder per class, with or without train, val and test above them.

Nothing is guessed: what is no class and no image is ignored by rule and counted, what could be read in two ways is
refused.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from skipway.data.sources.decode import SUFFIXES, BadImage
from skipway.data.sources.image_source import SPLITS, Content, Source, class_order, refuse_near_equal, split_of
from skipway.data.sources.read_bytes import read_image_file
from skipway.errors import InputError, printable

__all__ = ["describe_other_files", "folder_source", "has_class_folders", "image_files"]

_JUNK = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}
_PEEK = 200


def folder_source(root: Path, follow_links: bool = False, allow_empty_classes: bool = False) -> Source:
    """Open the images under `root`; class names come from the training set alone."""
    where = printable(root)
    splits = _split_folders(root, follow_links)
    warnings: list[str] = []
    classes_of = {
        split: _classes(folder, root, follow_links=follow_links, warnings=warnings) for split, folder in splits.items()
    }
    empty = sorted(name for name, paths in classes_of["train"].items() if not paths)
    if empty and not allow_empty_classes:
        raise InputError(
            f"{where}: the class folder {printable(empty[0])!r} has no images"
            + describe_other_files(splits["train"] / empty[0])
            + (f" (nor have {len(empty) - 1} others)" if len(empty) > 1 else "")
            + "; add some, remove it, or leave it out with --allow-empty-classes"
        )
    if empty:
        warnings.append(f"left out: class folders without images: {', '.join(map(printable, empty))}")
    named = [name for name, paths in classes_of["train"].items() if paths]
    class_names = class_order(named, printable(splits["train"]))
    keys: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray] = {}
    files: dict[str, list[Path]] = {}
    for split, all_classes in classes_of.items():
        classes = {name: all_classes[name] for name in sorted(all_classes) if all_classes[name]}
        index = _class_indices(split, list(classes), class_names=class_names, where=where, warnings=warnings)
        split_key = _key(splits[split], root)
        keys[split], files[split] = [], []
        for name, paths in classes.items():
            prefix = f"{split_key}/{name}" if split_key else name
            keys[split] += [f"{prefix}/{path.name}" for path in paths]
            files[split] += paths
        indices = np.array([index[name] for name in classes], np.int64)
        labels[split] = np.repeat(indices, [len(paths) for paths in classes.values()])

    inside: dict[str, bool] = {}

    def read(path: Path) -> Content:
        try:
            return read_image_file(path, root, follow_links=follow_links, inside=inside)
        except BadImage as error:
            return error

    def contents(split: str) -> Iterator[Content]:
        return (read(path) for path in files[split])

    def peek() -> list[Content]:
        step = max(1, len(files["train"]) // _PEEK)
        return [read(path) for path in files["train"][::step][:_PEEK]]

    return Source(
        name=root.resolve().name or "data",
        class_names=class_names,
        keys=keys,
        labels=labels,
        contents=contents,
        peek=peek,
        warnings=warnings,
    )


def has_class_folders(root: Path) -> bool:
    """Return True if `root` holds folders at all (as opposed to parquet files or loose images)."""
    return any(_is_folder(entry) for entry in _entries(root))


def image_files(root: Path) -> list[Path]:
    """List every file under `root`, at any depth, whose name says that it is an image, in a fixed order."""

    def unreadable(error: OSError) -> None:
        raise _cannot_list(Path(error.filename), error) from None

    images = []
    for folder, names, files in os.walk(root, onerror=unreadable):
        names[:] = sorted(n for n in names if not _is_junk(n))
        images += [Path(folder, f) for f in sorted(files) if not _is_junk(f) and Path(f).suffix.lower() in SUFFIXES]
    return images


def describe_other_files(root: Path) -> str:
    """Return which files a folder without images holds at any depth, and what images are called; "" if none."""
    suffixes: Counter[str] = Counter()
    for _, _, files in os.walk(root):
        suffixes.update(Path(name).suffix.lower() or "no suffix" for name in files if not _is_junk(name))
    if not suffixes:
        return ""
    counts = ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in suffixes.most_common(5))
    return f", only other files ({counts}; the suffixes of images are {', '.join(sorted(SUFFIXES))})"


def _split_folders(root: Path, follow_links: bool) -> dict[str, Path]:
    """Return {'train': root} where there are only class folders, or the folder of each split."""
    entries = [e for e in _entries(root) if _is_folder(e)]
    folders = [Path(e.path) for e in entries]
    by_split: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split in by_split:
            raise InputError(
                f"{printable(root)}: both {by_split[split].name!r} and {folder.name!r} could be the {split} set; "
                "remove or rename one"
            )
        if split:
            by_split[split] = folder
    if not by_split:
        return {"train": root}
    others = [f.name for f in folders if f not in by_split.values()]
    if others:
        raise InputError(
            f"{printable(root)}: there are split folders ({', '.join(p.name for p in by_split.values())}) and others "
            f"({', '.join(map(printable, others[:5]))}) side by side; keep either splits or classes at this level"
        )
    if "train" not in by_split:
        raise InputError(
            f"{printable(root)}: there is {', '.join(p.name for p in by_split.values())} but no train folder; add it"
        )
    for entry in entries:
        _refuse_outside(entry, root, follow_links)
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _classes(folder: Path, root: Path, *, follow_links: bool, warnings: list[str]) -> dict[str, list[Path]]:
    """List {class name: its files in a fixed order} of one split."""
    classes: dict[str, list[Path]] = {}
    ignored: Counter[str] = Counter()
    for entry in _entries(folder):
        if not _is_folder(entry):
            ignored[Path(entry.name).suffix.lower() or "no suffix"] += 1
            continue
        _refuse_outside(entry, root, follow_links)
        files = []
        for inner in _entries(Path(entry.path)):
            if _is_folder(inner) and not _named_like_image(inner.name):
                _refuse_nested(Path(entry.path), Path(inner.path))
            elif _named_like_image(inner.name):
                files.append(Path(inner.path))
            else:
                ignored[Path(inner.name).suffix.lower() or "no suffix"] += 1
        classes[entry.name] = files
    if ignored:
        counts = ", ".join(f"{count} {printable(suffix)}" for suffix, count in ignored.most_common(5))
        warnings.append(
            f"ignored in {_key(folder, root) or 'the folder'}: files that are no images of a class ({counts})"
        )
    return classes


def _refuse_outside(entry: os.DirEntry[str], root: Path, follow_links: bool) -> None:
    if entry.is_symlink() and not follow_links and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"{printable(entry.path)} is a link that leads out of the folder; give --follow-links to read it"
        )


def _refuse_nested(class_folder: Path, inner: Path) -> None:
    if image_files(inner):
        raise InputError(
            f"{printable(class_folder)} holds images in a folder of its own ({printable(inner.name)}): it could be a "
            "class or a part of one; keep the images of a class directly in its folder"
        )


def _class_indices(
    split: str, folders: list[str], *, class_names: tuple[str, ...], where: str, warnings: list[str]
) -> dict[str, int]:
    """Return {folder name: class index} of a split, by name and never by position."""
    index = dict(zip(class_names, range(len(class_names)), strict=True))
    by_name = {folder: unicodedata.normalize("NFC", folder) for folder in folders}
    refuse_near_equal(folders, where)
    extra = sorted(folder for folder, name in by_name.items() if name not in index)
    if extra:
        raise InputError(
            f"{where}: the {split} set has classes that the training set lacks: "
            f"{', '.join(map(printable, extra[:5]))}; give them the names of the training folders, or remove them"
        )
    missing = sorted(set(index) - set(by_name.values()))
    if missing:
        warnings.append(f"the {split} set has no images of: {', '.join(map(printable, missing[:20]))}")
    return {folder: index[name] for folder, name in by_name.items()}


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not _is_junk(e.name)), key=lambda e: e.name)
    except OSError as error:
        raise _cannot_list(folder, error) from None


def _cannot_list(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot list the folder {printable(folder)}: {error.strerror}; check its permissions")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads in a circle
        return False


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _named_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _key(path: Path, root: Path) -> str:
    text = path.relative_to(root).as_posix()
    return "" if text == "." else text
