"""The prefix under which a training script saved a network, found from the keys that the network has.

A network inside another module has a prefix before its keys: "module.", "model.", "net.", "backbone.",
"module.encoder_q." and so on. Keys of the other module (a loss, metrics, an EMA copy) are outside the prefix.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from typing import NamedTuple

__all__ = ["Prefix", "find_prefix"]

# Words in the prefix of an averaged copy of a network (EMA, BYOL, DINO, MoCo).
_COPIES = {"averaged", "avg", "ema", "k", "key", "momentum", "shadow", "swa", "target", "teacher"}


class Prefix(NamedTuple):
    """A prefix of keys, the number of keys of the network below it, and other prefixes with about as many."""

    text: str
    size: int
    others: tuple[str, ...]


def find_prefix(keys: Iterable[str], expected: Set[str], current: Callable[[str], str]) -> Prefix:
    """Return the prefix below which the keys of a network are.

    A prefix is found only if more than half of the keys, or of the expected keys, are below it: others have parts with
    the same names by chance.

    If the keys have several copies of the network, the trained one comes before an averaged one, no prefix before any
    prefix, and the first one before the others. A copy counts if it has more than half of the keys of the largest
    one: a missing key must be an error, not a reason to use another copy.

    Args:
        keys: Keys of a checkpoint.
        expected: Keys of the network without a prefix.
        current: Converts a key of an older file, without its prefix, to its current name.

    >>> find_prefix(["net.a.weight", "net.b.bias", "loss.weight"], {"a.weight", "b.bias"}, current=str)
    Prefix(text='net.', size=2, others=())
    """
    keys = list(keys)
    counts = Counter(key[:start] for key in keys for start in _starts(key) if current(key[start:]) in expected)
    most = max(counts.values(), default=0)
    if 2 * most <= min(len(keys), len(expected)):
        return Prefix("", counts[""], ())
    candidates = [prefix for prefix, count in counts.items() if 2 * count > most]
    text = min(candidates, key=lambda prefix: (_is_copy(prefix), prefix != ""))
    return Prefix(text, counts[text], tuple(prefix for prefix in candidates if prefix != text))


def _starts(key: str) -> Iterator[int]:
    """Yield the positions in `key` at which a name can start."""
    yield 0
    for separator in re.finditer(r"[./]", key):
        yield separator.end()


def _is_copy(prefix: str) -> bool:
    return not _COPIES.isdisjoint(re.split(r"[._/]", prefix.lower()))
