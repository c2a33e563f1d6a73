"""Table: named columns of text or numbers, from a CSV or Parquet file, a DataFrame, or scikit-learn's bundled sets.

Two forms of column are enough for all: float64 with NaN where a number is missing, and text with None where nothing
stands. Booleans and dates of typed sources become text, so that one rule reads them wherever they come from.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.sources.csv_parser import check_names, read_text
from skipway.data.sources.image_parquet import open_parquet
from skipway.data.sources.image_source import split_of
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.format_text import join_names

__all__ = ["BUILT_IN_TABLES", "SUFFIXES", "Table", "bundled_table", "frame_table", "read_table", "table_files"]

SUFFIXES = (".csv", ".tsv", ".tab", ".parquet")
BUILT_IN_TABLES = ("wine", "breast_cancer", "diabetes")
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # a column that pandas makes of an index without a name
_TARGET = "target"  # what scikit-learn's bundled tables call theirs


@dataclass
class Table:
    """`columns[name]` is (N,) float64 or text (object); `row_name(i)` is where row i is, for errors and tables."""

    name: str
    columns: dict[str, np.ndarray]
    row_name: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    thousands: bool = True  # whether 1,234 could mean 1234: it cannot where something else than commas parts columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def column(self, name: str) -> np.ndarray:
        """Return the column called `name`; refused with the nearest names where there is none."""
        if name not in self.columns:
            raise InputError(
                f"{printable(self.name)} has no column {printable(name)!r}{did_you_mean(name, self.columns)}; it has "
                f"{join_quoted(list(self.columns))}"
            )
        return self.columns[name]


def join_quoted(names: list[str], limit: int = 8) -> str:
    """Join some names for an error or a note."""
    return join_names((repr(printable(name)) for name in names), limit=limit)


def table_files(root: Path) -> dict[str, Path]:
    """Return {split: file} of the tables that `root` is or holds: one file, or files named train, val and test."""
    if root.is_file():
        return {"train": root} if root.suffix.lower() in SUFFIXES else {}
    files: dict[str, Path] = {}
    for path in sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        split = split_of(path.stem)
        if split is None:
            continue
        if split in files:
            raise InputError(
                f"{printable(root)} has two {split} tables, {printable(files[split].name)} and {printable(path.name)}; "
                "keep one"
            )
        files[split] = path
    return files if "train" in files else {}


def read_table(path: Path) -> Table:
    """Read the table of a .csv, .tsv or .parquet file.

    Raises:
        InputError: the file is broken or no table; names the line where there is one.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet_table(path)
    text = read_text(path)
    lines, name = text.lines, printable(path.name)
    columns = {key: _strip_texts(column) for key, column in text.columns.items()}
    has_thousands = text.separator == ","
    return Table(str(path), columns, lambda i: f"{name}:{lines[i]}", notes=text.notes, thousands=has_thousands)


def frame_table(frame: Any, name: str = "the DataFrame") -> Table:
    """Turn a pandas DataFrame into a Table; rows are called by their index."""
    names = [str(column) for column in frame.columns]
    check_names(names, name)
    index = frame.index
    columns = {key: _to_column(frame.iloc[:, i], f"{name}, column {printable(key)!r}") for i, key in enumerate(names)}
    return Table(name, columns, lambda i: f"row {printable(index[i])}")


def bundled_table(name: str) -> tuple[Table, str, str]:
    """Return one of scikit-learn's bundled tables, its target's name, and the task: (Table, target, task)."""
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    columns = {str(key): bunch.data[:, i].astype(np.float64) for i, key in enumerate(bunch.feature_names)}
    classes = "target_names" in bunch
    y = np.array([str(bunch.target_names[k]) for k in bunch.target], object) if classes else bunch.target
    columns[_TARGET] = y if classes else y.astype(np.float64)
    table = Table(name, columns, lambda i: f"{name}:{i}")
    return table, _TARGET, "classification" if classes else "regression"


def _parquet_table(path: Path) -> Table:
    where, name = printable(path), printable(path.name)
    with open_parquet(path) as file:
        check_names(list(file.schema_arrow.names), where)
        if not file.metadata.num_rows:
            raise InputError(f"{where} holds the names of its columns but no rows; add a row for each sample")
        # What pandas notes in a file of its own may be damaged too, and says no more of the values than their columns.
        frame = file.read().replace_schema_metadata(None).to_pandas()
        names = [name for name in frame.columns if not _UNNAMED_INDEX.fullmatch(name)]
        columns = {name: _to_column(frame[name], f"{where}, column {printable(name)!r}") for name in names}
    return Table(str(path), columns, lambda i: f"{name}:{i + 1}")


def _strip_texts(column: np.ndarray) -> np.ndarray:
    """Strip spaces; the empty text stays one, and means a missing value."""
    import pandas as pd

    codes, texts = pd.factorize(column)
    return _texts([text.strip() for text in texts])[codes]


def _to_column(series: Any, where: str) -> np.ndarray:
    """Turn a pandas Series into float64, or into text with None for what is missing."""
    import pandas as pd

    kind = series.dtype
    if pd.api.types.is_complex_dtype(kind):
        raise InputError(f"{where} holds complex data, which is not supported; give real and imaginary parts")
    if pd.api.types.is_bool_dtype(kind):
        return _texts([None if pd.isna(v) else str(bool(v)) for v in series])
    if pd.api.types.is_numeric_dtype(kind):
        return series.to_numpy(np.float64, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(kind):
        moments = pd.to_datetime(series, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[s]")
        return _texts([None if np.isnat(m) else str(m) for m in moments])
    codes, values = _factorize(series.astype(object), where)
    if values and all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values):
        return np.append(np.array([float(v) for v in values]), np.nan)[codes]
    texts = [v.strip() if isinstance(v, str) else str(v) for v in values]
    return _texts([*texts, None])[codes]


def _factorize(series: Any, where: str) -> tuple[np.ndarray, list[Any]]:
    """Return (codes, distinct values): NaN and None have the code -1."""
    import pandas as pd

    for value in series:
        if isinstance(value, dict | list | set | tuple | np.ndarray):
            raise InputError(
                f"{where} holds a {type(value).__name__}; a cell must be a string or a number: spread it over columns"
            )
    codes, values = pd.factorize(series)
    return np.asarray(codes), list(values)


def _texts(values: list[Any]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
