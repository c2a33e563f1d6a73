"""NumberStyle: how the numbers of a column are written, fixed in training and stored with the column.

A cell is read in the style of its column. One that has another meaning in another style is an error of its row.
"""

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from skipway.errors import InputError, printable

__all__ = ["NumberStyle", "style_from_dict", "style_to_dict"]

_MAX_UNIT = 40  # characters of a prefix or suffix
_MARKS = {".": "point", ",": "comma"}
_SEPARATORS = {"": "", ",": "','", ".": "'.'", " ": "spaces", "'": "apostrophes"}


@dataclass(frozen=True)
class NumberStyle:
    """Marks and unit in which the numbers of a column are written.

    Args:
        decimal: decimal mark, "." or ","; "" if no number has decimals.
        thousands: separator of thousands, one of "," "." " " "'"; "" if no number has one.
        prefix: currency before the numbers.
        suffix: currency, unit or percent sign after the numbers.
        parentheses: True if "(300)" is -300, as in accounting.

    Raises:
        InputError: a mark is none of these, or both are equal.

    >>> NumberStyle(decimal=",", thousands=".", suffix="€").write(-1234.5)
    '-1.234,5 €'
    """

    decimal: str = ""
    thousands: str = ""
    prefix: str = ""
    suffix: str = ""
    parentheses: bool = False

    def __post_init__(self) -> None:
        texts = [self.decimal, self.thousands, self.prefix, self.suffix]
        are_texts = all(isinstance(text, str) and len(text) <= _MAX_UNIT for text in texts)
        known = are_texts and self.decimal in ("", *_MARKS) and self.thousands in _SEPARATORS
        if not known or (self.decimal and self.decimal == self.thousands):
            raise InputError(
                f"cannot create a NumberStyle: expected different marks, a decimal point or comma and thousands "
                f"separated by one of , . ' or a space, got {printable(repr(texts))[:80]}. Use a file saved by skipway."
            )

    @property
    def unit(self) -> str:
        """Currency, unit or percent sign of the numbers; the same text before and after them is the same unit."""
        return self.prefix + self.suffix

    @property
    def is_percent(self) -> bool:
        """True if the numbers are percentages, for which 0.5 and 0.5% differ."""
        return self.suffix in ("%", "‰")

    @property
    def decimal_mark(self) -> str:
        """Decimal mark of a number with decimals: that of the style, or else the one that separates no thousands."""
        return self.decimal or ("," if self.thousands == "." else ".")

    def write(self, value: float) -> str:
        """Write a finite number in this style, exactly.

        Args:
            value: the number, in the unit of the style.
        """
        whole, _, fraction = format(Decimal(repr(abs(float(value)))), "f").partition(".")
        text = f"{int(whole):,}".replace(",", self.thousands)
        if fraction.strip("0"):
            # Without a known mark, three digits could be thousands; a fourth makes them decimals.
            text += self.decimal_mark + fraction + ("0" if not self.decimal and len(fraction) == 3 else "")
        if self.suffix:
            text += self.suffix if self.is_percent else f" {self.suffix}"
        negative = value < 0
        if negative and self.parentheses:
            return f"({self.prefix}{text})"
        return f"{'-' if negative else ''}{self.prefix}{text}"

    def describe(self) -> str:
        """Describe what differs from plain numbers, such as "decimal comma, unit 'kg'"; "" if nothing does."""
        parts = ["decimal comma"] if self.decimal == "," else []
        if self.thousands:
            parts.append(f"thousands separated by {_SEPARATORS[self.thousands]}")
        if self.unit:
            parts.append(f"unit {printable(self.unit)!r}")
        if self.parentheses:
            parts.append("negative numbers in parentheses")
        return ", ".join(parts)


def style_to_dict(style: NumberStyle) -> dict[str, Any]:
    """Return a style as JSON values, without the fields that are not set."""
    return {name: value for name, value in asdict(style).items() if value}


def style_from_dict(values: dict[str, Any]) -> NumberStyle:
    """Create a style from the values of `style_to_dict`.

    Raises:
        InputError: a value cannot be used.
        TypeError: `values` is no dictionary, or has other fields.
    """
    style = NumberStyle(**values)
    return NumberStyle(style.decimal, style.thousands, style.prefix, style.suffix, bool(style.parentheses))
