"""Table: named columns of text or numbers, from a CSV or Parquet file, a DataFrame, or a dataset of scikit-learn.

A column is either float64 with NaN for missing values, or text with None for missing values (`TextColumn`), as are all
columns of CSV files. Booleans and dates of typed sources are converted to text, so that they are parsed in the same way
for all sources.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.sources.csv_parser import check_names, read_text
from skipway.data.sources.image_parquet import open_parquet
from skipway.data.sources.image_source import split_of
from skipway.data.sources.text_column import Cells, TextColumn
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.format_text import join_names

__all__ = [
    "BUILT_IN_TABLES",
    "SUFFIXES",
    "RowNames",
    "Table",
    "bundled_table",
    "frame_table",
    "join_quoted",
    "read_table",
    "table_files",
]

SUFFIXES = (".csv", ".tsv", ".tab", ".parquet")
BUILT_IN_TABLES = ("wine", "breast_cancer", "diabetes")
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # the column that pandas stores for an unnamed index
_TARGET = "target"  # of the bundled tables


@dataclass
class Table:
    """Named columns of N rows.

    Attributes:
        name: name of the table, for messages.
        columns: {name: (N,) float64 or text}; arrays of objects are converted to text.
        row_name: function that returns the name of row i for messages, such as "train.csv:12".
        notes: remarks about the file, such as its encoding.
        thousands: True if "1,234" could mean 1234; False if the file uses another separator than commas.
    """

    name: str
    columns: dict[str, Cells]
    row_name: Callable[[int], str]
    notes: list[str] = field(default_factory=list)
    thousands: bool = True

    def __post_init__(self) -> None:
        for name, cells in self.columns.items():
            if isinstance(cells, np.ndarray) and cells.dtype == object:
                self.columns[name] = TextColumn.of(cells)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def take(self, rows: np.ndarray) -> "Table":
        """Return a table of some of the rows, by their indices."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return replace(self, columns=columns, row_name=lambda i: self.row_name(int(rows[i])))

    def column(self, name: str) -> Cells:
        """Return the (N,) values of a column.

        Raises:
            InputError: there is no column of this name.
        """
        if name not in self.columns:
            raise InputError(
                f"cannot find the column {printable(name)!r} in {printable(self.name)}: expected one of "
                f"{join_quoted(list(self.columns))}{did_you_mean(name, self.columns)}. Correct the name."
            )
        return self.columns[name]


class RowNames(Sequence[str]):
    """Names of the rows of several tables, one after the other; a name is made when it is read.

    Args:
        tables: the tables.
    """

    def __init__(self, tables: Sequence[Table]):
        self._names = [table.row_name for table in tables]
        self._ends = np.cumsum([len(table) for table in tables]).tolist()

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._ends else 0

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        index = range(len(self))[row]
        part = bisect_right(self._ends, index)
        return self._names[part](index - (self._ends[part - 1] if part else 0))


def join_quoted(names: list[str], limit: int = 8) -> str:
    """Join the first `limit` names, quoted, for an error or a note."""
    return join_names((repr(printable(name)) for name in names), limit=limit)


def table_files(root: Path) -> dict[str, Path]:
    """Return {split: file} for a table file, or for a folder of tables named train, val and test.

    Returns:
        The files by split; empty if there is no table, or no training table.

    Raises:
        InputError: there are two tables of one split.
    """
    if root.is_file():
        return {"train": root} if root.suffix.lower() in SUFFIXES else {}
    files: dict[str, Path] = {}
    for path in sorted(p for p in root.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")):
        split = split_of(path.stem)
        if split is None:
            continue
        if split in files:
            raise InputError(
                f"cannot use {printable(root)}: expected one {split} table, got {printable(files[split].name)} and "
                f"{printable(path.name)}. Remove one."
            )
        files[split] = path
    return files if "train" in files else {}


def read_table(path: Path) -> Table:
    """Read a .csv, .tsv or .parquet file.

    Raises:
        InputError: the file cannot be read as a table.
    """
    if path.suffix.lower() == ".parquet":
        return _parquet_table(path)
    text = read_text(path)
    lines, name = text.lines, printable(path.name)
    has_thousands = text.separator == ","
    columns: dict[str, Cells] = {**text.columns}
    return Table(str(path), columns, lambda i: f"{name}:{lines[i]}", notes=text.notes, thousands=has_thousands)


def frame_table(frame: Any, name: str = "the DataFrame") -> Table:
    """Convert a pandas DataFrame to a Table; rows are named by their index.

    Args:
        frame: the DataFrame.
        name: name of the table, for messages.

    Raises:
        InputError: a column holds complex numbers or containers, or column names are not unique.
    """
    names = [str(column) for column in frame.columns]
    check_names(names, name)
    index = frame.index
    columns = {key: _to_column(frame.iloc[:, i], f"{name}, column {printable(key)!r}") for i, key in enumerate(names)}
    return Table(name, columns, lambda i: f"row {printable(index[i])}")


def bundled_table(name: str) -> tuple[Table, str, str]:
    """Load a table that is bundled with scikit-learn.

    Args:
        name: one of `BUILT_IN_TABLES`.

    Returns:
        The table, the name of its target, and the task.
    """
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
            raise InputError(f"cannot read {where}: expected rows, got only column names. Add a row for each sample.")
        # The metadata of pandas may be damaged, and the columns already hold all values.
        frame = file.read().replace_schema_metadata(None).to_pandas()
        names = [name for name in frame.columns if not _UNNAMED_INDEX.fullmatch(name)]
        columns = {name: _to_column(frame[name], f"{where}, column {printable(name)!r}") for name in names}
    return Table(str(path), columns, lambda i: f"{name}:{i + 1}")


def _to_column(series: Any, where: str) -> Cells:
    """Convert a pandas Series to float64, or to text with None for missing values."""
    import pandas as pd

    kind = series.dtype
    if pd.api.types.is_complex_dtype(kind):
        raise InputError(
            f"cannot use {where}: expected real numbers, got complex ones. Store the two parts separately."
        )
    if pd.api.types.is_bool_dtype(kind):
        return TextColumn.of([None if pd.isna(v) else str(bool(v)) for v in series])
    if pd.api.types.is_numeric_dtype(kind):
        return series.to_numpy(np.float64, na_value=np.nan)
    if pd.api.types.is_datetime64_any_dtype(kind):
        moments = pd.to_datetime(series, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[s]")
        return TextColumn.of([None if np.isnat(m) else str(m) for m in moments])
    codes, values = _factorize(series.astype(object), where)
    if values and all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values):
        return np.append(np.array([float(v) for v in values]), np.nan)[codes]
    return TextColumn.of_codes(codes, [v if isinstance(v, str) else str(v) for v in values])


def _factorize(series: Any, where: str) -> tuple[np.ndarray, list[Any]]:
    """Return (codes, distinct values); the code of NaN and None is -1."""
    import pandas as pd

    for value in series:
        if isinstance(value, dict | list | set | tuple | np.ndarray):
            raise InputError(
                f"cannot use {where}: expected strings or numbers, got a {type(value).__name__}. Split it into columns."
            )
    codes, values = pd.factorize(series)
    return np.asarray(codes), list(values)
