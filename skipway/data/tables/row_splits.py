"""Splits of the rows of a table: given, by folds, by time, or held out."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.folds import Fold, groups_of_copies, split_rows
from skipway.data.groups import groups_of_column, hint_at_columns, refuse_crossing_groups, refuse_few_groups
from skipway.data.sources.table import Table, join_quoted
from skipway.data.stratified_split import holdout_mask, units_of
from skipway.data.tables.join_tables import join_tables
from skipway.data.time_order import last_part, read_order
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["HELD_OUT_AGAIN", "RowSplitter", "given_splits"]

HELD_OUT_AGAIN = 0.2  # share of the training rows


@dataclass(frozen=True)
class RowSplitter:
    """Options of the splits of a table.

    Attributes:
        name: name of the table, for errors.
        roles: roles of the columns.
        fraction: share of the training rows to hold out.
        seed: seed of the split.
        fold: fold of a cross-validation to hold out instead, or None.
        allow_duplicates: accept groups in more than one split.
    """

    name: str
    roles: ColumnRoles
    fraction: float
    seed: int
    fold: Fold | None = None
    allow_duplicates: bool = False

    def split(
        self,
        tables: dict[str, Table],
        strata: np.ndarray,
        digests: list[str],
        class_names: tuple[str, ...],
        notes: Counter[str],
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Return the rows of each split, and warnings.

        Args:
            tables: tables by given split; the indices of their rows follow each other.
            strata: (N,) strata of all rows, the classes of a classification.
            digests: N digests of the rows.
            class_names: names of the classes; empty for labels and numbers.
            notes: counts of warnings, which are extended.

        Raises:
            InputError: there are too few rows or groups, or a group is in several given splits.
        """
        splits = given_splits(tables)
        groups = self._groups(tables)
        if groups is None:
            warnings = hint_at_columns(tables["train"], [*self.roles.target, *self.roles.ignore])
        else:
            warnings = refuse_crossing_groups(groups, splits, name=self.name, allow=self.allow_duplicates)
        if self.fold is not None:
            folds = split_rows(
                strata, digests, class_names, fold=self.fold, seed=self.seed, name=self.name, groups=groups
            )
            return folds, warnings + warn_of_rare_classes(strata, class_names, folds=self.fold.count)
        if "val" in splits:
            if self.roles.split_by is not None:
                raise InputError(
                    f"cannot use --split-by with {printable(self.name)}: expected no validation rows, got "
                    f"{len(splits['val']):,}. Drop --split-by."
                )
            return splits, warnings
        train = splits.pop("train")
        if self.roles.split_by is not None:
            in_val, boundary = self._last_rows(tables["train"])
            notes[f"validation rows {boundary}"] = int(in_val.sum())
        else:
            in_val = self._held_out(train, strata, digests, class_names, groups=groups)
            warnings += warn_of_rare_classes(strata[train], class_names)
        splits = {"train": train[~in_val], "val": train[in_val], **splits}
        if self.roles.split_by is not None and groups is not None:
            warnings += refuse_crossing_groups(groups, splits, name=self.name, allow=self.allow_duplicates)
        return splits, warnings

    def _groups(self, tables: dict[str, Table]) -> list[str] | None:
        column = self.roles.group_column
        if column is None:
            return None
        joined = join_tables([Table(t.name, {column: t.column(column)}, t.row_name) for t in tables.values()])
        return groups_of_column(joined.columns[column])

    def hold_out_again(
        self, tables: dict[str, Table], train: np.ndarray, strata: np.ndarray, digests: list[str]
    ) -> np.ndarray | None:
        """Select some of the training rows in the way of the validation rows: the last ones, or whole groups.

        Args:
            tables: tables by given split.
            train: (M,) training rows.
            strata, digests: see `split`.

        Returns:
            (M,) True for the rows that are held out, or None if no row would remain on one side.
        """
        if self.roles.split_by is not None:
            values = read_order(tables["train"], self.roles.split_by)[train]
            held_out = values > np.quantile(values, 1 - HELD_OUT_AGAIN)
        else:
            copies = groups_of_copies(train, strata, digests, least=2)
            groups = self._groups(tables)
            held_out = holdout_mask(train, strata, copies, fraction=HELD_OUT_AGAIN, seed=self.seed + 1, groups=groups)
        return held_out if 0 < held_out.sum() < len(train) else None

    def _last_rows(self, train: Table) -> tuple[np.ndarray, str]:
        column = self.roles.split_by
        assert column is not None
        values = read_order(train, column)
        return last_part(values, train.columns[column], fraction=self.fraction, name=self.name, column=column)

    def _held_out(
        self,
        train: np.ndarray,
        strata: np.ndarray,
        digests: list[str],
        class_names: tuple[str, ...],
        *,
        groups: list[str] | None,
    ) -> np.ndarray:
        """Return the training rows to hold out, stratified, with duplicates and groups on one side."""
        copies = groups_of_copies(train, strata, digests, least=2)
        if groups is not None:
            units = units_of(strata[train], [copies[i] for i in train], [groups[i] for i in train])
            refuse_few_groups(units, strata[train], class_names, parts=2, name=self.name, noun="rows")
        return holdout_mask(train, strata, copies, fraction=self.fraction, seed=self.seed, groups=groups)


def warn_of_rare_classes(strata: np.ndarray, class_names: tuple[str, ...], folds: int = 0) -> list[str]:
    """Return a warning about classes with one row, and one about classes with fewer rows than folds.

    Args:
        strata: (N,) class of each row.
        class_names: names of the classes; empty for labels and numbers.
        folds: number of folds, 0 for a held-out part.
    """
    counts = np.bincount(strata, minlength=len(class_names)) if class_names else np.zeros(0, np.int64)
    single = [class_names[k] for k in np.flatnonzero(counts == 1)]
    few = [class_names[k] for k in np.flatnonzero((counts > 1) & (counts < folds))]
    warnings = []
    if single:
        row = "Its row is" if len(single) == 1 else "Their rows are"
        noun = count_of(len(single), "class", "classes")
        warnings.append(f"{noun} with one row: {join_quoted(single, 5)}. {row} used for training only.")
    if few:
        warnings.append(f"fewer rows than folds: {join_quoted(few, 5)}. Some folds have none of them to validate.")
    return warnings


def given_splits(tables: dict[str, Table]) -> dict[str, np.ndarray]:
    """Return the indices of the rows of each table, which follow each other."""
    bounds = np.cumsum([0, *(len(table) for table in tables.values())])
    return {name: np.arange(a, b) for name, a, b in zip(tables, bounds[:-1], bounds[1:], strict=True)}
