"""TextColumn: the cells of a column as codes and distinct texts, so that equal cells are stored and parsed once.

A column of a large file whose cells are all numbers holds them as float64, and reads its texts from the file only if
they are needed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np

__all__ = ["MISSING", "Cells", "TextColumn", "join_columns", "value_text", "without_texts"]

LIST_SEPARATOR = "\0"  # between the elements of a list; no text of a CSV file has it
MISSING = frozenset(["", "na", "n/a", "#n/a", "nan", "-nan", "null", "<na>", "nat", "?"])  # in any case


class TextColumn:
    """N cells of text; None means that there is no text.

    Indexing with a number returns a cell, and with a slice or an array another TextColumn. Iteration and
    `numpy.asarray` return the cells. Texts are as in the file, without spaces around them. Texts that mean a missing
    value may be None.

    Args:
        load: function that returns the (N,) codes, with -1 for None, and the distinct texts in the order of their
            first cells. It is called at most once.
        count: the number of cells N.
        numbers: (N,) float64 if every cell is a finite number or means a missing value (NaN); else None. It is also
            None if all points of the column may separate thousands, as in 22.201.
        separator: text between the elements of a cell, if the cells are lists.
        is_category: True if the source declares the values as categories, such as the dtype `category` of pandas.
        load_exact: function that returns the same as `load` without None for texts that mean a missing value; None if
            `load` does.
        present: texts in lowercase that are values of this column, although they mean a missing value in others.
        may_be_padded: function that returns False if no text has leading zeros, such as 00137; None if that is unknown.
    """

    dtype = np.dtype(object)

    def __init__(
        self,
        load: Callable[[], tuple[np.ndarray, list[str]]],
        count: int,
        numbers: np.ndarray | None = None,
        separator: str = "",
        is_category: bool = False,
        load_exact: Callable[[], tuple[np.ndarray, list[str]]] | None = None,
        present: frozenset[str] = frozenset(),
        may_be_padded: Callable[[], bool] | None = None,
    ):
        self._load_exact, self._values = load_exact, present
        self._load: Callable[[], tuple[np.ndarray, list[str]]] | None = load
        self._cells: tuple[np.ndarray, list[str]] | None = None
        self._present: tuple[np.ndarray, list[str]] | None = None
        self._count, self.numbers, self.separator, self.is_category = count, numbers, separator, is_category
        self._parsed: dict[Any, Any] = {}
        self._may_be_padded = may_be_padded

    @classmethod
    def of(cls, cells: Any) -> "TextColumn":
        """Create a column from texts, None and NaN; spaces around the texts are removed."""
        cells = _as_objects(cells) if isinstance(cells, list | tuple) else cells
        distinct = _strip(*_factorize(cells))
        return cls(lambda: distinct, len(distinct[0]))

    @classmethod
    def of_lists(cls, cells: Iterable[Iterable[Any] | None]) -> "TextColumn":
        """Create a column from lists of texts or numbers; None is a missing list."""
        texts = [None if cell is None else LIST_SEPARATOR.join(map(str, cell)) for cell in cells]
        codes, distinct = _factorize(_as_objects(texts))
        return cls(lambda: (codes, distinct), len(codes), separator=LIST_SEPARATOR)

    @classmethod
    def of_codes(cls, codes: np.ndarray, texts: list[str], is_category: bool = False) -> "TextColumn":
        """Create a column from (N,) codes, with -1 for None, and texts, which may repeat or have spaces around them."""
        if len(set(texts)) < len(texts):
            codes, texts = _merged(codes, texts)
        cells = _strip(codes, texts)
        return cls(lambda: cells, len(codes), is_category=is_category)

    @classmethod
    def refused(cls, error: Exception, count: int) -> "TextColumn":
        """Create a column of `count` cells that cannot be used: reading them raises `error`."""

        def load() -> tuple[np.ndarray, list[str]]:
            raise error

        return cls(load, count)

    def factorize(self) -> tuple[np.ndarray, list[str]]:
        """Return the (N,) codes, with -1 for None, and the distinct texts in the order of their first cells."""
        if self._cells is None:
            assert self._load is not None
            self._cells, self._load = self._load(), None  # without these functions, the data of the file can be freed
            self._may_be_padded = None
        return self._cells

    def factorize_present(self) -> tuple[np.ndarray, list[str]]:
        """Return the same as `factorize`, with -1 also for texts that mean a missing value."""
        if self._present is None:
            self._present = without_texts(*self.factorize(), MISSING - self._values)
        return self._present

    def parse_once(self, key: Any, parse: Callable[[], Any]) -> Any:
        """Return the result of `parse`, which is called once for each key of this column."""
        if key not in self._parsed:
            self._parsed[key] = parse()
        return self._parsed[key]

    def without(self, removed: Sequence[bool]) -> "TextColumn":
        """Return the column with None for the cells of some of its distinct texts.

        Args:
            removed: True for each distinct text to remove, in the order of `factorize`.
        """
        codes, texts = self.factorize()
        kept = np.append(np.where(removed, -1, np.arange(len(texts))), -1).astype(np.int32)[codes]
        numbers = None if self.numbers is None else np.where(kept < 0, np.nan, self.numbers)
        return TextColumn(lambda: _used(kept, texts), self._count, numbers, self.separator, self.is_category)

    def exact(self, present: frozenset[str] = frozenset()) -> "TextColumn":
        """Return the column with the texts that mean a missing value.

        Args:
            present: those of them, in lowercase, that are values of this column.
        """
        load = self._load_exact or self.factorize
        return TextColumn(load, self._count, None, self.separator, self.is_category, present=present)

    def may_be_padded(self) -> bool:
        """Return False if no text has leading zeros and three digits; True if that is unknown."""
        return self._may_be_padded is None or self._may_be_padded()

    def missing(self) -> np.ndarray:
        """Return (N,) booleans: True for missing values."""
        return self.factorize_present()[0] < 0 if self.numbers is None else np.isnan(self.numbers)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, int | np.integer):
            codes, texts = self.factorize()
            return texts[codes[rows]] if codes[rows] >= 0 else None
        numbers = None if self.numbers is None else self.numbers[rows]
        count = len(numbers) if numbers is not None else len(np.empty(self._count, bool)[rows])
        return TextColumn(
            lambda: _used(*self._take(rows)),
            count,
            numbers,
            self.separator,
            self.is_category,
            load_exact=(lambda: _used(*self.exact()._take(rows))) if self._load_exact else None,
            present=self._values,
        )

    def _take(self, rows: Any) -> tuple[np.ndarray, list[str]]:
        codes, texts = self.factorize()
        return codes[rows], texts

    def __iter__(self) -> Iterator[str | None]:
        return iter(self.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        codes, texts = self.factorize()
        cells = _as_objects([*texts, None])[codes]
        return cells if dtype is None else cells.astype(dtype)

    def tolist(self) -> list[str | None]:
        """Return the cells."""
        return cast(list[str | None], np.asarray(self).tolist())


Cells = np.ndarray | TextColumn  # of a column: (N,) float64 with NaN for missing values, or text


def join_columns(columns: Iterable[TextColumn]) -> TextColumn:
    """Return a column of the cells of several columns, one after the other."""
    parts = list(columns)
    numbers = [part.numbers for part in parts]

    def load() -> tuple[np.ndarray, list[str]]:
        return _factorize(np.concatenate([np.asarray(part) for part in parts]))

    present = [values for values in numbers if values is not None]
    joined = np.concatenate(present) if len(present) == len(parts) else None
    is_category = all(part.is_category for part in parts)
    return TextColumn(load, sum(map(len, parts)), joined, parts[0].separator, is_category)


def value_text(value: Any) -> str:
    """Return a value as text; the number 1.0 becomes "1"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def without_texts(codes: np.ndarray, texts: list[str], removed: frozenset[str]) -> tuple[np.ndarray, list[str]]:
    """Replace the codes of the texts in `removed`, which are in lowercase, by -1."""
    longest = max(map(len, removed))
    kept = np.array([len(text) > longest or text.casefold() not in removed for text in texts], bool)
    if kept.all():
        return codes, texts
    new_codes = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1).astype(np.int32)
    return new_codes[codes], [text for text, is_kept in zip(texts, kept, strict=True) if is_kept]


def _factorize(cells: Any) -> tuple[np.ndarray, list[str]]:
    import pandas as pd

    codes, texts = pd.factorize(cells)
    return np.asarray(codes, np.int32), np.asarray(texts, object).tolist()


def _strip(codes: np.ndarray, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Remove the spaces around distinct texts, some of which may become equal."""
    stripped = [text.strip() for text in texts]
    return (codes, texts) if stripped == texts else _merged(codes, stripped)


def _merged(codes: np.ndarray, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return one code for equal texts."""
    new_codes, distinct = _factorize(_as_objects(texts))
    return np.append(new_codes, np.int32(-1))[codes], distinct


def _used(codes: np.ndarray, texts: list[str]) -> tuple[np.ndarray, list[str]]:
    """Drop the texts without a cell, and order the others by their first cells."""
    import pandas as pd

    used = pd.unique(codes[codes >= 0])
    new_codes = np.full(len(texts) + 1, -1, np.int32)
    new_codes[used] = np.arange(len(used), dtype=np.int32)
    return new_codes[codes], [texts[code] for code in used]


def _as_objects(cells: list[Any] | tuple[Any, ...]) -> np.ndarray:
    column = np.empty(len(cells), dtype=object)
    column[:] = cells
    return column
