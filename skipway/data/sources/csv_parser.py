"""CSV and TSV files as text: encoding, separator and every record with the line it begins in.

What has to be guessed (encoding, separator) is guessed from the bytes and said in `notes`; what is broken is named by
its line. Cells stay text here: what they mean is decided by whole columns, in `columns`.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from skipway.errors import InputError, printable

__all__ = ["MOST_COLUMNS", "TextTable", "check_names", "read_text"]

MOST_COLUMNS = 10_000  # each one is a line of the run's own files, and most wider tables are written sideways
_MOST_BYTES = 2 << 30  # a table is held in memory, at up to ten times its size
_SEPARATORS = (",", ";", "\t", "|")
_SPOKEN = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LOOK = 200  # records that a separator is tried on
_CHUNK = 50_000  # records that become columns at a time
_FEW = 10_000  # different texts of a column up to which equal ones share their memory
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_OTHERS = {
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
    """The table of a CSV or TSV file with names in its first line.

    Raises:
        InputError: no text, no rows, a broken quote, a row of another length: names the line.
    """
    where = printable(path)
    text, notes = _decoded(_bytes_of(path, where), where)
    separator = _separator(text, "\t" if path.suffix.lower() in (".tsv", ".tab") else ",")
    if separator != ("\t" if path.suffix.lower() in (".tsv", ".tab") else ","):
        notes.append(f"columns are separated by {_SPOKEN[separator]}s")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    columns: list[list[np.ndarray]] = []
    memo: list[dict[str, str]] = []
    lines: list[int] = []
    names: tuple[str, ...] | None = None
    ragged: list[tuple[int, int]] = []
    chunk: list[list[str]] = []

    def flush() -> None:
        for place, cells in enumerate(zip(*chunk, strict=True)):
            seen = memo[place]
            shared = [seen.setdefault(c, c) for c in cells] if len(seen) < _FEW else cells
            columns[place].append(_objects(shared))
        chunk.clear()

    while True:
        begin = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise InputError(_broken(where, begin, str(error))) from None
        if not row or (len(row) == 1 and not row[0].strip()):  # a blank line is no row
            continue
        if names is None:
            names = _header(row, begin, where, notes)
            columns, memo = [[] for _ in names], [{} for _ in names]
            continue
        if len(row) != len(names):
            ragged.append((begin, len(row)))
            continue
        lines.append(begin)
        chunk.append(row)
        if len(chunk) == _CHUNK:
            flush()
    if names is None:
        raise InputError(f"{where} is empty; a table was expected, with the names of its columns in the first line")
    if ragged:
        line, count = ragged[0]
        raise InputError(
            f"{where}:{line}: {count} fields, but the header has {len(names)}"
            + (f" (and {len(ragged) - 1:,} more such lines)" if len(ragged) > 1 else "")
            + f"; mend the line, or put quotes around a text that holds a {_SPOKEN[separator]}"
        )
    if not lines:
        raise InputError(f"{where} holds the names of its columns but no rows; add a line for each sample")
    flush()
    table = {name: np.concatenate(parts) for name, parts in zip(names, columns, strict=True)}
    return TextTable(table, np.array(lines, np.int64), separator, notes)


def check_names(names: list[str], where: str) -> None:
    """Refuse too many columns, and two of one name: a column is found by its name."""
    if len(names) > MOST_COLUMNS:
        raise InputError(
            f"{where} has {len(names):,} columns, more than the {MOST_COLUMNS:,} that a network for tables takes; "
            "leave some out, or turn the table round if its rows are the samples' columns"
        )
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        places = [str(i + 1) for i, name in enumerate(names) if name == twice[0]]
        raise InputError(
            f"{where}: {len(places)} columns are called {printable(twice[0])!r} (columns {', '.join(places[:5])})"
            + (f", and {len(twice) - 1} other names repeat" if len(twice) > 1 else "")
            + "; give each a name of its own"
        )


def _bytes_of(path: Path, where: str) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{where} is no plain file; give a .csv, .tsv or .parquet file")
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise InputError(f"{where} has {size:,} bytes, more than {_MOST_BYTES:,}; split it, or save it as .parquet")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {where}: {error.strerror}; check its path and rights") from None
    for start, kind in _OTHERS.items():
        if data.startswith(start):
            raise InputError(f"{where} is {kind}, whatever its name says; a text table was expected: save it as CSV")
    if not data.strip():
        raise InputError(f"{where} is empty; a table was expected, with the names of its columns in the first line")
    return data


def _decoded(data: bytes, where: str) -> tuple[str, list[str]]:
    """The text and what was found out about it."""
    for mark, name in _MARKS:
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
            f"{where}:{_line_of(data, zero)}: a NUL byte, which no text has; save the table as UTF-8 again"
        )
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError as error:
        note = f"line {_line_of(data, error.start):,} is not UTF-8: read as Windows-1252 (Latin-1)"
        try:
            return data.decode("cp1252"), [note]
        except UnicodeDecodeError:
            return data.decode("latin-1"), [note]


def _line_of(data: bytes, place: int) -> int:
    before = data[:place].replace(b"\r\n", b"\n")
    return before.count(b"\n") + before.count(b"\r") + 1


def _separator(text: str, usual: str) -> str:
    """What stands between fields: what cuts the first records most evenly, into most pieces."""
    best = (0.0, 0, False)
    chosen = usual
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        counts: list[int] = []
        try:
            for row in reader:
                if row:
                    counts.append(len(row))
                if len(counts) > _LOOK:
                    break
        except csv.Error:
            pass
        if not counts or counts[0] < 2:
            continue
        even = sum(c == counts[0] for c in counts) / len(counts)
        # One ragged line in twenty is a broken line; more, and the separator is another one.
        rank = (1.0 if even > 0.95 else even, counts[0] if even > 0.95 else 0, separator == usual)
        if rank > best:
            best, chosen = rank, separator
    return chosen


def _header(row: list[str], line: int, where: str, notes: list[str]) -> tuple[str, ...]:
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


def _broken(where: str, line: int, reason: str) -> str:
    if "unexpected end" in reason:
        return f"{where}:{line}: a quote is opened and never closed; close it, or double a quote that is meant"
    if "expected after" in reason:
        return f"{where}:{line}: text follows a closing quote; double the quotes that stand inside a text"
    if "field limit" in reason:
        return f"{where}:{line}: a field is longer than {csv.field_size_limit():,} characters; is a quote not closed?"
    return f"{where}:{line}: cannot be read as a row ({printable(reason)}); mend the line"


def _objects(cells: list[str] | tuple[str, ...]) -> np.ndarray:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
