"""Schema version of the JSON and YAML files of a run folder (docs/run_folder.md)."""

from typing import Any

from skipway.errors import InputError, printable

__all__ = ["SCHEMA", "NewerSchema", "refuse_unknown_schema", "with_schema"]

SCHEMA = 1  # incremented when a key of a run folder is renamed, is removed or changes its meaning


class NewerSchema(InputError):
    """An intact file of a newer skipway. An older file must not be used instead."""


def with_schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the schema version as first key.

    >>> with_schema({"epochs": 3})
    {'schema': 1, 'epochs': 3}
    """
    return {"schema": SCHEMA, **values}


def refuse_unknown_schema(where: str, number: Any, writer: Any = None) -> None:
    """Raise an error unless a file has the schema version of this skipway.

    Args:
        where: name of the file for the message.
        number: value of its key "schema", or None.
        writer: version of skipway that wrote the file, if known.

    Raises:
        NewerSchema: the schema is newer.
        InputError: the schema is older or is not a number.
    """
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if is_number and number == SCHEMA:
        return
    got = "none" if number is None else printable(repr(number))[:40]
    message = f"{where}: expected schema {SCHEMA}, got {got}."
    if is_number and number > SCHEMA:
        version = f" ({printable(writer)[:40]} wrote it)" if writer is not None else ""
        raise NewerSchema(f"{message} Use a newer skipway{version}, or start a new run with this one.")
    raise InputError(f"{message} Use a run of this version of skipway.")
