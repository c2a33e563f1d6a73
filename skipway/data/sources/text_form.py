"""Form of a text table: its separator, its header, and lines above and below the table.

The form is inferred from the first records and the last lines, so that its cost does not grow with the table. All that
is not the table is cut off, and every assumption is a note.
"""

import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from skipway.data.sources.last_lines import last_lines
from skipway.data.table_layout import TableLayout
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["SEPARATOR_NAMES", "TextForm", "find_form", "is_number"]

SEPARATOR_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_SAMPLED = 200  # records that show the form
_EVEN = 0.95  # share of records of one width: up to 1 ragged line in 20 is a malformed line
_FEWEST = 3  # rows that show that the header has another number of fields
_MOST_LINES = 50  # records above the header
_YEARS = range(1900, 2101)
_MOSTLY = 0.9  # share of numbers in a column of numbers
_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)
_EXCEL = re.compile(rb"\"?sep=([^\w\"\r\n])\"?[ \t,;]*(?:\r\n|\n|\r)", re.I)
_END_OF_LINE = re.compile(rb"\r\n|\n|\r")


@dataclass
class TextForm:
    """A text table without the lines around it.

    Attributes:
        text: UTF-8 text, from the header, or from the first row if there is none.
        separator: separator of the fields.
        width: number of fields of a row.
        above: number of lines above `text` in the file.
        has_header: True if the first record holds the column names.
        rows: fields of the first rows.
        ends_empty: True if the rows end with a separator that the header lacks.
        notes: what was assumed.
    """

    text: bytes
    separator: str
    width: int
    above: int = 0
    has_header: bool = True
    rows: list[list[str]] = field(default_factory=list)
    ends_empty: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    """Fields of a record, and its first line, counted from 1."""

    line: int
    fields: list[str]

    @property
    def filled(self) -> list[str]:
        """The fields that are not empty."""
        return [text.strip() for text in self.fields if text.strip()]

    @property
    def width(self) -> int:
        """Number of fields without empty ones at the end."""
        return max((i + 1 for i, text in enumerate(self.fields) if text.strip()), default=0)


@dataclass(frozen=True)
class _Fit:
    """The first records with one of the separators: those of the table start at `start` and have `width` fields."""

    separator: str
    records: list[_Record]
    start: int
    width: int
    even: float


def find_form(text: bytes, usual: str, layout: TableLayout, where: str, *, has_spaces: bool = False) -> TextForm:
    """Find the table in a text.

    Args:
        text: UTF-8 text.
        usual: separator that needs no note.
        layout: lines of the table that are set.
        where: name of the file, for errors.
        has_spaces: True if runs of spaces may separate the fields.

    Raises:
        InputError: there is no table, or no header.
    """
    above, notes, fixed = 0, [], ""
    if excel := _EXCEL.match(text):
        text, above, fixed = text[excel.end() :], 1, excel[1].decode()
    if layout.skip_rows is not None:
        start = _line_start(text, layout.skip_rows - above + 1) if layout.skip_rows > above else 0
        text, above = text[start:], max(layout.skip_rows, above)
        if not text.strip():
            raise InputError(
                f"cannot read {where}: expected lines after --skip-rows {layout.skip_rows}, got none. Use a smaller "
                "number."
            )
    fit = _best_fit(text, [fixed] if fixed else list(SEPARATOR_NAMES), usual, layout)
    if has_spaces and not fixed and (fit is None or fit.even <= _EVEN or fit.width < 2 or _are_aligned(fit)):
        spaced = _tabs_for_spaces(text)
        in_columns = _best_fit(spaced, ["\t"], "\t", layout)
        if in_columns and in_columns.even > _EVEN and in_columns.width > max(1, fit.width if fit else 1):
            text, fit = spaced, in_columns
            notes.append("separator: runs of spaces")
    if fit is None or not fit.records:
        raise InputError(
            f"cannot read {where}: expected column names in the first line, got blank lines. Add a header."
        )
    if fit.separator != usual and not notes:
        name = SEPARATOR_NAMES.get(fit.separator, printable(repr(fit.separator)))
        notes.append(f"separator: {name}")
    header = fit.records[fit.start]
    if cut := [record for record in fit.records[: fit.start] if record.filled]:
        example = repr(printable(" ".join(cut[0].filled))[:40])
        notes.append(
            f"{count_of(len(cut), 'line')} above the header left out, such as {example}; set --skip-rows to change this"
        )
    start = _line_start(text, header.line)
    form = TextForm(text[start:] if start else text, fit.separator, fit.width, above + header.line - 1, notes=notes)
    form.rows = [record.fields for record in fit.records[fit.start + 1 :]]
    form.has_header = _has_header(fit, layout, f"{where}:{form.above + 1}")
    if not form.has_header:
        notes.append(f"no header: columns are named column_1 to column_{form.width}")
    end, note = last_lines(form.text, form.separator, form.width)
    form.text = form.text[:end] if note else form.text
    notes += [note] if note else []
    return form


