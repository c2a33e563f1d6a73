"""The default value of an option as `--help` shows it."""

__all__ = ["shown_default"]


def shown_default(value: object) -> str:
    """Return a default for a help text.

    >>> shown_default(False), shown_default(50_000_000), shown_default("auto")
    ('off', '50,000,000', 'auto')
    """
    if value is False:
        return "off"
    return f"{value:,}" if isinstance(value, int) else str(value)
