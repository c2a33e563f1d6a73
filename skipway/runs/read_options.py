"""Options on how DATA is read, which evaluate and check share with training.

A trained model has the kinds of its columns, so that only check has the options that set them.
"""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from skipway.data.column_roles import COLUMN_OPTIONS, ColumnRoles
from skipway.data.table_layout import TableLayout
from skipway.errors import InputError, did_you_mean, printable
from skipway.runs.recipe import Recipe

__all__ = ["CHECK_OPTIONS", "READ_OPTIONS", "recipe_for_reading"]

READ_OPTIONS = (
    *("max_pixels", "follow_links", "allow_empty_classes", "cache_size"),
    *(field.name for field in fields(ColumnRoles) if field.name not in COLUMN_OPTIONS),
    *(field.name for field in fields(TableLayout)),
)
CHECK_OPTIONS = (*READ_OPTIONS, *COLUMN_OPTIONS)


def recipe_for_reading(command: str, data: str | os.PathLike[str], options: Mapping[str, Any]) -> Recipe:
    """Return a Recipe with options for reading `data`.

    Args:
        command: verb of the command, for errors.
        data: the dataset.
        options: fields of a Recipe.

    Raises:
        InputError: the command has no such option, or its value is invalid.
    """
    known = CHECK_OPTIONS if command == "check" else READ_OPTIONS
    for name in options:
        if name not in known:
            raise InputError(
                f"cannot {command} {printable(data)}: expected options for reading data ({', '.join(known)}), "
                f"got {printable(name)}{did_you_mean(name, known)}. Leave it out."
            )
    return Recipe.of({"data": os.fspath(data), **options})
