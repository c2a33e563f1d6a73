"""RowsToPredict: a test table without the target, as in the folders of Kaggle, and the sample of its submission.

Such a folder has train.csv, test.csv and mostly sample_submission.csv. The target is the column that test.csv lacks.

Shapes: N rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.sources.table import Table, join_quoted
from skipway.data.tables.columns import as_texts, missing_mask
from skipway.data.tables.input_kinds import infer_input_kind
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["RowsToPredict", "find_targets", "lacks_target", "separate_rows"]


@dataclass(frozen=True)
class RowsToPredict:
    """Rows without the target, which a run predicts at its end.

    Attributes:
        table: the rows.
        targets: columns to predict.
        ids: columns that name the rows; empty if there are none.
        sample: table with the form of the submission; None without one.
        left_out: {column of the training table: reason for which it is no input}.
    """

    table: Table
    targets: tuple[str, ...]
    ids: tuple[str, ...]
    sample: Table | None
    left_out: dict[str, str]

    def describe(self) -> str:
        """Return a line about the rows."""
        name = printable(Path(self.table.name).name)
        ids = f", named by {join_quoted(list(self.ids))}" if self.ids else ""
        return f"{name}: {count_of(len(self.table), 'row')} without {join_quoted(list(self.targets))}{ids}, to predict"


def lacks_target(tables: Mapping[str, Table], roles: ColumnRoles) -> bool:
    """Return True if there is a test table without values in a target column, or the target is not set."""
    if "test" not in tables:
        return False
    # With several labels in a column, an empty cell means that a row has none.
    is_usable = _has_column if roles.label_sep else _has_values
    return not roles.target or not all(is_usable(tables["test"], name) for name in roles.target)


def find_targets(tables: Mapping[str, Table], sample: Table | None) -> tuple[str, ...]:
    """Return the columns that the training table has and the test table lacks, or holds no values of.

    Of several ones, those in the sample of the submission are the targets.

    Args:
        tables: tables by split.
        sample: table with the form of the submission, or None.

    Returns:
        The target columns, which can be several without a sample; empty without a test table.
    """
    if "test" not in tables:
        return ()
    train, test = tables["train"], tables["test"]
    lacking = tuple(name for name in train.columns if not _has_values(test, name) and _has_values(train, name))
    named = tuple(name for name in sample.columns if name in lacking) if sample is not None else ()
    return named or lacking


def separate_rows(
    tables: dict[str, Table], roles: ColumnRoles, sample: Table | None
) -> tuple[dict[str, Table], ColumnRoles, RowsToPredict | None]:
    """Separate a test table without the target from the other tables.

    Args:
        tables: tables by split.
        roles: roles of the columns, with a target.
        sample: table with the form of the submission, or None.

    Returns:
        The tables with a target, the roles with the id column of the sample, and the rows to predict or None.
    """
    if not lacks_target(tables, roles):
        return tables, roles, None
    train, test = tables["train"], tables["test"]
    name = printable(Path(test.name).name)
    known = {*roles.target, *roles.features, *roles.ignore, *roles.id, *roles.single().values()}
    left_out = {c: f"not in {name}" for c in train.columns if c not in test.columns and c not in known}
    ids = roles.id or _id_of_sample(test, sample) or _unique_column(train, test, roles)
    if not roles.id and sample is not None and ids and _is_no_input(ids[0], train, roles):
        roles = replace(roles, id=ids)
        left_out[ids[0]] = f"id of {printable(Path(sample.name).name)}"
    named_by = tuple(column for column in ids if column in test.columns)
    rows = RowsToPredict(test, roles.target, named_by, sample, left_out)
    return {split: table for split, table in tables.items() if split != "test"}, roles, rows


def _has_column(table: Table, name: str) -> bool:
    return name in table.columns


def _has_values(table: Table, name: str) -> bool:
    return name in table.columns and not missing_mask(table.columns[name]).all()


def _id_of_sample(test: Table, sample: Table | None) -> tuple[str, ...]:
    """Return the first column of the sample that the test table has."""
    columns = sample.columns if sample is not None else ()
    return tuple(name for name in columns if name in test.columns)[:1]


def _is_no_input(name: str, train: Table, roles: ColumnRoles) -> bool:
    """Return True if an id column of the training table has no other use; dates that name rows are inputs, too."""
    taken = {*roles.target, *roles.features, *roles.single().values()}
    return name in train.columns and name not in taken and infer_input_kind(name, train)[0] != "date"


def _unique_column(train: Table, test: Table, roles: ColumnRoles) -> tuple[str, ...]:
    """Return the first column with another text or whole number in every row of both tables."""
    for name in train.columns:
        if name in test.columns and name not in roles.target:
            texts = [_distinct(table, name) for table in (train, test)]
            if all(texts) and len({*texts[0], *texts[1]}) == len(train) + len(test):
                return (name,)
    return ()


def _distinct(table: Table, name: str) -> Sequence[str]:
    """Return the N distinct texts or whole numbers of a column; none if values repeat, are missing or have decimals."""
    raw = table.columns[name]
    numbers = raw if isinstance(raw, np.ndarray) else raw.numbers
    if numbers is not None and not (numbers == np.floor(numbers)).all():
        return ()
    try:
        codes, texts = as_texts(raw).factorize()
    except InputError:  # objects or dictionaries, which can be ignored
        return ()
    return texts if len(texts) == len(table) and (codes >= 0).all() else ()
