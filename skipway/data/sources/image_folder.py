"""Image folders: one subfolder per class, optionally inside folders named train, val and test.

Files that are not images are ignored and counted. Ambiguous layouts raise an error.
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
    """Open a folder of class folders; the classes are those of the training set.

    Args:
        root: the folder.
        follow_links: True to follow symbolic links that lead out of `root`.
        allow_empty_classes: True to leave out class folders without images instead of raising.

    Raises:
        InputError: the layout is ambiguous, or there are fewer than 2 classes.
    """
    where = printable(root)
    splits = _split_folders(root, follow_links)
    warnings: list[str] = []
    classes_of = {
        split: _classes(folder, root, follow_links=follow_links, warnings=warnings) for split, folder in splits.items()
    }
    empty = sorted(name for name, paths in classes_of["train"].items() if not paths)
    if empty and not allow_empty_classes:
        raise InputError(
            f"cannot use {where}: expected images in every class folder, found none in {printable(empty[0])!r}"
            + describe_other_files(splits["train"] / empty[0])
            + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            + ". Add images, remove the folder, or use --allow-empty-classes."
        )
    if empty:
        warnings.append(f"ignored class folders without images: {', '.join(map(printable, empty))}")
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
    """Return True if `root` contains any folder."""
    return any(_is_folder(entry) for entry in _entries(root))


def image_files(root: Path) -> list[Path]:
    """List all files under `root`, at any depth, with the extension of an image, in a fixed order."""

    def unreadable(error: OSError) -> None:
        raise _cannot_list(Path(error.filename), error) from None

    images = []
    for folder, names, files in os.walk(root, onerror=unreadable):
        names[:] = sorted(n for n in names if not _is_junk(n))
        images += [Path(folder, f) for f in sorted(files) if not _is_junk(f) and Path(f).suffix.lower() in SUFFIXES]
    return images


def describe_other_files(root: Path) -> str:
    """Describe the files of a folder without images, and the supported extensions; return "" for no files."""
    suffixes: Counter[str] = Counter()
    for _, _, files in os.walk(root):
        suffixes.update(Path(name).suffix.lower() or "no extension" for name in files if not _is_junk(name))
    if not suffixes:
        return ""
    counts = ", ".join(f"{count:,} {printable(suffix)}" for suffix, count in suffixes.most_common(5))
    return f" (only other files: {counts}; supported extensions: {', '.join(sorted(SUFFIXES))})"


def _split_folders(root: Path, follow_links: bool) -> dict[str, Path]:
    """Return the folder of each split; {"train": root} if there are no split folders."""
    entries = [e for e in _entries(root) if _is_folder(e)]
    folders = [Path(e.path) for e in entries]
    by_split: dict[str, Path] = {}
    for folder in folders:
        split = split_of(folder.name)
        if split in by_split:
            raise InputError(
                f"cannot use {printable(root)}: expected one {split} folder, got {by_split[split].name!r} and "
                f"{folder.name!r}. Remove or rename one."
            )
        if split:
            by_split[split] = folder
    if not by_split:
        return {"train": root}
    others = [f.name for f in folders if f not in by_split.values()]
    if others:
        raise InputError(
            f"cannot use {printable(root)}: expected either split folders or class folders, got splits "
            f"({', '.join(p.name for p in by_split.values())}) and others ({', '.join(map(printable, others[:5]))}). "
            "Move the class folders into the split folders."
        )
    if "train" not in by_split:
        raise InputError(
            f"cannot use {printable(root)}: expected a train folder, got only "
            f"{', '.join(p.name for p in by_split.values())}. Add a train folder."
        )
    for entry in entries:
        _refuse_outside(entry, root, follow_links)
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _classes(folder: Path, root: Path, *, follow_links: bool, warnings: list[str]) -> dict[str, list[Path]]:
    """Return {class name: image files in a fixed order} of a split."""
    classes: dict[str, list[Path]] = {}
    ignored: Counter[str] = Counter()
    for entry in _entries(folder):
        if not _is_folder(entry):
            ignored[Path(entry.name).suffix.lower() or "no extension"] += 1
            continue
        _refuse_outside(entry, root, follow_links)
        files = []
        for inner in _entries(Path(entry.path)):
            if _is_folder(inner) and not _named_like_image(inner.name):
                _refuse_nested(Path(entry.path), Path(inner.path))
            elif _named_like_image(inner.name):
                files.append(Path(inner.path))
            else:
                ignored[Path(inner.name).suffix.lower() or "no extension"] += 1
        classes[entry.name] = files
    if ignored:
        counts = ", ".join(f"{count} {printable(suffix)}" for suffix, count in ignored.most_common(5))
        warnings.append(
            f"ignored files in {_key(folder, root) or 'the folder'}, which are not images of a class: {counts}"
        )
    return classes


def _refuse_outside(entry: os.DirEntry[str], root: Path, follow_links: bool) -> None:
    if entry.is_symlink() and not follow_links and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise InputError(
            f"cannot read {printable(entry.path)}: the symbolic link leads out of the folder. Use --follow-links."
        )


def _refuse_nested(class_folder: Path, inner: Path) -> None:
    if image_files(inner):
        raise InputError(
            f"cannot use {printable(class_folder)}: expected images directly in a class folder, found images in the "
            f"subfolder {printable(inner.name)!r}. Move them up, or make the subfolder a class."
        )


def _class_indices(
    split: str, folders: list[str], *, class_names: tuple[str, ...], where: str, warnings: list[str]
) -> dict[str, int]:
    """Return {folder name: class index} of a split, matched by name."""
    index = dict(zip(class_names, range(len(class_names)), strict=True))
    by_name = {folder: unicodedata.normalize("NFC", folder) for folder in folders}
    refuse_near_equal(folders, where)
    extra = sorted(folder for folder, name in by_name.items() if name not in index)
    if extra:
        raise InputError(
            f"cannot use {where}: expected the classes of the training set, got more in the {split} set: "
            f"{', '.join(map(printable, extra[:5]))}. Rename these folders to training classes, or remove them."
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
    return InputError(f"cannot list the folder {printable(folder)}: {error.strerror}. Check its permissions.")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circular link
        return False


def _is_junk(name: str) -> bool:
    return name.startswith(".") or name.lower() in _JUNK


def _named_like_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _key(path: Path, root: Path) -> str:
    text = path.relative_to(root).as_posix()
    return "" if text == "." else text
