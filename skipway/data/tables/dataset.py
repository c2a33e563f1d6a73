"""TableDataset: labeled rows of one to three splits, encoded with statistics of the training rows.

Rows without a target are listed with their line, unused columns with the reason. Unseen values are counted, and columns
that determine the target are reported.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.folds import Fold
from skipway.data.output_spec import join_labels
from skipway.data.sample_weights import describe_weights, read_weights, refuse_zero_weights
from skipway.data.sources.image_source import SPLITS, Skipped
from skipway.data.sources.table import RowNames, Table
from skipway.data.strata import strata_of
from skipway.data.tables.column_choice import ColumnChoice, choose_columns
from skipway.data.tables.column_facts import describe_columns
from skipway.data.tables.columns import Column, fit_column, infer_kind
from skipway.data.tables.dataset_warnings import (
    count_rows,
    warn_of_copies,
    warn_of_leaks,
    warn_of_rare,
    warn_of_splits,
)
from skipway.data.tables.input_kinds import targets_follow_order
from skipway.data.tables.join_tables import select_rows
from skipway.data.tables.marker_classes import describe_marker_classes, find_marker_classes, with_marker_classes
from skipway.data.tables.row_digests import digest_encoded, digest_rows
from skipway.data.tables.row_splits import RowSplitter, given_splits
from skipway.data.tables.table_source import TableSource
from skipway.data.tables.table_spec import Encoded, TableSpec
from skipway.data.tables.target import Target, infer_target, missing_targets, target_units
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = [
    "TableDataset",
    "build_table_dataset",
    "describe_table",
    "describe_target",
    "encode_labeled",
    "fingerprint_table",
]

_MIN_ROWS = 5


@dataclass
class TableDataset:
    """Encoded rows of all splits, and their targets.

    Shapes: x is (N, F + K) float32; y is (N,) int64 classes, (N, L) float32 labels of 0 and 1, or (N, T) standardized
    float32 numbers.

    `keys` holds the N names of the rows for messages and CSV files, `left_out` is {unused column: reason},
    `weights` (N,) sample weights or None, `columns` {column: how it was read}. `held_out` marks training rows that a
    test of the number of epochs can hold out: True for each of them in the order of the split, or None.
    """

    name: str
    spec: TableSpec
    x: np.ndarray
    y: np.ndarray
    keys: Sequence[str]
    digests: list[str]
    splits: dict[str, np.ndarray]
    skipped: list[Skipped]
    notes: Counter[str]
    warnings: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    weights: np.ndarray | None = None
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    held_out: np.ndarray | None = None

    def target_text(self, i: int) -> str:
        """Return the target of row i as text: its class, its labels or its numbers, joined by "|"."""
        spec, target = self.spec, self.y[i]
        if spec.task == "classification":
            return spec.class_names[target]
        if spec.task == "multilabel":
            return join_labels(spec.class_names, target)
        return "|".join(f"{number:.7g}" for number in spec.in_units(target.astype(np.float64)))


def build_table_dataset(
    source: TableSource,
    fraction: float,
    seed: int,
    *,
    max_unreadable: float = 0.01,
    spec: TableSpec | None = None,
    fold: Fold | None = None,
    allow_duplicates: bool = False,
    hold_out_again: bool = False,
) -> TableDataset:
    """Encode the rows of all splits, and hold out training rows if there is no validation table.

    Args:
        source: the tables.
        fraction: share of the training rows to hold out.
        seed: seed of the split.
        max_unreadable: maximum share of rows without a target.
        spec: encoders of a trained model; None to fit them to the training rows.
        fold: fold of a cross-validation to hold out instead.
        allow_duplicates: accept groups in more than one split.
        hold_out_again: choose the training rows that a test of the number of epochs holds out.

    Raises:
        InputError: a cell, a column or the target cannot be used.
    """
    notes = Counter[str]()
    for table in source.splits.values():
        notes.update({f"table {printable(Path(table.name).name)}: {note}": 1 for note in table.notes})
    source, remarks_on_target = _with_marker_classes(source, spec)
    tables, skipped = _drop_unlabeled(source, max_unreadable)
    train = tables["train"]
    if len(train) < _MIN_ROWS:
        raise InputError(
            f"cannot train on {printable(train.name)}: expected at least {_MIN_ROWS} rows with a target, got "
            f"{len(train)}. Add rows."
        )
    roles = source.roles
    target = Target.of(spec) if spec else infer_target(train, roles.target, roles.task, roles.label_sep)
    y = np.concatenate([target.read(table) for table in tables.values()])
    ordered = target.task == "regression" and targets_follow_order(y[: len(train)])
    choice = choose_columns(source, keep_counter=ordered) if spec is None else ColumnChoice.of(spec)
    digests = digest_rows(list(tables.values()), choice.kinds, y, choice.styles)
    splitter = RowSplitter(source.name, roles, fraction, seed, fold, allow_duplicates)
    strata = strata_of(target.task, y, np.arange(len(train)))
    class_names = target.class_names if target.task == "classification" else ()
    splits, remarks = splitter.split(tables, strata, digests, class_names, notes)
    given = given_splits(tables)
    warnings = remarks_on_target + choice.warnings + warn_of_copies(digests, given) + remarks
    weights = refuse_zero_weights(_read_weights(roles, tables), splits, source.name)
    if weights is not None:
        notes["rows with sample weights, of the loss and the metrics"] = len(weights)
    # Of a training table, the inference of the columns has warned.
    reported = {"train"} if spec is None else set()
    if spec is None:
        rows = splits["train"]  # the training table is first, so these also index its rows
        fitted = _fit_spec(train, target, y[rows], choice, rows=rows, notes=notes)
        spec = replace(fitted, missing=source.settings.missing, id_names=roles.id)
        for name in target.names if target.styles else ():
            kind, remark = infer_kind(name, train)
            warnings += [f"target {printable(name)!r}: {remark}"] if kind and remark else []
        warnings += warn_of_leaks(train, list(choice.kinds), spec=spec, y=y)
    encoded = [spec.encode_strict(table, allow_odd=True) for table in tables.values()]
    missing, unseen = Counter[str](), Counter[str]()
    for split, part in zip(tables, encoded, strict=True):
        warnings += [f"{split} table: {line}" for line in part.odd_lines if split not in reported]
        missing.update(part.missing)
        unseen.update(part.unseen)
        notes.update({f"values of {name!r} rarely or never seen in training": n for name, n in part.unseen.items()})
        notes.update({f"missing values in {name!r}": n for name, n in part.missing.items()})
    x = np.concatenate([part.x for part in encoded])
    warnings += warn_of_rare(spec, x[splits["train"]])
    return TableDataset(
        name=source.name,
        spec=spec,
        x=x,
        y=spec.standardized(y),
        keys=RowNames(list(tables.values())),
        digests=digests,
        splits={split: splits[split] for split in SPLITS if split in splits},
        skipped=skipped,
        notes=notes,
        warnings=warnings,
        left_out=choice.left_out,
        weights=weights,
        columns=describe_columns(train, spec, choice, missing=missing, unseen=unseen, count=len(y)),
        held_out=splitter.hold_out_again(tables, splits["train"], strata, digests) if hold_out_again else None,
    )


def _with_marker_classes(source: TableSource, spec: TableSpec | None) -> tuple[TableSource, list[str]]:
    """Return the tables with texts such as NA as classes of the target, if they are, and warnings."""
    target, warnings = source.roles.target[0], list[str]()
    if spec is None:
        classes = find_marker_classes(source.splits["train"], source.roles, source.settings.missing)
        names, warnings = tuple(classes), describe_marker_classes(classes, target)
    else:
        names = spec.class_names if spec.task == "classification" else ()
    splits = {split: with_marker_classes(table, target, names) for split, table in source.splits.items()}
    return replace(source, splits=splits), warnings


def _read_weights(roles: ColumnRoles, tables: dict[str, Table]) -> np.ndarray | None:
    if roles.weight_column is None:
        return None
    return np.concatenate([read_weights(table, roles.weight_column) for table in tables.values()])


@dataclass(frozen=True)
class LabeledRows:
    """Labeled rows of one table, encoded for a trained model.

    Attributes:
        x, y: inputs and targets, as in a TableDataset.
        digests: digests of the rows, as in splits.csv.
        skipped: number of rows without a target, which are left out.
        encoded: the encoded rows, with counts of unseen and missing values.
    """

    x: np.ndarray
    y: np.ndarray
    digests: list[str]
    skipped: int
    encoded: Encoded


def encode_labeled(table: Table, spec: TableSpec) -> LabeledRows:
    """Encode the rows of a table that have a target, for a trained model.

    Raises:
        InputError: no row has a target, or a cell cannot be used.
    """
    table = spec.with_missing(table)
    if spec.task == "classification":
        table = with_marker_classes(table, spec.target, spec.class_names)
    missing = missing_targets(table, spec.target_names, spec.label_sep)
    rows = select_rows(table, np.flatnonzero(~missing))
    if not len(rows):
        raise InputError(
            f"cannot use {printable(table.name)}: expected values in the target {printable(spec.target)!r}, got none. "
            "Fill in the target."
        )
    y = Target.of(spec).read(rows)
    encoded, digests = spec.encode_strict(rows, allow_odd=True), digest_encoded(rows, spec.columns, y)
    return LabeledRows(encoded.x, spec.standardized(y), digests, int(missing.sum()), encoded)


def fingerprint_table(rows: TableDataset) -> str:
    """Return a SHA-256 hex digest of all rows, their order and splits, and of the encoders."""
    digest = hashlib.sha256(repr(rows.spec).encode("utf-8", "surrogatepass"))
    for split, indices in rows.splits.items():
        digest.update(f"{split}\0".encode())
        digest.update("".join([rows.digests[i] for i in indices.tolist()]).encode())
        if rows.weights is not None:
            digest.update(rows.weights[indices].tobytes())
    return digest.hexdigest()


def describe_target(spec: TableSpec) -> str:
    """Describe the target in words: its number of classes, labels or numbers."""
    if spec.task == "regression":
        if spec.num_outputs > 1:
            return f"{spec.num_outputs} numbers (regression)"
        style = spec.target_styles[0].describe() if spec.target_styles else ""
        return f"a number (regression{'; ' if style else ''}{style})"
    noun = ("class", "classes") if spec.task == "classification" else ("label", "labels")
    return count_of(len(spec.class_names), *noun)


def describe_table(rows: TableDataset) -> dict[str, Any]:
    """Summarize a table as plain values, for the console, the report and `check`."""
    facts: dict[str, Any] = {
        "name": rows.name,
        "kind": "table",
        "target": rows.spec.target,
        "task": rows.spec.task,
        "counts": {split: len(indices) for split, indices in rows.splits.items()},
        "columns": dict(Counter(c.kind for c in rows.spec.columns)),
        "column_details": rows.columns,
        "left_out": dict(rows.left_out),
        "skipped": len(rows.skipped),
        "notes": dict(rows.notes.most_common()),
        "warnings": rows.warnings + warn_of_splits(rows.spec, rows.y, rows.splits, rows.left_out),
    }
    facts |= describe_weights(rows.weights, rows.splits, rows.y, rows.spec.class_names)
    if names := rows.spec.class_names:
        counts = {split: count_rows(rows.y[i], len(names)) for split, i in rows.splits.items()}
        facts["classes"] = {name: {split: int(n[k]) for split, n in counts.items()} for k, name in enumerate(names)}
    return facts


def _drop_unlabeled(source: TableSource, max_unreadable: float) -> tuple[dict[str, Table], list[Skipped]]:
    """Separate the rows without a target from the tables."""
    tables, skipped = {}, []
    names = " or ".join(repr(printable(name)) for name in source.roles.target)
    reason = f"no value in the target {names}"
    for split, table in source.splits.items():
        missing = missing_targets(table, source.roles.target, source.roles.label_sep)
        rows = np.flatnonzero(missing).tolist()
        skipped += [Skipped(key=table.row_name(i), split=split, class_name="", reason=reason) for i in rows]
        tables[split] = select_rows(table, np.flatnonzero(~missing)) if rows else table
    total = sum(len(table) for table in source.splits.values())
    if len(skipped) > max_unreadable * total:
        examples = ", ".join(row.key for row in skipped[:5]) + (" ..." if len(skipped) > 5 else "")
        raise InputError(
            f"cannot use the target {names}: expected a share of missing values of at most "
            f"--max-unreadable {max_unreadable:g}, got {len(skipped):,} of {total:,} rows ({examples}). Fill in the "
            "values, or use a higher --max-unreadable."
        )
    return tables, skipped


def _fit_spec(
    train: Table,
    target: Target,
    y: np.ndarray,
    choice: ColumnChoice,
    *,
    rows: np.ndarray,
    notes: Counter[str],
) -> TableSpec:
    """Fit the encoders of the columns, and the statistics of the targets y, to the training rows."""
    columns: list[Column] = []
    for name, kind in choice.kinds.items():
        column, counts = fit_column(name, kind, train.columns[name][rows], choice.styles.get(name))
        columns.append(column)
        if counts.get("rare"):
            notes[f"rare categories of {printable(name)!r} encoded as unseen"] = counts["rare"]
    is_regression = target.task == "regression"
    center, scale = target_units(y) if is_regression else ((), ())
    return TableSpec(
        columns=tuple(columns),
        target_names=target.names,
        task=target.task,
        class_names=target.class_names,
        target_mean=center,
        target_std=scale,
        label_sep=target.label_sep,
        target_styles=target.styles,
    )
