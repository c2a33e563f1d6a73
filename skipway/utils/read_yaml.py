"""Read a mapping from a YAML file."""

from pathlib import Path
from typing import Any

import yaml

from skipway.errors import InputError, printable

__all__ = ["read_yaml"]

_MAX_CHARACTERS = 100_000  # of a config; all fields together take 2,000


def read_yaml(
    path: Path,
    name: str = "config",
    *,
    lines: str = "`option: value` lines",
    example: str = "epochs: 20",
    limit: int = _MAX_CHARACTERS,
) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: the file.
        name: what the file is, for errors.
        lines, example: its lines in words and one of them, for errors.
        limit: largest number of characters.

    Raises:
        InputError: the file cannot be read, or is not a YAML mapping.
    """
    where = f"{name} {printable(path)}"
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(limit + 1)
        if len(text) > limit:
            raise ValueError(f"longer than {limit:,} characters")
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read the {where}: {error.strerror}. Check the path.") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise InputError(f"cannot read the {where}: expected plain YAML, got: {reason}. Fix it.") from None
    if not isinstance(values, dict):
        raise InputError(
            f"cannot read the {where}: expected {lines}, got a {type(values).__name__}. Write lines such as "
            f"`{example}`."
        )
    return values
