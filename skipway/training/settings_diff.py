"""Differences between the settings of a run and those in its checkpoint."""

from collections.abc import Iterator
from typing import Any

from skipway.errors import printable

__all__ = ["differences"]

_ABSENT = object()
_LONG = 12  # longer lists (class names) are compared entry by entry, shorter ones (stages) are printed in full


def differences(current: dict[str, Any], saved: dict[str, Any]) -> list[str]:
    """Return a line for each field that differs between `current` and `saved`. A list equals a tuple.

    >>> differences({"lr": 0.1, "epochs": 3}, {"lr": 0.2, "epochs": 3})
    ['lr: 0.1 here, 0.2 in the checkpoint']
    """
    return [f"{where}: {_show(a)} here, {_show(b)} in the checkpoint" for where, a, b in _walk(current, saved)]


def _walk(current: Any, saved: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(current, dict) and isinstance(saved, dict):
        for key in [*current, *(key for key in saved if key not in current)]:
            inner = f"{where}.{printable(key)}".lstrip(".")
            yield from _walk(current.get(key, _ABSENT), saved.get(key, _ABSENT), inner)
    elif isinstance(current, list | tuple) and isinstance(saved, list | tuple):
        inside: list[tuple[str, Any, Any]] = []
        for i, (a, b) in enumerate(zip(current, saved, strict=False)):
            inside += _walk(a, b, f"{where}[{i}]")
        if len(current) == len(saved) > _LONG:
            yield from inside
        elif inside or len(current) != len(saved):
            yield where, current, saved
    elif current != saved:
        yield where, current, saved


def _show(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"{len(value)} values" if len(value) > _LONG else f"({','.join(_show(v) for v in value)})"
    return "absent" if value is _ABSENT else printable(repr(value))[:80]
