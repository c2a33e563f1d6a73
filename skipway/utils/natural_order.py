"""Order of names with numbers in them by the values of the numbers."""

import re

__all__ = ["natural_key"]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers within names by value.

    >>> sorted(["b:10", "b:9", "a"], key=natural_key)
    ['a', 'b:9', 'b:10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]
