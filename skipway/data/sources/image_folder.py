"""Class folders: one folder per class, optionally inside folders named train, val and test, on disk or in an archive.

The class of an image is the top folder below its split. Files that are not images are counted with their reason.
"""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from itertools import chain

import numpy as np

from skipway.data.sources.annotation_exports import mask_warning
from skipway.data.sources.class_layout import class_folder_hint, find_layout
from skipway.data.sources.file_tree import FileTree, Folder
from skipway.data.sources.image_source import (
    Content,
    Item,
    Source,
    class_order,
    peeked,
    read_content,
    refuse_near_equal,
)
from skipway.data.sources.other_files import describe_files
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names
from skipway.utils.map_ahead import map_ahead

__all__ = ["describe_content", "labeled_source"]

_READERS = 8  # threads that read the sample, because disks over a network have latency


def labeled_source(
    tree: FileTree, allow_empty_classes: bool = False, known_classes: Collection[str] | None = None
) -> Source:
    """Open the class folders of a tree; the classes are those of the training set.

    Args:
        tree: the files.
        allow_empty_classes: True to leave out class folders without images instead of raising.
        known_classes: classes of a trained model. With them, one class and one split are enough, and the classes are
            those of all splits.

    Raises:
        InputError: the layout is ambiguous, a link leads out of the folder, or there are fewer than 2 classes.
    """
    if tree.root is not None and tree.outside:
        raise InputError(
            f"cannot read {tree.where}/{printable(tree.outside[0])}: the symbolic link leads out of the folder. Use "
            "--follow-links."
        )
    layout = find_layout(tree, known_classes or (), need_train=known_classes is None)
    warnings = [*tree.warnings, *layout.warnings]
    defining = "train" if "train" in layout.splits else next(iter(layout.splits))
    folders = layout.splits[defining]
    refuse_near_equal(list(folders.folders), tree.where)
    named = _filled_classes(tree, folders, allow_empty_classes, warnings)
    least = 2
    if known_classes is not None:
        named, least = _classes_of_splits(layout.splits.values()), 1
    if not named and (content := describe_content(tree.root)):
        raise InputError(
            f"cannot use {tree.where}: expected images in class folders, found none{content}. Pass a folder with one "
            "subfolder of images per class."
        )
    hint = class_folder_hint(tree.root) if len(named) < least else ""
    class_names = class_order(named, folders.place(tree.where), least=least, hint=hint)
    keys: dict[str, list[str]] = {}
    labels: dict[str, np.ndarray] = {}
    for split, folder in layout.splits.items():
        classes = folder.with_images()
        index = _class_indices(split, classes, class_names=class_names, where=tree.where, warnings=warnings)
        images = [inner.image_paths() for inner in classes]
        keys[split] = list(chain.from_iterable(images))
        labels[split] = np.repeat(np.array(index, np.int64), [len(paths) for paths in images])
        warnings += _remarks(folder, classes)

    def contents(split: str) -> Sequence[Item]:
        return tree.contents(keys[split])

    def peek() -> list[Content]:
        sample = tree.contents(peeked(keys[defining]))
        return list(map_ahead(read_content, sample, threads=_READERS, ahead=2 * _READERS))

    return Source(
        name=tree.name,
        class_names=class_names,
        keys=keys,
        targets=labels,
        contents=contents,
        peek=peek,
        warnings=warnings,
    )


def describe_content(folder: Folder) -> str:
    """Describe a folder without images: " (only other files: ...)", or "" if it has no files."""
    others = describe_files(folder.other_paths())
    return f" (only other files: {others})" if others else ""


def _filled_classes(tree: FileTree, split: Folder, allow_empty: bool, warnings: list[str]) -> list[str]:
    """Return the names of the class folders with images; empty ones raise an error or a warning."""
    named = [inner.name for inner in split.with_images()]
    empty = [inner for inner in split.folders.values() if inner.name not in set(named)]
    if empty and not allow_empty:
        first = printable(empty[0].name)
        raise InputError(
            f"cannot use {tree.where}: expected images in every class folder, found none in {first!r}"
            + describe_content(empty[0])
            + (f" and {len(empty) - 1} more" if len(empty) > 1 else "")
            + "."
            + (class_folder_hint(tree.root) if len(named) < 2 else "")
            + " Add images, remove the folder, or use --allow-empty-classes."
        )
    if empty:
        names = ", ".join(printable(inner.name) for inner in empty)
        warnings.append(f"ignored class folders without images: {names}")
    return named


def _classes_of_splits(splits: Iterable[Folder]) -> list[str]:
    """Return the names of the classes of all splits."""
    names: set[str] = set()
    for folder in splits:
        names |= {unicodedata.normalize("NFC", inner.name) for inner in folder.with_images()}
    return sorted(names)


def _class_indices(
    split: str, folders: list[Folder], *, class_names: tuple[str, ...], where: str, warnings: list[str]
) -> list[int]:
    """Return the class index of each folder of a split, matched by name."""
    names = [unicodedata.normalize("NFC", folder.name) for folder in folders]
    refuse_near_equal([folder.name for folder in folders], where)
    extra = sorted(set(names) - set(class_names))
    if extra:
        raise InputError(
            f"cannot use {where}: expected the classes of the training set, got more in the {split} set: "
            f"{join_names(map(printable, extra), limit=5)}. Rename these folders to training classes, or remove them."
        )
    missing = sorted(set(class_names) - set(names))
    if missing:
        warnings.append(f"the {split} set has no images of: {join_names(map(printable, missing), limit=20)}")
    return [class_names.index(name) for name in names]


def _remarks(folder: Folder, classes: list[Folder]) -> list[str]:
    """Return remarks on the files of a split that are not used, and on nested folders."""
    remarks = []
    where = printable(folder.path) or "the folder"
    if folder.images:
        remarks.append(f"ignored {count_of(len(folder.images), 'image')} in {where}, outside of its class folders")
    others = describe_files(folder.other_paths())
    if others:
        remarks.append(f"ignored files in {where}, which are not images: {others}")
    nested = [inner for top in classes for inner in top.walk() if inner is not top and inner.images]
    if nested:
        count = sum(len(inner.images) for inner in nested)
        remarks.append(
            f"{count_of(count, 'image')} in {where} in subfolders of class folders, such as "
            f"{printable(nested[0].path)}; the class is the top folder"
        )
    return [*remarks, *filter(None, map(mask_warning, classes))]