def is_number(text: str) -> bool:
    """Return True for a plain number."""
    return _NUMBER.fullmatch(text) is not None


def _best_fit(text: bytes, separators: list[str], usual: str, layout: TableLayout) -> _Fit | None:
    """Return the fit whose records are most even and have most fields, preferably from the first one on."""
    fits = [_fit(text, separator, layout) for separator in separators]
    wide = [fit for fit in fits if fit.width > 1]
    if not wide:
        return next((fit for fit in fits if fit.separator in (usual, separators[0])), None)

    def rank(fit: _Fit) -> tuple[float, bool, int, bool]:
        is_even = fit.even > _EVEN
        return (1.0, not fit.start, fit.width, fit.separator == usual) if is_even else (fit.even, False, 0, False)

    return max(wide, key=rank)


def _fit(text: bytes, separator: str, layout: TableLayout) -> _Fit:
    records = _first_records(text, separator)
    if not records:
        return _Fit(separator, records, 0, 0, 0.0)
    start = _start_of_table(records, layout) if layout.skip_rows is None else 0
    body = records[start:]
    width = len(body[0].fields)
    rows = Counter(len(record.fields) for record in body[1:])
    common = max(rows, key=lambda count: (rows[count], count), default=width)
    # The header of row names, or of rows with a separator at their ends, is one field shorter than the rows.
    is_longer = width > common == body[0].width
    is_other = rows[common] > _EVEN * len(body[1:]) and rows[common] >= _FEWEST and width > 1
    if is_other and (common == width + 1 or is_longer):
        width = common
    return _Fit(separator, records, start, width, (rows[width] + 1) / len(body))


def _start_of_table(records: list[_Record], layout: TableLayout) -> int:
    """Return the index of the header, or of the first row: 0, or that of a record below titles and notes."""
    widths = Counter(len(record.fields) for record in records)
    width = max(widths, key=lambda count: (widths[count], count))
    if width < 2:
        return 0
    full = (i for i, record in enumerate(records) if len(record.fields) == width and not _is_title(record, width))
    start = next(full, 0)
    body = records[start:]
    even = sum(len(record.fields) == width for record in body) / len(body)
    if not 0 < start <= _MOST_LINES or even <= _EVEN or len(body) < 2:
        return 0
    if start == 1 and _may_be_short_header(records, width):
        return 0
    is_like_table = any(len(record.fields) == width and record.filled for record in records[:start])
    if is_like_table and (layout.header is False or not _are_different_texts(body[0].filled)):
        return 0
    return start if all(_is_title(record, width) for record in records[:start]) else 0


def _is_title(record: _Record, width: int) -> bool:
    """Return True for a comment, or a record with too few filled fields for a header."""
    is_sparse = len(record.fields) != width or 2 * len(record.filled) <= width
    return record.fields[0].startswith("# ") or (record.width < width and is_sparse)


def _may_be_short_header(records: list[_Record], width: int) -> bool:
    """Return True if the first record may hold the names of all columns but one."""
    first, second = records[0], records[1]
    if len(first.fields) != width - 1 or width < 3 or not _are_names(first):
        return width == 2 and len(first.fields) == 1 and not _are_names(second)
    has_numbers = any(any(map(is_number, record.filled)) for record in records[2:])
    return not (_are_names(second) and has_numbers)


