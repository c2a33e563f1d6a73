"""Plans: the plain values that rebuild a network, made and checked before any layer is."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from skipway.errors import InputError, did_you_mean

__all__ = ["Plan"]

# Numbers in a sequence, as many as a table may have columns. Layers are made, without weights, before they are compared
# with those of a file: its plan must not be able to fill the memory.
_MAX_COUNT = 10_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The values of one family's networks. Equal plans rebuild equal networks; `repr` is the code that makes it."""

    FAMILY: ClassVar[str] = ""

    @classmethod
    def options(cls) -> list[str]:
        """The names of all values."""
        return [f.name for f in fields(cls)]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The plan that `as_dict` gave; what an older skipway did not write takes its default."""
        unknown = sorted(set(values) - set(cls.options()))
        if unknown:
            raise InputError(f"the plan has fields this skipway does not know ({', '.join(unknown)}); upgrade skipway")
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}

    def _check_whole_numbers(self, *names: str, minimum: int = 1) -> None:
        """Check that values are whole numbers from `minimum` on, or sequences of them if their default is one."""
        several = {f.name: isinstance(f.default, tuple) for f in fields(self)}
        for name in names:
            value = getattr(self, name)
            try:
                numbers = tuple(operator.index(v) for v in (value if several[name] else [value]))
            except TypeError:
                numbers = (minimum - 1,)
            if min(numbers, default=minimum) < minimum:
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(f"{self.FAMILY} needs whole numbers of at least {minimum} for {name}, not {shown}")
            if len(numbers) > _MAX_COUNT:
                raise InputError(
                    f"{self.FAMILY}: expected at most {_MAX_COUNT:,} numbers for {name}, got {len(numbers):,}. Make "
                    f"{name} shorter."
                )
            object.__setattr__(self, name, numbers if several[name] else numbers[0])

    def _check_shares(self, *names: str) -> None:
        """Check that values are numbers from 0 up to but not including 1."""
        for name in names:
            value = getattr(self, name)
            number = float(value) if isinstance(value, int | float) else math.nan
            if not 0 <= number < 1:
                raise InputError(f"{self.FAMILY}: {name} is a chance from 0 up to but not including 1, not {value}")
            object.__setattr__(self, name, number)

    def _check_choices(self, **choices: Iterable[str]) -> None:
        """Check that each value is one of its choices."""
        for name, words in choices.items():
            value = getattr(self, name)
            if value not in tuple(words):
                raise InputError(
                    f"{self.FAMILY} has no {name} {value!r}{did_you_mean(str(value), words)}; there are "
                    f"{', '.join(words)}"
                )
