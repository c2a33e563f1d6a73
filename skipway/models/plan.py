"""What the values of a plan must be, the same for every family."""

import operator
from collections.abc import Iterable

from skipway.errors import InputError

__all__ = ["whole"]


def whole(family: str, name: str, values: Iterable[int], least: int = 1) -> list[int]:
    """`values` as whole numbers of at least `least`, or the error that names the family and the option."""
    try:
        numbers = [operator.index(v) for v in values]
    except TypeError:
        numbers = [least - 1]
    if min(numbers, default=least) < least:
        raise InputError(f"{family} needs whole numbers of at least {least} for {name}, not {values}")
    return numbers