def _are_names(record: _Record) -> bool:
    return len(record.filled) == len(record.fields) and _are_different_texts(record.filled)


def _are_different_texts(texts: list[str]) -> bool:
    return len(texts) == len(set(texts)) and not any(map(is_number, texts))


def _has_header(fit: _Fit, layout: TableLayout, where: str) -> bool:
    """Return True if the first record holds the column names; one that looks like a row raises InputError."""
    if layout.header is not None:
        return layout.header
    header, *rows = fit.records[fit.start :]
    names = [name.strip() for name in header.fields]
    if all(map(is_number, names)):
        raise InputError(
            f"cannot read {where}: expected column names, got only numbers. Pass --no-header if this line is a row, or "
            "--header if it holds the names."
        )
    same_width = [row.fields for row in rows if len(row.fields) == len(names)]
    if len(same_width) >= 2 and _looks_like_row(names, list(zip(*same_width, strict=True))):
        shown = ", ".join(repr(printable(name)[:20]) for name in names[:3])
        raise InputError(
            f"cannot read {where}: expected column names, got what looks like a row ({shown}). Pass --no-header if it "
            "is one, or --header if it holds the names."
        )
    return True


def _looks_like_row(names: list[str], columns: list[tuple[str, ...]]) -> bool:
    """Return True if the names have the kinds of the cells below them.

    A text above numbers is a name. A number above numbers, and a text that occurs again below, are cells.
    """
    votes = 0
    numbers = []
    for name, cells in zip(names, columns, strict=True):
        texts = [text.strip() for text in cells if text.strip()]
        if texts and sum(map(is_number, texts)) >= _MOSTLY * len(texts):
            if name and not is_number(name):
                return False
            votes += bool(name)
            numbers += [name] if name else []
        else:
            votes += name in texts
    return 2 * votes > len(names) and not _are_steps(numbers)


def _are_steps(names: list[str]) -> bool:
    """Return True for names such as the years 2019, 2020, 2021."""
    if len(names) < 2 or not all(name.isdecimal() for name in names):
        return False
    values = list(map(int, names))
    steps = {b - a for a, b in pairwise(values)}
    are_years = all(value in _YEARS for value in values) and min(steps) > 0
    return are_years or steps == {1} or (len(values) > 2 and len(steps) == 1 and 0 not in steps)


def _first_records(text: bytes, separator: str) -> list[_Record]:
    """Return the first records that are not blank, as far as they can be read."""
    lines = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", newline="")
    reader = csv.reader(lines, delimiter=separator)
    records: list[_Record] = []
    try:
        line = 1
        for fields in reader:
            if fields and (len(fields) > 1 or fields[0].strip()):
                records.append(_Record(line, fields))
            if len(records) > _SAMPLED:
                break
            line = reader.line_num + 1
    except csv.Error:
        pass
    return records


def _line_start(text: bytes, line: int) -> int:
    """Return the offset of a line, counted from 1."""
    if line <= 1:
        return 0
    for count, end in enumerate(_END_OF_LINE.finditer(text), 2):
        if count == line:
            return end.end()
    return len(text)


def _are_aligned(fit: _Fit) -> bool:
    """Return True if most records have a field with a run of spaces, which aligns columns."""
    aligned = sum(any("  " in text.strip() for text in record.fields) for record in fit.records)
    return aligned > _EVEN * len(fit.records)


def _tabs_for_spaces(text: bytes) -> bytes:
    """Replace runs of spaces and tabs outside of quotes by a tab; line numbers stay the same."""
    lines = io.StringIO(text.decode("utf-8", "surrogatepass").replace("\t", " "), newline="")
    tidy = io.StringIO(newline="")
    writer = csv.writer(tidy, delimiter="\t", lineterminator="\n")
    try:
        for fields in csv.reader((line.rstrip() + "\n" for line in lines), delimiter=" ", skipinitialspace=True):
            writer.writerow(fields)
    except csv.Error:
        return text
    return tidy.getvalue().encode("utf-8", "surrogatepass")
