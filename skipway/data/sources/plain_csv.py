"""Fast reading of plain CSV text with pandas; the parser in `csv_parser.py` reads everything else.

Text is plain if both parsers must agree on it: every line has the same number of fields, every quote opens or closes a
field or is doubled, and no field spans lines. This is checked on the bytes before pandas reads them.
"""

import csv
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from skipway.data.sources.text_column import MISSING, TextColumn

__all__ = ["read_plain"]

_MISSING_CELLS = sorted({*MISSING, *map(str.upper, MISSING), *map(str.title, MISSING), "NaN", "-NaN", "NaT"})
_LARGEST = 1e300  # larger numbers are errors that quote the cell
_BLOCK = 1 << 20  # bytes per check, which fit in the cache of a core
_HEAD = 1000  # rows that show that a point of a column can only be decimal
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2}(\.[0-9]{3})+")  # also a number with three decimals
_ZEROS = re.compile(rb"\.000(?![0-9])")
_NEWLINE, _RETURN, _QUOTE = b"\n"[0], b"\r"[0], b'"'[0]
_ZERO, _POINT, _BAR = np.frombuffer(b"0.|", np.uint8)


def read_plain(text: bytes, separator: str, count: int, has_header: bool = True) -> list[TextColumn] | None:
    """Read the rows of plain CSV text.

    Args:
        text: UTF-8 text.
        separator: separator of the fields.
        count: number of columns.
        has_header: True if the first line holds the column names.

    Returns:
        The columns, or None if the text is not plain.
    """
    start, end = text.find(b"\n") + 1 if has_header else 0, _end_of_text(text)
    if count < 2 or not has_header <= start < end or b"\0" in text:
        return None
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return None
    rows = _count_rows(text, ord(separator), count, start=start, end=end)
    return None if rows is None else _Cells(text, separator, start=start, count=count, rows=rows).columns()


def _end_of_text(text: bytes) -> int:
    """Return the offset after the last line that is not empty."""
    tail = text[-_BLOCK:]
    return len(text) - len(tail) + len(tail.rstrip(b"\r\n"))


def _count_rows(text: bytes, separator: int, count: int, *, start: int, end: int) -> int | None:
    """Return the number of lines from `start` to `end`, or None if they are not plain."""
    limit, rows, has_quotes = csv.field_size_limit(), 0, b'"' in text
    while start < end:
        stop = end if start + _BLOCK >= end else text.rfind(b"\n", start, start + _BLOCK) + 1
        if not stop:
            return None  # a line is longer than a block
        block = np.frombuffer(text, np.uint8, stop - start, start)
        if block[-1] == _NEWLINE:
            block = block[:-1]  # the last line of a block has a mark for its end in any case
        ends, separators = block == _NEWLINE, block == separator
        if has_quotes:
            quotes = block == _QUOTE
            inside = np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)
            if not _has_plain_quotes(block, quotes, separator) or (inside & ends).any():
                return None
            separators &= ~inside
        marks = np.append(np.flatnonzero(ends | separators), len(block))
        lines = int(np.count_nonzero(ends)) + 1
        if len(marks) != lines * count or not ends[marks[count - 1 : -1 : count]].all():
            return None
        if np.diff(marks, prepend=-1).max() > limit:
            return None
        rows, start = rows + lines, stop
    return rows


def _has_plain_quotes(block: np.ndarray, quotes: np.ndarray, separator: int) -> bool:
    """Return True if each quote begins or ends a field, or is one of two quotes inside of a quoted field."""
    at = np.flatnonzero(quotes)
    if len(at) % 2:
        return False
    around = np.full(len(block) + 2, _NEWLINE, np.uint8)
    around[1:-1] = block
    before, after = around[at[::2]], around[at[1::2] + 2]
    opens = (before == separator) | (before == _NEWLINE) | (before == _QUOTE)
    closes = (after == separator) | (after == _NEWLINE) | (after == _QUOTE) | (after == _RETURN)
    return bool(opens.all() and closes.all())


