"""JSON Lines: a table of one JSON object per line, as Hugging Face datasets has in metadata.jsonl."""

import json
from pathlib import Path
from typing import Any

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError, printable, reason_of

__all__ = ["read_json_lines"]

_MAX_BYTES = 2 << 30


def read_json_lines(path: Path) -> Table:
    """Read a .jsonl file; lists and objects become their JSON text, and keys that a line lacks are missing values.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    where, name = printable(path), printable(path.name)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"cannot read {where}: expected at most {_MAX_BYTES:,} bytes. Save it as .parquet.")
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    rows.append(_object(line, f"{where}:{number}"))
                    lines.append(number)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {where}: {reason_of(error)}. Save it as UTF-8 text.") from None
    keys = dict.fromkeys(key for row in rows for key in row)
    if not keys:
        raise InputError(f"cannot read {where}: expected a JSON object per line, got no values. Add a line per sample.")
    columns = {key: TextColumn.of([_text(row.get(key)) for row in rows]) for key in keys}
    return Table(str(path), {**columns}, lambda i: f"{name}:{lines[i]}")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"cannot read {where}: expected a JSON object, got {reason_of(error)}. Correct it.") from None
    if not isinstance(value, dict):
        raise InputError(f"cannot read {where}: expected a JSON object, got {printable(line)[:40]}. Correct the line.")
    return value


def _text(value: Any) -> str | None:
    """Return a value as the text of a cell."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
