"""Options of a call as plain values, as in YAML and on the command line."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.column_roles import LISTS, names_as_text
from skipway.runs.recipe import Recipe

__all__ = ["plain_options", "requested_options"]


def plain_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were set as plain values: a path as str, a NumPy number as a Python number.

    Args:
        options: options of the call by name.
    """
    plain = {name: names_as_text(value, name) if name in LISTS else _plain(value) for name, value in options.items()}
    return {name: value for name, value in plain.items() if (name, value) not in (("data", None), ("model", "auto"))}


def requested_options(options: Mapping[str, Any], config: str | os.PathLike[str] | None) -> dict[str, Any]:
    """Return the options of a YAML file, if there is one, updated with those of the call.

    Raises:
        InputError: the file cannot be read.
    """
    return {**(Recipe.read(Path(config)) if config is not None else {}), **options}


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
