"""Plans: plain values that define a network, validated before any layer is built."""

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from skipway.errors import InputError, did_you_mean

__all__ = ["Plan"]

# Values in a sequence: the maximum number of columns of a table. Layers are built, without weights, before they are
# compared with those of a file, so a malicious plan could otherwise fill the memory.
_MAX_COUNT = 10_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Base class of the values that define a network of one family.

    Equal plans build equal networks. `repr` is the code that creates the plan.
    """

    FAMILY: ClassVar[str] = ""

    @classmethod
    def options(cls) -> list[str]:
        """Return the names of all values."""
        return [f.name for f in fields(cls)]

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Create a plan from the dictionary of `as_dict`; missing values take their defaults.

        Raises:
            InputError: a name or a value is invalid.
        """
        unknown = sorted(set(values) - set(cls.options()))
        if unknown:
            raise InputError(
                "cannot read the plan: expected fields of this version of skipway, got "
                f"{', '.join(unknown)}. Upgrade skipway."
            )
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return the values as a dictionary for JSON."""
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}

    def _check_whole_numbers(self, *names: str, minimum: int = 1) -> None:
        """Check that values are integers of at least `minimum`, or sequences of them if the default is one."""
        several = {f.name: isinstance(f.default, tuple) for f in fields(self)}
        for name in names:
            value = getattr(self, name)
            try:
                numbers = tuple(operator.index(v) for v in (value if several[name] else [value]))
            except TypeError:
                numbers = (minimum - 1,)
            if min(numbers, default=minimum) < minimum:
                shown = list(value) if isinstance(value, tuple) else value
                raise InputError(
                    f"{self.FAMILY}: expected integers of at least {minimum} for {name}, got {shown}. Change {name}."
                )
            if len(numbers) > _MAX_COUNT:
                raise InputError(
                    f"{self.FAMILY}: expected at most {_MAX_COUNT:,} values for {name}, got {len(numbers):,}. "
                    f"Make {name} shorter."
                )
            object.__setattr__(self, name, numbers if several[name] else numbers[0])

    def _check_shares(self, *names: str) -> None:
        """Check that values are numbers of at least 0 and below 1."""
        for name in names:
            value = getattr(self, name)
            number = float(value) if isinstance(value, int | float) else math.nan
            if not 0 <= number < 1:
                raise InputError(
                    f"{self.FAMILY}: expected {name} of at least 0 and below 1, got {value}. Change {name}."
                )
            object.__setattr__(self, name, number)

    def _check_choices(self, **choices: Iterable[str]) -> None:
        """Check that each value is one of its choices."""
        for name, words in choices.items():
            value = getattr(self, name)
            if value not in tuple(words):
                raise InputError(
                    f"{self.FAMILY}: unknown {name} {value!r}{did_you_mean(str(value), words)}: expected one "
                    f"of {', '.join(words)}. Change {name}."
                )
