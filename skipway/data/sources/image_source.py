"""Source: what DATA was found to be, before any image is decoded."""

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from skipway.errors import InputError, printable

__all__ = ["SPLITS", "Skipped", "Source", "class_order", "refuse_near_equal", "split_of"]

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

# One image as it was found: the file's bytes, its pixels (H, W) or (H, W, C) uint8, or why there is nothing.
Content = bytes | np.ndarray | InputError


@dataclass(frozen=True)
class Skipped:
    """An image that is left out, and why."""

    key: str
    split: str
    class_name: str
    reason: str


@dataclass
class Source:
    """Labelled images in one to three splits.

    `keys[split][i]` is what the user knows image i by, `labels[split][i]` its index in `class_names`, and
    `contents(split)` gives them all in that order. `peek()` gives some training images without reading them all.
    """

    name: str
    class_names: tuple[str, ...]
    keys: dict[str, list[str]]
    labels: dict[str, np.ndarray]
    contents: Callable[[str], Iterator[Content]]
    peek: Callable[[], list[Content]]
    mirrored: bool = True  # whether an image seen in a mirror is still of its class
    warnings: list[str] = field(default_factory=list)

    def count(self, split: str) -> int:
        """Return how many images the split has."""
        return len(self.keys.get(split, ()))


def split_of(name: str) -> str | None:
    """Return the split that a folder or file of this name holds: 'valid' -> 'val'; None where the name says nothing."""
    return _SPLIT_NAMES.get(name.lower())


def class_order(names: list[str], where: str) -> tuple[str, ...]:
    """Put at least two class names in their fixed order: by their characters, so '10' stands between '1' and '2'."""
    refuse_near_equal(names, where)
    if len(names) < 2:
        only = f"only the class {printable(names[0])!r}" if names else "no class"
        raise InputError(f"{where}: there is {only}, but a classifier needs at least two; add a folder for each class")
    return tuple(sorted(unicodedata.normalize("NFC", name) for name in names))


def refuse_near_equal(names: list[str], where: str) -> None:
    """Refuse class names of which two are easily taken for one another, or one is no text at all."""
    by_plain: dict[str, str] = {}
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"{where}: the class name {printable(name)} is not valid text; rename it with letters of UTF-8"
            ) from None
        plain = unicodedata.normalize("NFC", name).strip().casefold()
        if plain in by_plain:
            raise InputError(
                f"{where}: the classes {printable(by_plain[plain])!r} and {printable(name)!r} differ only in case, "
                "spaces or accents' spelling; merge or rename one"
            )
        by_plain[plain] = name
