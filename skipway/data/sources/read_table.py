"""Read a Table from a file of text, JSON, Excel or pyarrow, a DataFrame, or a dataset of scikit-learn."""

import json
import math
import re
from collections.abc import Iterable
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.output_spec import TaskName
from skipway.data.sources.csv_parser import TextTable, check_names, read_text
from skipway.data.sources.image_source import split_of
from skipway.data.sources.json_table import read_json, read_json_lines
from skipway.data.sources.missing_file import missing_file
from skipway.data.sources.parquet_files import open_parquet, read_arrow
from skipway.data.sources.table import Table
from skipway.data.sources.table_content import SCANNED, WORKBOOK_SUFFIXES, table_stem, table_suffix
from skipway.data.sources.text_column import Cells, TextColumn, value_text
from skipway.data.sources.workbook import read_workbook
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.errors import InputError, printable

__all__ = [
    "BUILT_IN_TABLES",
    "bundled_table",
    "frame_table",
    "is_submission",
    "read_table",
    "sample_of",
    "table_files",
]

BUILT_IN_TABLES = ("wine", "breast_cancer", "diabetes")
_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")  # the column that pandas stores for an unnamed index
_TARGET = "target"  # of the bundled tables
# Names of Kaggle for samples of submissions, the best one first.
_SUBMISSIONS = ("samplesubmission", "submissionformat", "gendersubmission", "examplesubmission", "submission")
_PLACES_OF_SUBMISSIONS = {name: place for place, name in enumerate(_SUBMISSIONS)}
_EXACT = 2**53  # larger integers lose digits as float64, and may be ids


def table_files(root: Path, any_kind: bool = True) -> dict[str, Path]:
    """Return {split: file} for a table file, or for a folder of tables named train, val and test.

    Args:
        root: the file or folder.
        any_kind: False to leave out files of a folder whose kind is rarely a table, such as .json.

    Returns:
        The files by split; empty if there is no table, or no training table.

    Raises:
        InputError: there are two tables of one split.
    """
    if root.is_file():
        return {"train": root} if table_suffix(root) else {}
    files: dict[str, Path] = {}
    for path in sorted(path for path in root.iterdir() if not path.name.startswith(".")):
        suffix, split = table_suffix(path.name), split_of(table_stem(path.name))
        if split is None or not suffix or not (any_kind or suffix in SCANNED):
            continue
        if split in files:
            raise InputError(
                f"cannot use {printable(root)}: expected one {split} table, got {printable(files[split].name)} and "
                f"{printable(path.name)}. Remove one."
            )
        files[split] = path
    return files if "train" in files else {}


def is_submission(stem: str) -> bool:
    """Return True if the name of a table, without its suffix, is that of a submission to Kaggle or of its sample.

    >>> is_submission("sample_submission"), is_submission("sampleSubmission"), is_submission("submissions_of_users")
    (True, True, False)
    """
    return _PLACES_OF_SUBMISSIONS.get(_letters(stem)) is not None


def sample_of(names: Iterable[str]) -> str | None:
    """Return the table among the names of files that is the sample of a submission, or None."""
    stems = {name: table_stem(name) for name in names if table_suffix(name) in SCANNED}
    samples = {name: _letters(stem) for name, stem in stems.items() if is_submission(stem)}
    return min(samples, key=lambda name: _PLACES_OF_SUBMISSIONS[samples[name]], default=None)


def _letters(stem: str) -> str:
    return re.sub(r"[ _-]", "", stem).casefold()


def read_table(path: Path, layout: TableLayout = DETECTED) -> Table:
    """Read a table file: delimited text, JSON, an Excel workbook, or a file of pyarrow.

    Args:
        path: the file.
        layout: lines of text and of workbooks that are set; the others are detected.

    Raises:
        InputError: the file does not exist, or cannot be read as a table.
    """
    if not path.exists():
        raise missing_file(path)
    suffix = table_suffix(path)
    if suffix in WORKBOOK_SUFFIXES:
        return _text_table(path, read_workbook(path, layout))
    if suffix in (".parquet", ".feather", ".arrow", ".json", ".jsonl", ".ndjson"):
        layout.refuse_unused(path, f"a {suffix} file")
    if suffix == ".parquet":
        return _parquet_table(path)
    if suffix in (".feather", ".arrow"):
        return _arrow_table(path, read_arrow(path))
    if suffix == ".json":
        return read_json(path)
    if suffix in (".jsonl", ".ndjson"):
        return read_json_lines(path)
    return _text_table(path, read_text(path, layout=layout))


def _text_table(path: Path, text: TextTable) -> Table:
    lines, name = text.lines, printable(path.name)
    columns: dict[str, Cells] = {**text.columns}
    return Table(
        str(path),
        columns,
        lambda i: f"{name}:{lines[i]}",
        notes=text.notes,
        thousands=text.separator != ";",
        row_names=text.row_names,
        has_header=text.has_header,
    )


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
    return Table(name, columns, lambda i: f"row {printable(index[i])}", notes=_zone_notes(frame))


def bundled_table(name: str) -> tuple[Table, str, TaskName]:
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
    with open_parquet(path) as file:
        check_names(list(file.schema_arrow.names), printable(path))
        return _arrow_table(path, file.read())


