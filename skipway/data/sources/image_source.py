"""Source: labeled images of one to three splits, before they are decoded.

Shapes: N images of a split, K labels, T numbers.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from skipway.data.output_spec import TaskName
from skipway.data.sources.table import Table
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = [
    "PEEK",
    "SPLITS",
    "Skipped",
    "Source",
    "class_order",
    "peeked",
    "read_content",
    "refuse_near_equal",
    "split_of",
    "split_of_folder",
    "words_of",
]

SPLITS = ("train", "val", "test")
PEEK = 200  # images in the sample of a source
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}

_SET_WORDS = frozenset(
    {*("set", "data", "dataset", "images", "image", "imgs", "img", "photos", "samples", "split", "folder", "seg")}
)

# One image: the content of its file, its pixels (H, W) or (H, W, C) uint8, or the reason why it cannot be read.
Content = bytes | np.ndarray | InputError
Item = Content | Callable[[], Content]  # a callable reads the image in the thread that decodes it
Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Skipped:
    """An image or row that is left out, with the reason."""

    key: str
    split: str
    class_name: str
    reason: str


@dataclass
class Source:
    """Labeled images in one to three splits.

    Attributes:
        name: name of the dataset.
        class_names: names of the classes or labels; empty for regression.
        keys: {split: names of the images}, such as relative paths, for messages and CSV files.
        targets: {split: targets}: (N,) int64 indices into `class_names`, (N, K) float32 labels of 0 and 1, or (N, T)
            float64 numbers in their units.
        contents: function that iterates over the images of a split, in the order of `keys`. A sequence and callables
            can also be read later and in any order.
        peek: function that returns a sample of the training images.
        mirrored: True if flips preserve the classes.
        warnings: remarks about the dataset.
        task: "classification", "multilabel" or "regression".
        target_names: target columns of a table of images; empty if the classes are folders.
        label_sep: text between the labels in the target column.
        groups: {split: N names of groups that stay in one split}; empty if there are none.
        weights: {split: (N,) float64 positive sample weights}; empty if there are none.
        columns: {split: table of N rows with feature columns}; empty if there are none.
        order: {split: table of N rows with the column of --split-by}; empty if there is none.
        skipped: images without a usable target, which are left out.
        roles: roles of the columns of a table of images, in one line; "" for other datasets.
    """

    name: str
    class_names: tuple[str, ...]
    keys: dict[str, list[str]]
    targets: dict[str, np.ndarray]
    contents: Callable[[str], Iterable[Item]]
    peek: Callable[[], list[Content]]
    mirrored: bool = True
    warnings: list[str] = field(default_factory=list)
    task: TaskName = "classification"
    target_names: tuple[str, ...] = ()
    label_sep: str = ""
    groups: dict[str, list[str]] = field(default_factory=dict)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    columns: dict[str, Table] = field(default_factory=dict)
    order: dict[str, Table] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    roles: str = ""

    def count(self, split: str) -> int:
        """Return the number of images in a split."""
        return len(self.keys.get(split, ()))


def peeked(items: Sequence[Sample]) -> Sequence[Sample]:
    """Return up to `PEEK` evenly spaced items, for the sample of a source."""
    return items[:: max(1, len(items) // PEEK)][:PEEK]


def read_content(item: Item) -> Content:
    """Return an image, which is read first if it is callable."""
    return item() if callable(item) else item


def split_of(name: str) -> str | None:
    """Return the split for the name of a folder or file, or None if the name is not that of a split.

    >>> split_of("valid"), split_of("Training"), split_of("cats")
    ('val', 'train', None)
    """
    return _SPLIT_NAMES.get(name.lower())


def split_of_folder(name: str) -> str | None:
    """Return the split for the name of a folder, which may have words for a set around that of the split, or None.

    >>> split_of_folder("training_set"), split_of_folder("seg_test"), split_of_folder("train station")
    ('train', 'test', None)
    """
    words = words_of(name)
    splits = [word for word in words if word in _SPLIT_NAMES]
    others = [word for word in words if word not in _SPLIT_NAMES]
    return _SPLIT_NAMES[splits[0]] if len(splits) == 1 and _SET_WORDS.issuperset(others) else None


def words_of(name: str) -> list[str]:
    """Split the name of a folder into lower-case words; words such as "trainset" are split, too.

    >>> words_of("JPEGImages"), words_of("valset-2017")
    (['jpeg', 'images'], ['val', 'set', '2017'])
    """
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+|\d+", unicodedata.normalize("NFC", name))
    parts: list[str] = []
    for word in map(str.lower, words):
        split = next((s for s in _SPLIT_NAMES if word.startswith(s) and word[len(s) :] in _SET_WORDS), "")
        parts += [split, word[len(split) :]] if split else [word]
    return parts


def class_order(names: list[str], where: str, *, least: int = 2, hint: str = "") -> tuple[str, ...]:
    """Sort class names by their characters, after Unicode normalization.

    Args:
        names: at least `least` class names.
        where: name of the dataset, for errors.
        least: minimum number of classes.
        hint: advice for the error on too few classes.

    Raises:
        InputError: there are too few names, or two are nearly equal.

    >>> class_order(["2", "10", "1"], "data")
    ('1', '10', '2')
    """
    refuse_near_equal(names, where)
    if len(names) < least:
        only = f"only {printable(names[0])!r}" if names else "none"
        classes = count_of(least, "class", "classes")
        raise InputError(
            f"cannot use {where}: expected at least {classes}, got {only}.{hint} Add a folder for each class."
        )
    return tuple(sorted(unicodedata.normalize("NFC", name) for name in names))


def refuse_near_equal(names: list[str], where: str) -> None:
    """Check that class names are valid UTF-8 and differ in more than case, spaces or Unicode form.

    Args:
        names: class names.
        where: name of the dataset, for errors.

    Raises:
        InputError: a name is not valid UTF-8, or two names are nearly equal.
    """
    by_plain: dict[str, str] = {}
    for name in names:
        try:
            name.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"cannot use {where}: expected class names in UTF-8, got {printable(name)}. Rename the class."
            ) from None
        plain = unicodedata.normalize("NFC", name).strip().casefold()
        if plain in by_plain:
            raise InputError(
                f"cannot use {where}: expected distinct class names, got {printable(by_plain[plain])!r} and "
                f"{printable(name)!r}, which differ only in case, spaces or Unicode form. Merge or rename one."
            )
        by_plain[plain] = name
