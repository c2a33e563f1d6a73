"""The schema number of the JSON and YAML files of a run folder (docs/run_folder.md), and the refusal of any other."""

from typing import Any

from skipway.errors import InputError, printable

__all__ = ["SCHEMA", "NewerSchema", "refuse_unknown_schema", "with_schema"]

SCHEMA = 1  # goes up when a key of a run folder is renamed, removed or gets another meaning


class NewerSchema(InputError):
    """A file that a newer skipway wrote: it is whole, so nothing older may take its place."""


def with_schema(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the schema number as their first key."""
    return {"schema": SCHEMA, **values}


def refuse_unknown_schema(where: str, number: Any, writer: Any = None) -> None:
    """Raise InputError unless `number`, which the file `where` holds, is the schema of this skipway.

    Args:
        where: name of the file, for the error.
        number: value of its key "schema", None if it has none.
        writer: version of skipway that wrote it, if the file names one.
    """
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if is_number and number == SCHEMA:
        return
    got = "none" if number is None else printable(repr(number))[:40]
    message = f"{where}: expected schema {SCHEMA}, got {got}."
    if is_number and number > SCHEMA:
        version = f" ({printable(writer)[:40]} wrote it)" if writer is not None else ""
        raise NewerSchema(f"{message} Use a newer skipway{version}, or start a new run with this one.")
    raise InputError(f"{message} Use a run that this version of skipway wrote.")
