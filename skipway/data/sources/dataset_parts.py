"""Folders that look like classes and are parts of one dataset, such as part_1 and part_2, or a copy of the classes."""

import re

from skipway.data.sources.file_tree import FileTree, Folder
from skipway.errors import InputError, printable
from skipway.utils.format_text import join_names

__all__ = ["refuse_parts"]

_PART = re.compile(r"(.*?)[ _-]?(part|batch|chunk|shard|fold|archive|volume|vol|disc|disk|zip|tar)s?[ _-]?\d+", re.I)
_NUMBERED = re.compile(r"(.*?)[ _-]?\d+")


def refuse_parts(folder: Folder, tree: FileTree) -> None:
    """Check that class folders are not parts of one dataset, and that none is a copy of the others.

    Raises:
        InputError: they are parts, or one has folders with the names of the others.
    """
    classes = folder.with_images()
    names = [inner.name for inner in classes]
    where = folder.place(tree.where)
    shown = join_names(map(printable, names), limit=3)
    if len(names) > 1 and _stems(names, _PART) == 1:
        raise InputError(
            f"cannot use {where}: expected one folder per class, got folders named like parts of one dataset "
            f"({shown}). Sort the images into class folders, or pass a table of the images and their classes."
        )
    inside = [{child.name for child in inner.with_images()} for inner in classes]
    shared = set.intersection(*inside) if len(inside) > 1 else set()
    if len(shared) > 1 and _stems(names, _NUMBERED) == 1:
        raise InputError(
            f"cannot use {where}: expected one folder per class, got several folders ({shown}) with the same class "
            f"folders ({join_names(map(printable, sorted(shared)), limit=3)}). Pass one of them, or merge them."
        )
    for inner, children in zip(classes, inside, strict=True):
        copies = children.intersection(names)
        if len(copies) > 1 and len(copies) == len(names) - 1:
            raise InputError(
                f"cannot use {where}: expected one folder per class, got a copy of the class folders in "
                f"{printable(inner.name)!r}. Remove it, or pass it alone."
            )


def _stems(names: list[str], pattern: re.Pattern[str]) -> int:
    """Return the number of different names without their numbers; 0 if a name does not match."""
    matches = [pattern.fullmatch(name) for name in names]
    return len({match.group(1) for match in matches if match}) if all(matches) else 0
