"""Tables in JSON: a list of records, columns by name, or one object per line."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from skipway.data.sources.csv_parser import check_names
from skipway.data.sources.table import Table
from skipway.data.sources.table_content import decode_text, read_content
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.errors import InputError, printable, reason_of

__all__ = ["read_json", "read_json_lines"]


def read_json(path: Path) -> Table:
    """Read a .json file: a list of objects, or an object of columns, each a list or an object by row name.

    An object with one list of objects is read as this list. Lists in cells become their JSON text.

    Raises:
        InputError: the file cannot be read, or is no table.
    """
    where, name = printable(path), printable(path.name)
    text, notes = _read(path, where)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {where}: expected JSON, got {reason_of(error)}. Correct the file.") from None
    if isinstance(value, dict) and len(value) == 1:
        key, inner = next(iter(value.items()))
        if _are_records(inner):
            value = inner
            notes.append(f"the list {printable(key)!r} is read")
    if _are_records(value):
        return _table(str(path), value, where, notes=notes, row_name=lambda i: f"{name}:record {i + 1}")
    columns = _columns(value)
    if columns is None:
        raise InputError(
            f"cannot read {where}: expected a list of objects, or columns of one length by name, got other JSON. Save "
            "one object per row."
        )
    rows = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    return _table(str(path), rows, where, notes=notes, row_name=lambda i: f"{name}:record {i + 1}")


def read_json_lines(path: Path) -> Table:
    """Read a file of one object per line; keys that a line lacks are missing values.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    where, name = printable(path), printable(path.name)
    text, notes = _read(path, where)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if line.strip():
            rows.append(_object(line, f"{where}:{number}"))
            lines.append(number)
    return _table(str(path), rows, where, notes=notes, row_name=lambda i: f"{name}:{lines[i]}")


def _read(path: Path, where: str) -> tuple[bytes, list[str]]:
    data = read_content(path)
    if not data.strip():
        raise InputError(f"cannot read {where}: expected JSON objects, got no values. Add an object per row.")
    return decode_text(data, where)


def _table(path: str, rows: Sequence[dict[str, Any]], where: str, *, notes: list[str], row_name: Any) -> Table:
    """Return a table of objects; a column of objects raises an error when it is read."""
    keys = dict.fromkeys(chain.from_iterable(rows))
    if not keys:
        raise InputError(f"cannot read {where}: expected JSON objects with values, got none. Add an object per row.")
    check_names(list(keys), where)
    columns: dict[str, Cells] = {}
    for key in keys:
        values = [row.get(key) for row in rows]
        if any(isinstance(value, dict) for value in values):
            error = InputError(
                f"cannot use {where}, column {printable(key)!r}: expected strings or numbers, got an object. Split it "
                "into columns, or leave it out with --ignore."
            )
            columns[key] = TextColumn.refused(error, len(rows))
        else:
            columns[key] = TextColumn.of([_text(value) for value in values])
    return Table(path, columns, row_name, notes=notes)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _columns(value: Any) -> dict[str, list[Any]] | None:
    """Return the cells of columns by name, or None if the value is something else."""
    if not isinstance(value, dict) or not value:
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) for part in parts):  # as DataFrame.to_json writes them
        rows = dict.fromkeys(chain.from_iterable(parts))
        return {name: [part.get(row) for row in rows] for name, part in value.items()}
    if all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1:
        return dict(value)
    return None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {where}: expected a JSON object, got {reason_of(error)}. Correct it.") from None
    if not isinstance(value, dict):
        shown = printable(line.decode("utf-8", "replace"))[:40]
        raise InputError(f"cannot read {where}: expected a JSON object, got {shown}. Correct the line.")
    return value


def _text(value: Any) -> str | None:
    """Return a value as the text of a cell."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
