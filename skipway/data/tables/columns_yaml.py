"""columns.yaml: how each column of a table was read, in the form that `--columns` accepts."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from skipway.data.tables.column_settings import LEFT_OUT, TARGET
from skipway.data.tables.columns import KINDS
from skipway.data.tables.date_formats import FORMATS
from skipway.data.tables.number_style import style_to_dict
from skipway.data.tables.table_spec import TableSpec
from skipway.utils.run_schema import with_schema

__all__ = ["columns_yaml"]

_HEAD = f"""\
# How each column was read. Edit kinds, and pass this file with --columns.
# kind: {", ".join((*KINDS, LEFT_OUT, TARGET))}
# format, of dates: {", ".join(FORMATS)}
# decimal, thousands, prefix, suffix, parentheses: how numbers are written
# why, missing, odd, example: for information only
"""


def columns_yaml(spec: TableSpec, details: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of columns.yaml.

    Args:
        spec: encoders of the used columns.
        details: facts about all columns, see `describe_columns`.
    """
    used = {column.name: column for column in spec.columns}
    rows: dict[str, dict[str, Any]] = {}
    for name, facts in details.items():
        row = {"kind": facts["kind"]}
        if name in used:
            column = used[name]
            row |= style_to_dict(column.style) if column.style else {}
            row |= {"format": column.dates.date_format} if column.dates else {}
        rows[name] = row | {key: facts[key] for key in ("why", "missing", "odd", "example") if facts[key] is not None}
    values: dict[str, Mapping[str, Any] | Sequence[str]] = {"missing": list(spec.missing)} if spec.missing else {}
    values["columns"] = rows
    # Each column is one line, however long.
    text = yaml.safe_dump(
        with_schema(values), sort_keys=False, allow_unicode=True, default_flow_style=None, width=float("inf")
    )
    return _HEAD + text
