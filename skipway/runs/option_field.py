"""Fields of a Recipe with their help texts, for `--help`, YAML and the checks of values."""

from dataclasses import field
from typing import Any

__all__ = ["GROUPS", "option"]

# Groups of options in `--help`, in their order.
GROUPS = (
    "Data",
    "Model",
    "Optimization",
    "Augmentation",
    "Regularization",
    "Transfer",
    "Hardware",
    "Output",
    "Safety",
)


def option(
    group: str,
    default: Any,
    help: str,
    *,
    effective: str = "",
    alias: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
) -> Any:
    """Return a field with its help text and the range of its value.

    Args:
        group: one of `GROUPS`.
        default: default value.
        help: a noun phrase of at most 12 words.
        effective: the default to show in `--help`, if the field's default is open.
        alias: short flag.
        minimum, maximum: range of a number.
    """
    assert group in GROUPS
    metadata = {
        "group": group,
        "help": help,
        "effective": effective,
        "alias": alias,
        "minimum": minimum,
        "maximum": maximum,
    }
    return field(default=default, metadata=metadata)
