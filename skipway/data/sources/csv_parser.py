"""Parser of delimited text, such as CSV and TSV, which keeps the line number of every record.

Everything unusual is recorded in `notes`, and errors name the line. Cells remain text; the kind of a
column is inferred later, in `tables/columns.py`.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from skipway.data.sources.plain_csv import read_plain
from skipway.data.sources.table_content import SPACED_SUFFIXES, decode_text, read_content, table_suffix
from skipway.data.sources.text_column import TextColumn
from skipway.data.sources.text_form import SEPARATOR_NAMES, TextForm, find_form, is_number
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["MAX_COLUMNS", "TextTable", "check_names", "parse_text", "read_text"]

MAX_COLUMNS = 10_000  # the run folder has a line per column, and wider tables are mostly transposed
_CHUNK = 50_000  # records per conversion to columns
_FEW = 10_000  # maximum distinct texts of a column for which equal texts share memory


@dataclass
class TextTable:
    """Columns of N cells in the order of the file; row i begins in line `lines[i]`, counted from 1.

    `row_names` is the column that names the rows, "" if there is none. Without a header, columns are named by position.
    """

    columns: dict[str, TextColumn]
    lines: Sequence[int] | np.ndarray
    separator: str
    notes: list[str] = field(default_factory=list)
    row_names: str = ""
    has_header: bool = True


def read_text(path: Path, plain: bool = True, layout: TableLayout = DETECTED) -> TextTable:
    """Read a CSV, TSV or other delimited text file.

    Args:
        path: the file.
        plain: False to parse plain text in the same way as all other text, which is slower.
        layout: lines of the table that are set; the others are detected.

    Raises:
        InputError: the file cannot be read, has no rows, or has a malformed line.
    """
    where = printable(path)
    text, notes = decode_text(read_content(path), where)
    suffix = table_suffix(path)
    usual = "\t" if suffix in (".tsv", ".tab") else ","
    table = parse_text(text, where, layout, usual=usual, has_spaces=suffix in SPACED_SUFFIXES, plain=plain)
    table.notes[:0] = notes
    return table


def parse_text(
    text: bytes,
    where: str,
    layout: TableLayout = DETECTED,
    *,
    usual: str = ",",
    has_spaces: bool = False,
    plain: bool = True,
) -> TextTable:
    """Parse UTF-8 text as a table.

    Args:
        text: the text.
        where: name of the file, for errors.
        layout: lines of the table that are set; the others are detected.
        usual: separator that needs no note.
        has_spaces: True if runs of spaces may separate the fields.
        plain: False to parse plain text in the same way as all other text, which is slower.

    Raises:
        InputError: the text has no rows, or a malformed line.
    """
    form = find_form(text, usual, layout, where, has_spaces=has_spaces)
    records = _records(form.text, form.separator, where, form.above)
    line, last, row = next(records)
    names, may_be_row_names = _read_names(row, form, where, line)
    if not form.has_header:
        records = chain([(line, last, row)], records)
    is_plain = plain and (last == 1 + form.above or not form.has_header)
    columns = read_plain(form.text, form.separator, len(names), has_header=form.has_header) if is_plain else None
    first = form.above + 1 + form.has_header
    lines: Sequence[int] | np.ndarray = range(first, first + len(columns[0])) if columns else ()
    if columns is None:
        columns, lines = _parse_rows(records, names, separator=form.separator, where=where)
    if form.ends_empty and not columns[-1].missing().all():
        wrong = int(np.flatnonzero(~columns[-1].missing())[0])
        raise InputError(
            f"cannot read {where}:{lines[wrong]}: expected {form.width - 1} fields as in the header, got {form.width}. "
            f"Correct the line, or quote texts that contain a {_separator_name(form.separator)}."
        )
    table = TextTable(dict(zip(names, columns, strict=True)), lines, form.separator, form.notes)
    table.has_header = form.has_header
    if may_be_row_names and _are_distinct(columns[0]):
        table.row_names = names[0]
        table.notes.append(f"the first column names the rows: {names[0]!r} is no input")
    return table


def _parse_rows(
    records: Iterator[tuple[int, int, list[str]]], names: tuple[str, ...], *, separator: str, where: str
) -> tuple[list[TextColumn], np.ndarray]:
    """Return the columns, and the first line of each row, from the records after the header."""
    columns = _ColumnBuilder(names)
    ragged: list[tuple[int, int]] = []  # (line, number of fields)
    for line, _, row in records:
        if len(row) != len(names):
            ragged.append((line, len(row)))
        else:
            columns.add(line, row)
    if ragged:
        line, count = ragged[0]
        raise InputError(
            f"cannot read {where}:{line}: expected {len(names)} fields as in the header, got {count}"
            + (f" (and {len(ragged) - 1:,} more such lines)" if len(ragged) > 1 else "")
            + f". Correct the line, or quote texts that contain a {_separator_name(separator)}."
        )
    if not columns.lines:
        raise InputError(
            f"cannot read {where}: expected rows after the header, got only the header. Add a line per sample."
        )
    return columns.build(), np.array(columns.lines, np.int64)


def _lines(text: bytes) -> io.TextIOWrapper:
    """Iterate over the lines of UTF-8 text, with their ends."""
    return io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", newline="")


def _records(text: bytes, separator: str, where: str, above: int = 0) -> Iterator[tuple[int, int, list[str]]]:
    """Iterate over (first line, last line, fields) of all records that are not blank, with `above` lines above."""
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    while True:
        line = above + reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(_describe_error(where, line, str(error))) from None
        if row and (len(row) > 1 or row[0].strip()):
            yield line, above + reader.line_num, row


class _ColumnBuilder:
    """Convert rows to columns of text in chunks; equal texts of a column share memory."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.lines: list[int] = []
        self._chunk: list[list[str]] = []
        self._parts: list[list[np.ndarray]] = [[] for _ in names]
        self._shared: list[dict[str, str]] = [{} for _ in names]

    def add(self, line: int, row: list[str]) -> None:
        """Add a row that begins in `line`."""
        self.lines.append(line)
        self._chunk.append(row)
        if len(self._chunk) == _CHUNK:
            self._flush()

    def build(self) -> list[TextColumn]:
        """Return the columns, for at least 1 row."""
        self._flush()
        return [TextColumn.of(np.concatenate(parts)) for parts in self._parts]

    def _flush(self) -> None:
        for i, cells in enumerate(zip(*self._chunk, strict=True)):
            shared = self._shared[i]
            texts = [shared.setdefault(cell, cell) for cell in cells] if len(shared) < _FEW else cells
            self._parts[i].append(_to_object_array(texts))
        self._chunk.clear()


