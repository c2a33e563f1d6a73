"""CSV and TSV files as text: encoding, separator and every record with the line it begins in.

What has to be guessed (encoding, separator) is guessed from the bytes and said in `notes`; what is broken is named by
its line. Cells stay text here: what they mean is decided by whole columns, in `columns`.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skipway.errors import InputError, printable

__all__ = ["MAX_COLUMNS", "TextTable", "check_names", "read_text"]

MAX_COLUMNS = 10_000  # each one is a line of the run's own files, and most wider tables are written sideways
_MAX_BYTES = 2 << 30  # a table is held in memory, at up to ten times its size
_SEPARATORS = (",", ";", "\t", "|")
_SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_SAMPLED = 200  # records that a separator is tried on
_CHUNK = 50_000  # records that become columns at a time
_FEW = 10_000  # different texts of a column up to which equal ones share their memory
_BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip archive, or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x1f\x8b": "compressed by gzip",
    b"PAR1": "a parquet file",
    b"%PDF": "a PDF",
    b"SQLite": "a data base",
}
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass
class TextTable:
    """Columns of text, (N,) each, in the file's order; `lines[i]` is where row i begins, the header being in line 1."""

    columns: dict[str, np.ndarray]
    lines: np.ndarray
    separator: str
    notes: list[str] = field(default_factory=list)


def read_text(path: Path) -> TextTable:
    """Read the table of a CSV or TSV file with names in its first line.

    Raises:
        InputError: no text, no rows, a broken quote, a row of another length: names the line.
    """
    where = printable(path)
    text, notes = _decode_text(_read_bytes(path, where), where)
    usual = "\t" if path.suffix.lower() in (".tsv", ".tab") else ","
    separator = _guess_separator(text, usual)
    if separator != usual:
        notes.append(f"columns are separated by {_SEPARATOR_NAMES[separator]}s")
    columns: _ColumnBuilder | None = None
    ragged: list[tuple[int, int]] = []  # (line, number of fields)
    for line, row in _records(text, separator, where):
        if columns is None:
            columns = _ColumnBuilder(_read_header(row, line=line, where=where, notes=notes))
        elif len(row) != len(columns.names):
            ragged.append((line, len(row)))
        else:
            columns.add(line, row)
    if columns is None:
        raise InputError(f"{where} is empty; a table was expected, with the names of its columns in the first line")
    if ragged:
        line, count = ragged[0]
        raise InputError(
            f"{where}:{line}: {count} fields, but the header has {len(columns.names)}"
            + (f" (and {len(ragged) - 1:,} more such lines)" if len(ragged) > 1 else "")
            + f"; mend the line, or put quotes around a text that holds a {_SEPARATOR_NAMES[separator]}"
        )
    if not columns.lines:
        raise InputError(f"{where} holds the names of its columns but no rows; add a line for each sample")
    lines = np.array(columns.lines, np.int64)
    return TextTable(columns.arrays(), lines=lines, separator=separator, notes=notes)