@dataclass(frozen=True)
class _Cells:
    """The cells of plain text: `rows` lines of `count` fields from the offset `start`."""

    text: bytes
    separator: str
    start: int
    count: int
    rows: int

    def columns(self) -> list[TextColumn] | None:
        """Read all columns; None if pandas finds another number of rows."""
        frame = self._frame()
        if len(frame) != self.rows:
            return None
        columns: dict[int, TextColumn] = {}
        open_numbers: dict[int, np.ndarray] = {}  # of columns whose points may separate thousands
        for i in range(self.count):
            cells = frame.pop(i)
            if (numbers := _numbers(cells)) is not None:
                if self._may_have_thousands(i, cells):
                    open_numbers[i] = numbers
                else:
                    columns[i] = self._number_column(i, numbers)
            elif _holds_texts(cells):
                columns[i] = self._text_column(i, cells.array)
        rest = [i for i in range(self.count) if i not in columns]  # also true and false, and texts among numbers
        if rest:
            frame = self._frame(dict.fromkeys(rest, str), rest)
            for i in rest:
                are_numbers = i in open_numbers and not _has_only_thousands(frame[i])
                texts = frame[i].array
                columns[i] = self._number_column(i, open_numbers[i]) if are_numbers else self._text_column(i, texts)
        return [columns[i] for i in range(self.count)]

    def _number_column(self, column: int, numbers: np.ndarray) -> TextColumn:
        return TextColumn(
            partial(self._texts, column),
            self.rows,
            numbers,
            load_exact=partial(self._texts, column, keeps_markers=True),
            may_be_padded=lambda: self._has_padding,
        )

    def _text_column(self, column: int, cells: Any) -> TextColumn:
        texts = TextColumn.of(cells)
        codes, distinct = texts.factorize()
        if (codes >= 0).all():
            return texts
        load = partial(self._texts, column, keeps_markers=True)
        return TextColumn(texts.factorize, self.rows, load_exact=load)

    def _texts(self, column: int, keeps_markers: bool = False) -> tuple[np.ndarray, list[str]]:
        """Read a column as text, with or without the texts that mean a missing value."""
        frame = self._frame({column: str}, [column], missing=[""] if keeps_markers else _MISSING_CELLS)
        return TextColumn.of(frame[column].array).factorize()

    def _may_have_thousands(self, column: int, cells: Any) -> bool:
        """Return False if a point of a column of numbers must be decimal, by its numbers and first texts."""
        if cells.dtype.kind in "iu":
            return False
        numbers = cells.to_numpy()
        if _has_other_fractions(numbers[:_HEAD]) or not _has_only_thousands(self._head[column], least=0):
            return False
        return not _has_other_fractions(numbers) and (_has_fractions(numbers) or self._has_zeros)

    @cached_property
    def _head(self) -> Any:
        return self._frame(dict.fromkeys(range(self.count), str), rows=_HEAD)

    @cached_property
    def _has_zeros(self) -> bool:
        """True if a cell may be a whole number of thousands, such as 8.000."""
        return _ZEROS.search(self.text, self.start) is not None

    @cached_property
    def _has_padding(self) -> bool:
        """True if a cell may have leading zeros and three digits, such as 00137."""
        codes = np.frombuffer(self.text, np.uint8)
        for begin in range(0, len(codes) - 3, _BLOCK):
            before, first, second, third = (codes[begin + i : begin + _BLOCK + i] for i in range(4))
            size = len(third)
            before, first = before[:size], first[:size]
            begins = ((before < _ZERO) & (before != _POINT)) | (before == _BAR)  # no digit or letter is before the cell
            starts = np.flatnonzero((first == _ZERO) & begins)
            if ((second[starts] - _ZERO < 10) & (third[starts] - _ZERO < 10)).any():
                return True
        return False

    def _frame(
        self,
        kinds: Mapping[int, type] | None = None,
        usecols: list[int] | None = None,
        rows: int | None = None,
        missing: Sequence[str] = _MISSING_CELLS,
    ) -> Any:
        import pandas as pd

        stream = io.BytesIO(self.text)
        stream.seek(self.start)
        options: dict[str, Any] = {}
        version = tuple(int(part) for part in pd.__version__.split(".")[:2])
        if version < (3, 1):  # later versions round correctly by default
            options["float_precision"] = "round_trip"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", pd.errors.DtypeWarning)  # such columns are read again
            return pd.read_csv(
                stream,
                sep=self.separator,
                header=None,
                names=range(self.count),
                index_col=False,
                dtype=dict(kinds or {}),
                usecols=usecols,
                nrows=min(self.rows, rows or self.rows),
                keep_default_na=False,
                na_values=missing,
                skip_blank_lines=False,
                **options,
            )


def _numbers(cells: Any) -> np.ndarray | None:
    """Return (N,) numbers, or None if a cell is no finite number, or all are missing."""
    if cells.dtype.kind not in "iuf":
        return None
    numbers = cells.to_numpy(np.float64)
    largest = np.nanmax(np.abs(numbers)) if not np.isnan(numbers).all() else np.inf
    return numbers if largest <= _LARGEST else None


def _has_fractions(numbers: np.ndarray) -> bool:
    return bool((np.nan_to_num(numbers) % 1).any())


def _has_other_fractions(numbers: np.ndarray) -> bool:
    """Return True if a number has decimals, but not exactly three of them after one to three digits."""
    parts = np.abs(numbers[np.nan_to_num(numbers) % 1 > 0])
    digits = parts * 1000
    return bool(((parts < 1) | (parts >= 1000) | (np.abs(digits - np.rint(digits)) > 1e-6)).any())


def _has_only_thousands(cells: Any, least: int = 1) -> bool:
    """Return True if there are at least `least` points in the texts of numbers, all of which may separate thousands."""
    points = [text for text in cells.dropna().unique() if "." in text]
    return len(points) >= least and all(_THOUSANDS.fullmatch(text.strip()) for text in points)


def _holds_texts(cells: Any) -> bool:
    """Return True if all cells are text or missing; pandas may have read parts of a column as numbers."""
    import pandas as pd

    return isinstance(cells.dtype, pd.StringDtype) or pd.api.types.infer_dtype(cells, skipna=True) == "string"