def check_names(names: list[str], where: str) -> None:
    """Check the column names of a table.

    Args:
        names: column names, in the order of the table.
        where: name of the table, for errors.

    Raises:
        InputError: there are too many columns, or names are not unique.
    """
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"cannot use {where}: expected at most {MAX_COLUMNS:,} columns, got {len(names):,}. Remove columns, or "
            "transpose the table if each column is a sample."
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        numbers = [str(i + 1) for i, name in enumerate(names) if name == twice[0]]
        raise InputError(
            f"cannot use {where}: expected unique column names, got {printable(twice[0])!r} {len(numbers)} times "
            f"(columns {', '.join(numbers[:5])})"
            + (f" and {len(twice) - 1} more repeated names" if len(twice) > 1 else "")
            + ". Rename the columns."
        )


def _read_names(row: list[str], form: TextForm, where: str, line: int) -> tuple[tuple[str, ...], bool]:
    """Return the column names, and True if the first column holds the names of the rows."""
    if not form.has_header:
        return tuple(f"column_{i + 1}" for i in range(form.width)), False
    names = [name.strip() for name in row]
    if len(names) > form.width and not any(names[form.width :]):
        form.notes.append(f"{count_of(len(names) - form.width, 'empty field')} at the end of the header left out")
        del names[form.width :]
    has_row_names = False
    if len(names) == form.width - 1:
        rows = [cells for cells in form.rows if len(cells) == form.width]
        if not any(cells[-1].strip() for cells in rows):
            names.append("")
            form.ends_empty = True
        elif _are_row_names([cells[0].strip() for cells in rows]):
            names.insert(0, "")
            has_row_names = True
        else:
            raise InputError(
                f"cannot read {where}:{line}: expected a name for each of the {form.width} fields of the rows, got "
                f"{len(names)} names. Add the missing name to the header, or pass --no-header."
            )
    if unnamed := [i for i, name in enumerate(names) if not name]:
        names = [name or f"column {i + 1}" for i, name in enumerate(names)]
        form.notes.append(
            f"columns without a name, named by position: {', '.join(repr(names[i]) for i in unnamed[:5])}"
        )
    check_names(names, where)
    return tuple(names), has_row_names or 0 in unnamed


def _are_row_names(texts: list[str]) -> bool:
    """Return True for different texts, or for the numbers of the rows."""
    if len(set(texts)) < len(texts) or not all(texts):
        return False
    if all(text.isdecimal() for text in texts):
        numbers = list(map(int, texts))
        return numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return not any(map(is_number, texts))


def _are_distinct(column: TextColumn) -> bool:
    """Return True if a column has a different text, or a different whole number, in every row."""
    if column.missing().any():
        return False
    numbers = column.numbers
    if numbers is None:
        texts = column.factorize()[1]
        if len(texts) < len(column) or not all(map(is_number, texts)):
            return len(texts) == len(column)
        numbers = np.array([text.replace(",", ".") for text in texts], np.float64)
    return bool((numbers == np.round(numbers)).all()) and len(np.unique(numbers)) == len(numbers)


def _separator_name(separator: str) -> str:
    return SEPARATOR_NAMES.get(separator, "separator")


def _describe_error(where: str, line: int, reason: str) -> str:
    if "unexpected end" in reason:
        return (
            f"cannot read {where}:{line}: expected a closing quote, got the end of the file. Close or double the quote."
        )
    if "expected after" in reason:
        return (
            f"cannot read {where}:{line}: expected a separator after a closing quote. Double the quotes inside a text."
        )
    if "field limit" in reason:
        limit = csv.field_size_limit()
        return f"cannot read {where}:{line}: expected fields of at most {limit:,} characters. Check for an open quote."
    return f"cannot read {where}:{line}: {printable(reason)}. Correct the line."


def _to_object_array(cells: list[str] | tuple[str, ...]) -> np.ndarray:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