def _arrow_table(path: Path, data: Any) -> Table:
    """Convert a table of pyarrow to a Table."""
    where, name = printable(path), printable(path.name)
    check_names(list(data.schema.names), where)
    if not data.num_rows:
        raise InputError(f"cannot read {where}: expected rows, got only column names. Add a row for each sample.")
    # The metadata of pandas may be damaged, and the columns already hold all values.
    frame = data.replace_schema_metadata(None).to_pandas()
    categories = _declared_categories(data.schema.metadata)
    frame = frame.astype({name: "category" for name in frame.columns if name in categories})
    names = [name for name in frame.columns if not _UNNAMED_INDEX.fullmatch(name)]
    columns = {name: _to_column(frame[name], f"{where}, column {printable(name)!r}") for name in names}
    return Table(str(path), columns, lambda i: f"{name}:{i + 1}", notes=_zone_notes(frame))


def _declared_categories(metadata: Any) -> set[str]:
    """Return the columns that pandas stored with the dtype `category`, by the metadata of a Parquet file."""
    try:
        columns = json.loads(metadata[b"pandas"])["columns"]
        return {column["name"] for column in columns if column["pandas_type"] == "categorical"}
    except (KeyError, TypeError, ValueError):
        return set()


def _zone_notes(frame: Any) -> list[str]:
    """Return a note for each column of a DataFrame whose times have another time zone than UTC."""
    zones = {name: str(dtype.tz) for name, dtype in frame.dtypes.items() if hasattr(dtype, "tz")}
    return [
        f"column {printable(name)!r}: times of the zone {printable(zone)} are converted to UTC"
        for name, zone in zones.items()
        if zone != "UTC"
    ]


def _to_column(series: Any, where: str) -> Cells:
    """Convert a pandas Series to float64, or to text with None for missing values.

    A column that cannot be used raises its error when its cells are read, so that it can be ignored.
    """
    import pandas as pd

    kind = series.dtype
    if pd.api.types.is_complex_dtype(kind):
        return TextColumn.refused(
            InputError(f"cannot use {where}: expected real numbers, got complex ones. Store the two parts separately."),
            len(series),
        )
    if isinstance(kind, pd.CategoricalDtype):
        codes, values = _factorize(series.astype(object))
        return TextColumn.of_codes(codes, list(map(value_text, values)), is_category=True)
    if pd.api.types.is_bool_dtype(kind):
        return TextColumn.of([None if pd.isna(v) else str(bool(v)) for v in series])
    if pd.api.types.is_numeric_dtype(kind):
        numbers = series.to_numpy(np.float64, na_value=np.nan)
        if pd.api.types.is_integer_dtype(kind) and (np.abs(numbers) > _EXACT).any():
            return TextColumn(lambda: _digits(series), len(series), numbers)
        return numbers
    if pd.api.types.is_timedelta64_dtype(kind):
        return series.dt.total_seconds().to_numpy(np.float64)
    if isinstance(kind, pd.PeriodDtype):
        series = series.dt.to_timestamp()
    if pd.api.types.is_datetime64_any_dtype(series.dtype):
        moments = pd.to_datetime(series, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[s]")
        return TextColumn.of([None if np.isnat(m) else str(m) for m in moments])
    try:
        lists = _lists(series, where)
    except InputError as error:
        return TextColumn.refused(error, len(series))
    if lists:
        return TextColumn.of_lists(lists)
    codes, values = _factorize(series.astype(object))
    if values and all(isinstance(v, timedelta) for v in values):
        return np.append(np.array([v.total_seconds() for v in values]), np.nan)[codes]
    if values and all(isinstance(v, int | float | np.number) and not isinstance(v, bool) for v in values):
        return np.append(np.array([_as_float(v) for v in values]), np.nan)[codes]
    return TextColumn.of_codes(codes, [v if isinstance(v, str) else str(v) for v in values])


def _as_float(value: Any) -> float:
    """Return a number as a float, infinite for an integer that is too large."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _lists(series: Any, where: str) -> list[list[Any] | None]:
    """Return the cells of a column of lists of texts or numbers, or no cells if they are no lists."""
    kinds = {type(value) for value in series if not _is_scalar(value)}
    if not kinds:
        return []
    nested = next((kind for kind in kinds if kind not in (list, set, tuple, np.ndarray)), None)
    cells = [None if _is_scalar(value) else [v for v in value if v is not None] for value in series]
    if nested is None and not any(chain.from_iterable(map(_has_nested, (cell for cell in cells if cell)))):
        mixed = next((v for v in series if _is_scalar(v) and v is not None and v == v), None)
        if mixed is None:
            return cells
    kind = (nested or list).__name__
    raise InputError(
        f"cannot use {where}: expected strings or numbers, got a {kind}. Split it into columns, or leave it out with "
        "--ignore."
    )


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list | set | tuple | np.ndarray)


def _has_nested(cell: list[Any]) -> list[bool]:
    return [not _is_scalar(value) for value in cell]


def _digits(series: Any) -> tuple[np.ndarray, list[str]]:
    """Return (codes, distinct texts) of integers, all digits of which are kept."""
    codes, values = _factorize(series.astype(object))
    return codes, list(map(str, values))


def _factorize(series: Any) -> tuple[np.ndarray, list[Any]]:
    """Return (codes, distinct values); the code of NaN and None is -1."""
    import pandas as pd

    codes, values = pd.factorize(series)
    return np.asarray(codes), list(values)
