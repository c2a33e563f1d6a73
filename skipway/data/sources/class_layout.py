"""Layouts of class folders: which folder is which split, and which folders below it are the classes."""

import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field

from skipway.data.sources.annotation_exports import refuse_exports
from skipway.data.sources.dataset_parts import refuse_parts
from skipway.data.sources.file_tree import FileTree, Folder
from skipway.data.sources.image_source import SPLITS, split_of_folder, words_of
from skipway.data.sources.other_files import describe_files
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names

__all__ = ["Layout", "class_folder_hint", "find_layout"]

# Folders of images without labels that datasets have next to their splits.
_UNLABELED = frozenset({"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "unsup", "unknown"})
_MIN_CLASSES_NEXT_TO_TRAIN = 2  # folders of images next to a folder `train` of images, which make it a class


@dataclass
class Layout:
    """The folder of each split, whose subfolders are the classes, and remarks on what was left out."""

    splits: dict[str, Folder]
    warnings: list[str] = field(default_factory=list)


def find_layout(tree: FileTree, known_classes: Collection[str] = (), need_train: bool = True) -> Layout:
    """Find the splits and class folders of a tree.

    A folder that contains nothing but one folder of class folders is a wrapper, and its content is used.

    Args:
        tree: the files.
        known_classes: names of classes, which are never wrappers.
        need_train: True to require a training set.

    Raises:
        InputError: the layout is ambiguous, or has boxes or masks in place of classes.
    """
    warnings: list[str] = []
    folder = tree.root
    while True:
        refuse_exports(folder, tree)
        named = _split_folders(folder, tree, need_train, warnings=warnings)
        if named:
            break
        inner = _wrapped(folder, known_classes)
        if inner is None:
            if not known_classes:
                refuse_parts(folder, tree)
            return Layout({"train": folder}, warnings)
        folder = inner
    if need_train and "train" not in named:
        raise InputError(
            f"cannot use {folder.place(tree.where)}: expected a train folder, got only "
            f"{', '.join(printable(split.name) for split in named.values())}. Add a train folder."
        )
    splits: dict[str, Folder] = {}
    for split in (split for split in SPLITS if split in named):
        inner = _unwrapped(named[split], tree, known_classes)
        if split == "train":  # the first
            if not known_classes:
                refuse_parts(inner, tree)
            known_classes = {*known_classes, *map(_plain_name, inner.with_images())}
        if _has_no_classes(inner, splits.get("train")):
            images = count_of(len(inner.image_paths()), "image")
            warnings.append(
                f"ignored {printable(named[split].path)}: {images} without class folders of the training set"
            )
        else:
            splits[split] = inner
    return Layout(splits, warnings)


def class_folder_hint(root: Folder) -> str:
    """Return a hint on a deeper folder that has class folders, such as " Did you mean a/ (2 class folders)?"."""
    for folder in sorted(root.walk(), key=lambda folder: folder.path.count("/")):
        if folder is root:
            continue
        classes = folder.with_images()
        if len(classes) > 1:
            noun = "split folder" if any(split_of_folder(inner.name) for inner in classes) else "class folder"
            return f" Did you mean {printable(folder.path)}/ ({count_of(len(classes), noun)})?"
    return ""


def _unwrapped(folder: Folder, tree: FileTree, known_classes: Collection[str]) -> Folder:
    """Return a split folder, or the folder inside its wrappers that has the class folders."""
    refuse_exports(folder, tree)
    while (inner := _wrapped(folder, known_classes)) is not None:
        folder = inner
        refuse_exports(folder, tree)
    return folder


def _has_no_classes(split: Folder, train: Folder | None) -> bool:
    """Return True if all images of a split are in one folder that is not a class of the training set."""
    classes = split.with_images()
    if train is None or len(classes) != 1 or len(train.with_images()) < 2:
        return False
    return _plain_name(classes[0]) not in set(map(_plain_name, train.with_images()))


def _plain_name(folder: Folder) -> str:
    return unicodedata.normalize("NFC", folder.name)


def _wrapped(folder: Folder, known_classes: Collection[str]) -> Folder | None:
    """Return the only folder in `folder`, if its own folders have the images."""
    if len(folder.folders) != 1:
        return None
    (inner,) = folder.folders.values()
    is_class = _plain_name(inner) in known_classes
    return inner if not is_class and inner.with_images() else None


def _split_folders(folder: Folder, tree: FileTree, need_train: bool, *, warnings: list[str]) -> dict[str, Folder]:
    """Return the split folders in a folder, or {} if its folders are classes."""
    named = _named_splits(folder, tree)
    if not named:
        return {}
    others = [inner for inner in folder.folders.values() if inner not in named.values()]
    if _is_class(named, others):
        warnings.append("the folder 'train' is a class, because it has images and no class folders")
        return {}
    labeled = {split: inner for split, inner in named.items() if inner.with_images() or not inner.images}
    if not labeled or (need_train and "train" in named.keys() - labeled.keys()):
        first = named.get("train") or next(iter(named.values()))
        raise InputError(
            f"cannot use {folder.place(tree.where)}: expected class folders in {printable(first.name)}/, got "
            f"{count_of(len(first.images), 'image')} without class folders. Put the images of each class into a "
            "subfolder, or if these folders are classes, put all of them into one folder named train."
        )
    for split in named.keys() - labeled.keys():
        count = count_of(len(named[split].images), "image")
        warnings.append(f"ignored {printable(named[split].path)}: {count} without class folders")
    _refuse_other_classes(folder, tree, labeled, others, warnings=warnings)
    return labeled


def _named_splits(folder: Folder, tree: FileTree) -> dict[str, Folder]:
    """Return the folders that are named like splits, also with a name that they share, as flowers_train."""
    pairs = [(split_of_folder(name), inner) for name, inner in folder.folders.items()]
    if not any(split for split, _ in pairs):
        pairs = [(_shared_split(name, folder.folders), inner) for name, inner in folder.folders.items()]
    named: dict[str, Folder] = {}
    for split, inner in pairs:
        if split in named:
            first, second = printable(named[split].name), printable(inner.name)
            raise InputError(
                f"cannot use {folder.place(tree.where)}: expected one {split} folder, got {first!r} and {second!r}. "
                "Remove or rename one."
            )
        if split:
            named[split] = inner
    return named


def _shared_split(name: str, siblings: Collection[str]) -> str | None:
    """Return the split of a folder such as flowers_train, if there is a folder such as flowers_test."""
    words = words_of(name)
    splits = [word for word in words if split_of_folder(word)]
    if len(splits) != 1:
        return None
    rest = [word for word in words if not split_of_folder(word)]
    for sibling in siblings:
        other = words_of(sibling)
        is_pair = [word for word in other if not split_of_folder(word)] == rest and len(other) == len(words)
        if is_pair and sibling != name and split_of_folder(splits[0]):
            return split_of_folder(splits[0])
    return None


def _is_class(named: dict[str, Folder], others: list[Folder]) -> bool:
    """Return True if the only folder named like a split is `train`, and has images as several other folders do."""
    if list(named) != ["train"] or named["train"].folders or not named["train"].images:
        return False
    return sum(bool(inner.images) for inner in others) >= _MIN_CLASSES_NEXT_TO_TRAIN


def _has_no_labels(folder: Folder) -> bool:
    """Return True for a folder next to split folders that is no class: without labels, or a dataset of its own."""
    is_dataset = any(split_of_folder(inner.name) for inner in folder.with_images())
    return is_dataset or not folder.has_images() or bool(_UNLABELED.intersection(words_of(folder.name)))


def _refuse_other_classes(
    folder: Folder, tree: FileTree, splits: dict[str, Folder], others: list[Folder], *, warnings: list[str]
) -> None:
    """Record folders without labels next to split folders; other folders with images raise an error."""
    ignored = [inner for inner in others if _has_no_labels(inner)]
    classes = [printable(inner.name) for inner in others if inner not in ignored]
    if classes:
        raise InputError(
            f"cannot use {folder.place(tree.where)}: expected either split folders or class folders, got splits "
            f"({', '.join(printable(inner.name) for inner in splits.values())}) and others "
            f"({join_names(classes, limit=5)}). Move the class folders into the split folders, or if all of these "
            "folders are classes, put them into one folder named train."
        )
    for inner in ignored:
        images = inner.image_paths()
        content = count_of(len(images), "image") if images else describe_files(inner.other_paths())
        if content:
            warnings.append(f"ignored {printable(inner.path)}: {content}")
