"""Class folders next to a table of their images: whether both could be meant, and whether they agree."""

import re
from itertools import chain

from skipway.data.image_tables.image_table import ImageTable
from skipway.data.sources.class_layout import find_layout
from skipway.data.sources.file_tree import FileTree
from skipway.data.sources.image_source import Source, split_of_folder, words_of
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of, join_names

__all__ = ["BY_FOLDER", "class_folders", "refuse_two_readings", "warn_of_unnamed"]

BY_FOLDER = "([^/]+)/[^/]+$"  # --label-regex for the folder of an image
# Words in the names of folders that hold parts or versions of one set of images.
_STORAGE = frozenset(
    {
        *("part", "parts", "image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg"),
        *("png", "data", "dataset", "set", "raw", "original", "originals", "resized", "small", "large", "full", "crop"),
        *("crops", "cropped", "batch", "chunk", "shard", "folder", "dir", "files", "media", "upload", "uploads", "all"),
        *("thumb", "thumbs", "thumbnails", "masks", "mask", "labels", "unlabeled", "px", "x", "ham"),
    }
)
_CODE = re.compile(r"[0-9a-f]{1,3}|\d+")


def class_folders(tree: FileTree) -> list[str]:
    """Return the names of the class folders of a tree; [] if its folders are only places of storage."""
    try:
        layout = find_layout(tree, need_train=False)
    except InputError:
        return []
    classes = chain.from_iterable(folder.with_images() for folder in layout.splits.values())
    names = {inner.name for inner in classes}
    return sorted(names) if len(names) > 1 and not all(map(_is_storage, names)) else []


def _is_storage(name: str) -> bool:
    words = words_of(name)
    return all(word in _STORAGE or _CODE.fullmatch(word) or split_of_folder(word) for word in words)


def refuse_two_readings(images: ImageTable, source: Source | None, folders: list[str], asked: bool) -> None:
    """Check that a table and the class folders of its images do not name different classes.

    Args:
        images: the table.
        source: its images; None if its target is open.
        folders: names of the class folders.
        asked: True if --target chose the table.

    Raises:
        InputError: both readings are possible.
    """
    if not folders or asked or (source is not None and _agree(source)):
        return
    column = f"--target {printable(source.target_names[0])}" if source is not None else "--target COLUMN"
    raise InputError(
        f"cannot choose the classes of {images.index.tree.where}: expected either class folders or a table of their "
        f"images, got {count_of(len(folders), 'folder')} ({join_names(map(printable, folders), 3)}) and "
        f"{printable(next(iter(images.tables.values())).name)}. Use {column} for the table, or --label-regex "
        f"'{BY_FOLDER}' for the folders."
    )


def _agree(source: Source) -> bool:
    """Return True if the class of each image is the name of a folder that it is in."""
    if source.task != "classification":
        return False
    for split, keys in source.keys.items():
        for key, label in zip(keys, source.targets[split].tolist(), strict=True):
            if source.class_names[label] not in key.split("/")[:-1]:
                return False
    return True


def warn_of_unnamed(source: Source, tree: FileTree) -> None:
    """Add a warning about the images of class folders that a table does not name."""
    named = set(chain.from_iterable(source.keys.values()))
    others = [path for path in tree.root.image_paths() if path not in named]
    if others:
        source.warnings.append(
            f"ignored {count_of(len(others), 'image')} that the table does not name, such as {printable(others[0])}"
        )
