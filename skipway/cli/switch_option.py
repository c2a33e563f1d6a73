"""Options that switch something on, and the text of defaults in `--help`."""

from typing import Any

from cyclopts import Parameter

__all__ = ["shown_default", "switch"]


def switch(**details: Any) -> Parameter:
    """Return the parameter of a boolean option that is off by default and has no `--no-` form.

    Args:
        details: further arguments of the parameter, such as help and group.
    """
    return Parameter(negative="", show_default=shown_default, **details)


def shown_default(value: object) -> str:
    """Return a default for a help text.

    >>> shown_default(False), shown_default(50_000_000), shown_default("auto")
    ('off', '50,000,000', 'auto')
    """
    if value is False:
        return "off"
    return f"{value:,}" if isinstance(value, int) else str(value)
