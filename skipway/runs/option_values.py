"""Option values: validation."""

import math
from dataclasses import Field
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from skipway.errors import did_you_mean
from skipway.utils.devices import DEVICE_FORM, DEVICE_WORDS
from skipway.utils.format_text import short_repr

__all__ = ["TEXTS", "choices", "option_problem"]

_KINDS = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false"}
_STAGE = r"[\w.-]+:[1-9]\d{0,4}"
_PART = "(?:flip|shift|zoom|affine|color|trivial|erase)"


class TextForm(NamedTuple):
    """The form of a text option: a regular expression, and its description for errors."""

    pattern: str
    words: str


TEXTS = {
    "grow": TextForm(
        rf"{_STAGE}(?:,{_STAGE})+", "two or more networks with the epochs of each, as resnet20:4,resnet56:8"
    ),
    "img_size": TextForm(r"[1-9]\d{0,3}:[1-9]\d{0,3}", "a whole number, or two as 128:224"),
    "device": TextForm(DEVICE_FORM, DEVICE_WORDS),
    "augment": TextForm(
        rf"auto|none|light|medium|strong|(?!.*(?:shift.*zoom|zoom.*shift))(?!.*\b(\w+)\b.*\b\1\b){_PART}(?:\+{_PART})*",
        "auto, none, light, medium, strong, or some of flip, shift (or zoom), affine, color, trivial and "
        "erase joined by +, each once",
    ),
}


def choices(hint: Any) -> tuple[str, ...]:
    """Return the choices of a field of type `hint`, or none if its texts are not limited.

    >>> choices(int | Literal["auto", "none"])
    ('auto', 'none')
    """
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in choices(part))


def option_problem(f: Field[Any], value: Any, hint: Any) -> str:
    """Return the problem with the type, choice or range of a value, or an empty text."""
    known = choices(hint)
    if value is None and NoneType in get_args(hint) or isinstance(value, str) and value in known:
        return ""
    kinds = [kind for kind in (get_args(hint) or (hint,)) if kind in _KINDS]
    accepts_int = float in kinds and isinstance(value, int) and not isinstance(value, bool)
    minimum, maximum = f.metadata["minimum"], f.metadata["maximum"]
    if type(value) in kinds or accepts_int:
        bound = math.inf if maximum is None else maximum
        if minimum is None or isinstance(value, str) or (minimum <= value <= bound and value < math.inf):
            return ""
    suggestion = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"{f.name}: expected {_expected(f, kinds, known)}, got {short_repr(value)}{suggestion}"


def _expected(f: Field[Any], kinds: list[type], known: tuple[str, ...]) -> str:
    """Describe the values that a field accepts."""
    minimum, maximum = f.metadata["minimum"], f.metadata["maximum"]
    bounds = ""
    if minimum is not None:
        bounds = f" of at least {minimum:,}" if maximum is None else f" from {minimum:,} to {maximum:,}"
    words = [_KINDS[kind] + (bounds if kind in (int, float) else "") for kind in kinds]
    return " or ".join([*words, *([f"one of {', '.join(known)}"] if known else [])])
