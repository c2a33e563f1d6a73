"""Text formatting for errors, console lines and tables: names, sizes and short values."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from skipway.errors import printable

__all__ = ["count_of", "in_sentence", "join_counts", "join_names", "join_sizes", "short_repr"]


def count_of(count: int, noun: str, plural: str = "") -> str:
    """Format a count and its noun, in the singular or the plural.

    Args:
        count: number of things.
        noun: singular of the noun.
        plural: plural of the noun; by default the singular and an "s".

    >>> count_of(1, "image"), count_of(1200, "image"), count_of(2, "class", "classes")
    ('1 image', '1,200 images', '2 classes')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def in_sentence(text: str) -> str:
    """Return a sentence as it follows a colon.

    >>> in_sentence("Boosting is ahead.")
    'boosting is ahead'
    """
    return text[:1].lower() + text[1:].removesuffix(".")


def join_counts(counts: Mapping[str, int], noun: str) -> str:
    """Join the number of samples of each split, and put `noun` after the last one.

    >>> join_counts({"train": 20, "val": 1}, "image")
    '20 train, 1 val image'
    """
    *others, last = counts.items()
    return ", ".join([*(f"{count:,} {split}" for split, count in others), count_of(last[1], f"{last[0]} {noun}")])


def join_names(names: Iterable[str], limit: int, separator: str = ", ") -> str:
    """Join the first `limit` names, and append the number of the others.

    >>> join_names(["a", "b", "c", "d"], limit=2)
    'a, b and 2 more'
    """
    names = list(names)
    joined = separator.join(names[:limit])
    return f"{joined} and {len(names) - limit:,} more" if len(names) > limit else joined


def join_sizes(sizes: Any) -> str:
    """Join a list of sizes with dashes, as in "ResNet 3-4-6-3"; convert other values to str.

    >>> join_sizes([3, 4, 6, 3])
    '3-4-6-3'
    """
    return "-".join(map(str, sizes)) if isinstance(sizes, list | tuple) else str(sizes)


def short_repr(value: Any) -> str:
    """Format any value as one short line, also nested values with cycles, which YAML aliases allow.

    >>> short_repr(list(range(100)))
    '[0, 1, 2, 3, 4, 5, ...]'
    """
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring = 2, 120
    return printable(shortener.repr(value))
