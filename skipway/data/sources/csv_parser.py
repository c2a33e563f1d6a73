"""CSV and TSV parser: detects encoding and separator, and keeps the line number of every record.

Unusual encodings and separators are recorded in `notes`, and errors name the line. Cells remain text; the kind of a
column is inferred later, in `tables/columns.py`.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skipway.data.sources.missing_file import missing_file
from skipway.data.sources.plain_csv import read_plain
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError, printable

__all__ = ["MAX_COLUMNS", "TextTable", "check_names", "read_text"]

MAX_COLUMNS = 10_000  # the run folder has a line per column, and wider tables are mostly transposed
_MAX_BYTES = 2 << 30  # tables are read into memory and need up to 10 times their file size
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SAMPLED = 200  # records for the detection of the separator
_CHUNK = 50_000  # records per conversion to columns
_FEW = 10_000  # maximum distinct texts of a column for which equal texts share memory
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an Excel workbook (.xls)",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF file",
    b"SQLite": "an SQLite database",
}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass
class TextTable:
    """Columns of N cells in the order of the file; row i begins in line `lines[i]`, counted from 1."""

    columns: dict[str, TextColumn]
    lines: Sequence[int] | np.ndarray
    separator: str
    notes: list[str] = field(default_factory=list)


def read_text(path: Path, plain: bool = True) -> TextTable:
    """Read a CSV or TSV file whose first line holds the column names.

    Args:
        path: the file.
        plain: False to parse plain text in the same way as all other text, which is slower.

    Raises:
        InputError: the file cannot be read, has no rows, or has a malformed line.
    """
    where = printable(path)
    text, notes = _decode_text(_read_bytes(path, where), where)
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    separator = _guess_separator(text, usual)
    if separator != usual:
        notes.append(f"separator: {_SEPARATOR_NAMES[separator]}")
    records = _records(text, separator, where)
    first = next(records, None)
    if first is None:
        raise InputError(
            f"cannot read {where}: expected column names in the first line, got blank lines. Add a header."
        )
    line, last, row = first
    names = _read_header(row, line=line, where=where, notes=notes)
    columns = read_plain(text, separator, len(names)) if plain and last == 1 else None
    lines: Sequence[int] | np.ndarray = range(2, 2 + len(columns[0])) if columns else ()
    if columns is None:
        columns, lines = _parse_rows(records, names, separator=separator, where=where)
    return TextTable(dict(zip(names, columns, strict=True)), lines=lines, separator=separator, notes=notes)


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
            + f". Correct the line, or quote texts that contain a {_SEPARATOR_NAMES[separator]}."
        )
    if not columns.lines:
        raise InputError(
            f"cannot read {where}: expected rows after the header, got only the header. Add a line per sample."
        )
    return columns.build(), np.array(columns.lines, np.int64)


def _lines(text: bytes) -> io.TextIOWrapper:
    """Iterate over the lines of UTF-8 text, with their ends."""
    return io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", newline="")


def _records(text: bytes, separator: str, where: str) -> Iterator[tuple[int, int, list[str]]]:
    """Iterate over (first line, last line, fields) of all records that are not blank."""
    reader = csv.reader(_lines(text), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(_describe_error(where, line, str(error))) from None
        if row and (len(row) > 1 or row[0].strip()):
            yield line, reader.line_num, row


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


def _read_bytes(path: Path, where: str) -> bytes:
    try:
        if not path.exists():
            raise missing_file(path)
        if not path.is_file():
            raise InputError(f"cannot read {where}: expected a regular file. Pass a .csv, .tsv or .parquet file.")
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(
                f"cannot read {where}: expected at most {_MAX_BYTES:,} bytes, got {size:,}. Split it, or save it as "
                ".parquet."
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}. Check the path and the permissions.") from None
    for start, kind in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise InputError(f"cannot read {where}: expected a text table, got {kind}. Save it as CSV.")
    if not data or data.isspace():
        raise InputError(
            f"cannot read {where}: expected column names in the first line, got an empty file. Add a header."
        )
    return data


def _decode_text(data: bytes, where: str) -> tuple[bytes, list[str]]:
    """Return the text as UTF-8 without a byte order mark, and notes on its encoding."""
    for mark, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                text = data.decode(name).encode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"cannot read {where}: expected {name.removesuffix('-sig').upper()} by its byte order mark, got "
                    f"an invalid byte at offset {error.start:,}. Save it as UTF-8."
                ) from None
            return text, ([] if name == "utf-8-sig" else ["read as UTF-16"])
    head = data[:4096]
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # every second byte of Latin text is zero
        if len(head) >= 4 and head[offset::2].count(0) > 0.7 * len(head[offset::2]):
            try:
                return data.decode(name).encode("utf-8"), ["read as UTF-16"]
            except UnicodeDecodeError:
                break
    if (zero := data.find(0)) >= 0:
        raise InputError(
            f"cannot read {where}:{_line_at(data, zero)}: expected text, got a NUL byte. Save the table as UTF-8."
        )
    if data.isascii():
        return data, []
    try:
        data.decode("utf-8")
        return data, []
    except UnicodeDecodeError as error:
        note = f"line {_line_at(data, error.start):,} is not UTF-8: read as Windows-1252 (Latin-1)"
        try:
            return data.decode("cp1252").encode("utf-8"), [note]
        except UnicodeDecodeError:
            return data.decode("latin-1").encode("utf-8"), [note]


def _line_at(data: bytes, offset: int) -> int:
    before = data[:offset].replace(b"\r\n", b"\n")
    return before.count(b"\n") + before.count(b"\r") + 1


def _guess_separator(text: bytes, usual: str) -> str:
    """Detect the separator that splits the first records most evenly, into the most fields."""
    best_rank, best_separator = (0.0, 0, False), usual
    for separator in _SEPARATORS:
        reader = csv.reader(_lines(text), delimiter=separator)
        counts: list[int] = []
        try:
            for row in reader:
                if row:
                    counts.append(len(row))
                if len(counts) > _SAMPLED:
                    break
        except csv.Error:
            pass
        if not counts or counts[0] < 2:
            continue
        even = sum(c == counts[0] for c in counts) / len(counts)
        # Up to 1 ragged line in 20 is a malformed line; more indicate another separator.
        rank = (1.0 if even > 0.95 else even, counts[0] if even > 0.95 else 0, separator == usual)
        if rank > best_rank:
            best_rank, best_separator = rank, separator
    return best_separator


def _read_header(row: list[str], *, line: int, where: str, notes: list[str]) -> tuple[str, ...]:
    names = [name.strip() for name in row]
    if all(_NUMBER.fullmatch(name) for name in names):
        raise InputError(
            f"cannot read {where}:{line}: expected column names, got only numbers. Add a first line with column names."
        )
    if unnamed := [i for i, name in enumerate(names) if not name]:
        names = [name or f"column {i + 1}" for i, name in enumerate(names)]
        notes.append(f"columns without a name, named by position: {', '.join(repr(names[i]) for i in unnamed[:5])}")
    check_names(names, where)
    return tuple(names)


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
