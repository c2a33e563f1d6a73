"""Excel workbooks: the first worksheet with data, as CSV text, so that its layout is detected as that of text files."""

import csv
import io
import warnings
import zipfile
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

from skipway.data.sources.csv_parser import TextTable, parse_text
from skipway.data.sources.missing_file import missing_file
from skipway.data.sources.table_content import refuse_size
from skipway.data.sources.text_column import value_text
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.errors import InputError, MissingExtra, printable, reason_of
from skipway.utils.format_text import join_names

__all__ = ["read_workbook"]


def read_workbook(path: Path, layout: TableLayout = DETECTED) -> TextTable:
    """Read the first worksheet with data of a .xlsx or .xlsm file; lines are the rows of the worksheet.

    Args:
        path: the file.
        layout: rows of the worksheet that are set; the others are detected.

    Raises:
        InputError: the file cannot be read, or has no data.
        MissingExtra: openpyxl is not installed.
    """
    where = printable(path)
    if not path.exists():
        raise missing_file(path)
    sheets = _read_sheets(path, where)
    filled = [name for name, rows in sheets.items() if rows]
    if not filled:
        raise InputError(f"cannot read {where}: expected a worksheet with data, got none. Add a header and rows.")
    name, *others = filled
    table = parse_text(_csv_of(sheets[name]), f"{where}, worksheet {printable(name)!r}", layout)
    if others:
        shown = join_names((repr(printable(other)) for other in others), limit=5)
        table.notes.append(f"worksheet {printable(name)!r} is read; others are left out: {shown}")
    return table


def _read_sheets(path: Path, where: str) -> dict[str, list[tuple[Any, ...]]]:
    """Return the values of all worksheets by name, up to the last row with data."""
    try:
        import openpyxl
    except ImportError:
        raise MissingExtra("excel", f"reading {where}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and validations that are not supported
            with zipfile.ZipFile(path) as archive:
                refuse_size(sum(member.file_size for member in archive.infolist()), where)
            book = openpyxl.load_workbook(path, read_only=True, data_only=True)
            try:
                return {sheet.title: _rows_of(sheet) for sheet in book.worksheets}
            finally:
                book.close()
    except (InputError, MemoryError):
        raise
    except Exception as error:  # damaged files raise errors of many kinds
        raise InputError(
            f"cannot read {where}: expected an Excel workbook, got {reason_of(error)}. Save it again as .xlsx or CSV."
        ) from None


def _rows_of(sheet: Any) -> list[tuple[Any, ...]]:
    sheet.reset_dimensions()  # the stored ones may be wrong
    rows = list(sheet.iter_rows(values_only=True))
    while rows and all(value is None for value in rows[-1]):
        rows.pop()
    return rows


def _csv_of(rows: list[tuple[Any, ...]]) -> bytes:
    """Return rows as CSV text with a line for each row; columns without any value at the end are left out."""
    texts = [[_cell_text(value) for value in row] for row in rows]
    filled = [max((i + 1 for i, text in enumerate(row) if text), default=0) for row in texts]
    width = max(filled, default=0)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    for row in texts:
        writer.writerow([*row, *[""] * (width - len(row))][:width])
    return stream.getvalue().encode("utf-8", "replace")


def _cell_text(value: Any) -> str:
    """Return the value of a cell as text in one line."""
    if value is None:
        return ""
    if isinstance(value, datetime):
        return str(value.date()) if value.time() == time() else value.isoformat(" ", "seconds")
    if isinstance(value, timedelta):
        return value_text(value.total_seconds())
    if isinstance(value, date | time):
        return value.isoformat()
    return " ".join(value_text(value).split())