def _records(text: str, separator: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Iterate over (line in which it begins, fields) of every record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(_describe_error(where, line, str(error))) from None
        if row and (len(row) > 1 or row[0].strip()):
            yield line, row


class _ColumnBuilder:
    """Collects rows as columns of text, chunk by chunk; equal texts of a column share their memory."""

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

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the columns, of at least one row."""
        self._flush()
        return {name: np.concatenate(parts) for name, parts in zip(self.names, self._parts, strict=True)}

    def _flush(self) -> None:
        for i, cells in enumerate(zip(*self._chunk, strict=True)):
            shared = self._shared[i]
            texts = [shared.setdefault(cell, cell) for cell in cells] if len(shared) < _FEW else cells
            self._parts[i].append(_to_object_array(texts))
        self._chunk.clear()


def check_names(names: list[str], where: str) -> None:
    """Refuse too many columns, and two of one name: a column is found by its name."""
    if len(names) > MAX_COLUMNS:
        raise InputError(
            f"{where} has {len(names):,} columns, more than the {MAX_COLUMNS:,} that a network for tables takes; "
            "leave some out, or turn the table round if its rows are the samples' columns"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        numbers = [str(i + 1) for i, name in enumerate(names) if name == twice[0]]
        raise InputError(
            f"{where}: {len(numbers)} columns are called {printable(twice[0])!r} (columns {', '.join(numbers[:5])})"
            + (f", and {len(twice) - 1} other names repeat" if len(twice) > 1 else "")
            + "; give each a name of its own"
        )


def _read_bytes(path: Path, where: str) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{where} is no plain file; give a .csv, .tsv or .parquet file")
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise InputError(f"{where} has {size:,} bytes, more than {_MAX_BYTES:,}; split it, or save it as .parquet")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}; check its path and rights") from None
    for start, kind in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise InputError(f"{where} is {kind}, whatever its name says; a text table was expected: save it as CSV")
    if not data.strip():
        raise InputError(f"{where} is empty; a table was expected, with the names of its columns in the first line")
    return data


def _decode_text(data: bytes, where: str) -> tuple[str, list[str]]:
    """Return the text and notes on its encoding."""
    for mark, name in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(name), ([] if name == "utf-8-sig" else ["read as UTF-16"])
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{where} begins as {name.removesuffix('-sig').upper()} but does not go on so at byte "
                    f"{error.start:,}; save it as UTF-8"
                ) from None
    head = data[:4096]
    for offset, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # every second byte of Latin letters is zero
        if len(head) >= 4 and head[offset::2].count(0) > 0.7 * len(head[offset::2]):
            try:
                return data.decode(name), ["read as UTF-16"]
            except UnicodeDecodeError:
                break
    if (zero := data.find(0)) >= 0:
        raise InputError(
            f"{where}:{_line_at(data, zero)}: a NUL byte, which no text has; save the table as UTF-8 again"
        )
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError as error:
        note = f"line {_line_at(data, error.start):,} is not UTF-8: read as Windows-1252 (Latin-1)"
        try:
            return data.decode("cp1252"), [note]
        except UnicodeDecodeError:
            return data.decode("latin-1"), [note]


def _line_at(data: bytes, offset: int) -> int:
    before = data[:offset].replace(b"\r\n", b"\n")
    return before.count(b"\n") + before.count(b"\r") + 1


def _guess_separator(text: str, usual: str) -> str:
    """Guess what separates fields: what cuts the first records most evenly, into most pieces."""
    best_rank, best_separator = (0.0, 0, False), usual
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
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
        # One ragged line in twenty is a broken line; more, and the separator is another one.
        rank = (1.0 if even > 0.95 else even, counts[0] if even > 0.95 else 0, separator == usual)
        if rank > best_rank:
            best_rank, best_separator = rank, separator
    return best_separator


def _read_header(row: list[str], *, line: int, where: str, notes: list[str]) -> tuple[str, ...]:
    names = [name.strip() for name in row]
    if all(_NUMBER.fullmatch(name) for name in names):
        raise InputError(
            f"{where}:{line}: only numbers, but the names of the columns were expected; add a first line with names"
        )
    if unnamed := [i for i, name in enumerate(names) if not name]:
        names = [name or f"column {i + 1}" for i, name in enumerate(names)]
        notes.append(f"without a name, so called by its place: {', '.join(repr(names[i]) for i in unnamed[:5])}")
    check_names(names, where)
    return tuple(names)


def _describe_error(where: str, line: int, reason: str) -> str:
    if "unexpected end" in reason:
        return f"{where}:{line}: a quote is opened and never closed; close it, or double a quote that is meant"
    if "expected after" in reason:
        return f"{where}:{line}: text follows a closing quote; double the quotes that stand inside a text"
    if "field limit" in reason:
        return f"{where}:{line}: a field is longer than {csv.field_size_limit():,} characters; is a quote not closed?"
    return f"{where}:{line}: cannot be read as a row ({printable(reason)}); mend the line"


def _to_object_array(cells: list[str] | tuple[str, ...]) -> np.ndarray:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
