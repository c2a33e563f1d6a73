"""Plans: plain values that define a network, validated before any layer is built."""

import math
import numbers
import operator
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from skipway.errors import InputError, did_you_mean
from skipway.models.head import POOLS, pool_name

__all__ = ["OUTPUT_STRIDES", "SMALL_STEMS", "Plan", "whole_number"]

# Values in a sequence: the maximum number of columns of a table. Layers are built, without weights, before they are
# compared with those of a file, so a malicious plan could otherwise fill the memory.
_MAX_COUNT = 10_000
OUTPUT_STRIDES = (8, 16, 32)
SMALL_STEMS = ("small", "whitening")  # stems that keep the size of small images


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
                counts = tuple(whole_number(v) for v in (value if several[name] else [value]))
            except TypeError:
                counts = (minimum - 1,)
            if min(counts, default=minimum) < minimum:
                shown = list(value) if isinstance(value, tuple) else value
                hint = " (did you mean pretrained=True?)" if name == "num_classes" and value is True else ""
                raise InputError(
                    f"{self.FAMILY}: expected integers of at least {minimum} for {name}, got {shown}{hint}. "
                    f"Change {name}."
                )
            if len(counts) > _MAX_COUNT:
                raise InputError(
                    f"{self.FAMILY}: expected at most {_MAX_COUNT:,} values for {name}, got {len(counts):,}. "
                    f"Make {name} shorter."
                )
            object.__setattr__(self, name, counts if several[name] else counts[0])

    def _check_shares(self, *names: str) -> None:
        """Check that values are numbers of at least 0 and below 1."""
        for name in names:
            share = self._number(name)
            if not 0 <= share < 1:
                raise InputError(
                    f"{self.FAMILY}: expected {name} of at least 0 and below 1, got {getattr(self, name)!r}. "
                    f"Change {name}."
                )
            object.__setattr__(self, name, share)

    def _number(self, name: str) -> float:
        """Return a value as a float, or NaN if it is no real number: no range contains NaN."""
        value = getattr(self, name)
        return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan

    def _check_switches(self, *names: str) -> None:
        """Check that values are True or False."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise InputError(f"{self.FAMILY}: expected True or False for {name}, got {value!r}. Change {name}.")

    def _check_head(self, pools: Iterable[str] = POOLS) -> None:
        """Check the values of the head: `num_classes`, and `global_pool` and `drop_rate` if the family has them.

        Args:
            pools: global pools of the family.
        """
        self._check_whole_numbers("num_classes", minimum=0)
        values = self.as_dict()
        if "drop_rate" in values:
            self._check_shares("drop_rate")
        if "global_pool" not in values:
            return
        default = next(f.default for f in fields(self) if f.name == "global_pool")
        kind = default if values["global_pool"] is None else pool_name(values["global_pool"])
        num_classes = values["num_classes"]
        object.__setattr__(self, "global_pool", kind)
        self._check_choices(global_pool=pools)
        if kind == "none" and num_classes:
            raise InputError(
                f'{self.FAMILY} with global_pool "none": expected num_classes=0, because the output is a feature map, '
                f"got {num_classes}. Set num_classes=0, or use another global_pool."
            )

    def _check_output_stride(self) -> None:
        """Check that `output_stride` is None or one of `OUTPUT_STRIDES`."""
        value = self.as_dict()["output_stride"]
        if value is None:
            return
        if isinstance(value, bool) or value not in OUTPUT_STRIDES:
            raise InputError(f"{self.FAMILY}: expected output_stride 8, 16 or 32, got {value!r}. Change output_stride.")
        object.__setattr__(self, "output_stride", int(value))

    def _check_choices(self, **choices: Iterable[str]) -> None:
        """Check that each value is one of its choices."""
        for name, words in choices.items():
            value = getattr(self, name)
            if value not in tuple(words):
                raise InputError(
                    f"{self.FAMILY}: unknown {name} {value!r}{did_you_mean(str(value), words)}: expected one "
                    f"of {', '.join(words)}. Change {name}."
                )


def whole_number(value: Any) -> int:
    """Return an integer of Python or NumPy as an int; a bool is none, although Python counts with it.

    Raises:
        TypeError: the value is no integer.

    >>> whole_number(7)
    7
    """
    if isinstance(value, bool):
        raise TypeError("a bool is no count")
    return operator.index(value)
