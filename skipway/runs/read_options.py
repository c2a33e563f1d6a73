"""Options on how DATA is read, which evaluate and check share with training."""

import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from skipway.data.column_roles import ColumnRoles
from skipway.data.table_layout import TableLayout
from skipway.errors import InputError, did_you_mean, printable
from skipway.runs.recipe import Recipe

__all__ = ["READ_OPTIONS", "recipe_for_reading"]

READ_OPTIONS = (
    *("max_pixels", "follow_links", "allow_empty_classes", "cache_size"),
    *(field.name for field in fields(ColumnRoles)),
    *(field.name for field in fields(TableLayout)),
)


def recipe_for_reading(command: str, data: str | os.PathLike[str], options: Mapping[str, Any]) -> Recipe:
    """Return a Recipe with options for reading `data`.

    Args:
        command: verb of the command, for errors.
        data: the dataset.
        options: fields of a Recipe.

    Raises:
        InputError: an option is not one of `READ_OPTIONS`, or its value is invalid.
    """
    for name in options:
        if name not in READ_OPTIONS:
            raise InputError(
                f"cannot {command} {printable(data)}: expected options for reading data ({', '.join(READ_OPTIONS)}), "
                f"got {printable(name)}{did_you_mean(name, READ_OPTIONS)}. Leave it out."
            )
    return Recipe.of({"data": os.fspath(data), **options})
