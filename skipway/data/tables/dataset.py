"""TableSet: labelled rows of one to three splits, encoded by what the training rows say, with all that is odd in them.

Nothing is lost in silence: rows without a target are named with their line, columns that are left out with the reason,
values never seen in training are counted, and columns that tell the target by themselves are called what they are.
"""

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.images.split import FEW, IMBALANCED, held_out
from skipway.data.sources.base import SPLITS, Skipped
from skipway.data.sources.read_table import BUILT_IN_TABLES, Table, bundled_table, listed, read_table, table_files
from skipway.data.tables.columns import Column, factor, fit_column, kind_of, read_numbers, words
from skipway.data.tables.table_spec import TableSpec
from skipway.data.tables.target import absent, targets, task_of
from skipway.errors import InputError, printable

__all__ = ["TableSet", "Tables", "describe_table", "fingerprint_table", "labelled", "open_tables", "table_set"]

_LEAST_ROWS = 5
_BINS = 10  # of a target of numbers, so that both sides of a split have small and large ones
_TELLING = 50  # different values up to which a column that tells the target is a leak, not a fine-grained measure
_IDS = ("id", "uuid", "guid", "index", "key", "rowid")


@dataclass
class Tables:
    """Tables by split, before anything is learnt of them: what is to be predicted, which columns are passed over."""

    name: str
    splits: dict[str, Table]
    target: str
    task: str = "auto"
    ignored: tuple[str, ...] = ()


@dataclass
class TableSet:
    """Rows of all splits, one after the other: x (N, F + K) float32; y (N,) int64 classes or float32 numbers."""

    name: str
    spec: TableSpec
    x: np.ndarray
    y: np.ndarray
    keys: list[str]
    digests: list[str]
    splits: dict[str, np.ndarray]
    skipped: list[Skipped]
    notes: Counter[str]
    warnings: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def targets(self) -> np.ndarray:
        """(N,) class names, or the numbers in the target's own unit."""
        if self.spec.class_names:
            return np.array(self.spec.class_names, dtype=object)[self.y]
        return self.y.astype(np.float64) * self.spec.target_std + self.spec.target_mean


def open_tables(data: str, target: str | None, task: str = "auto", ignore: str | None = None) -> Tables | None:
    """What `data` holds where it is a table: a bundled one, a file, or a folder with train, val and test; else None."""
    names = next(csv.reader([ignore or ""], skipinitialspace=True), [])
    ignored = tuple(name.strip() for name in names if name.strip())
    if data in BUILT_IN_TABLES:
        table, own, kind = bundled_table(data)
        found = Tables(data, {"train": table}, target or own, kind if task == "auto" and not target else task, ignored)
    else:
        path = Path(data).expanduser()
        files = table_files(path) if path.exists() and (path.is_file() or path.is_dir()) else {}
        if not files or (target is None and any(p.suffix.lower() == ".parquet" for p in files.values())):
            return None  # parquet files of pictures have their own columns, and need no --target
        tables = {split: read_table(files[split]) for split in SPLITS if split in files}
        if target is None:
            columns = listed(list(tables["train"].columns))
            raise InputError(
                f"{printable(data)} is a table: say which column to predict with --target, one of {columns}"
            )
        found = Tables(path.stem if path.is_file() else path.resolve().name, tables, target, task, ignored)
    train = found.splits["train"]
    for name in (found.target, *ignored):
        train.column(name)
    if found.target in ignored:
        raise InputError(
            f"the column {printable(found.target)!r} is both --target and in --ignore; leave it out of one"
        )
    return found


def table_set(
    tables: Tables, fraction: float, seed: int, max_unreadable: float = 0.01, spec: TableSpec | None = None
) -> TableSet:
    """The rows of `tables`, with a part of the training rows held out where there is no validation table.

    `spec` is that of a trained network, to go on with; else it is made from the training rows alone.

    Raises:
        InputError: a cell, a column or the target cannot be used; names line and column.
    """
    notes, skipped = Counter[str](), list[Skipped]()
    for table in tables.splits.values():
        notes.update({f"table {printable(Path(table.name).name)}: {note}": 1 for note in table.notes})
    whole, keep = {}, {}
    for split, table in tables.splits.items():
        missing = absent(table.column(tables.target))
        skipped += [Skipped(table.at(i), split, "", f"no value in the target {tables.target!r}") for i in missing]
        whole[split], keep[split] = table, np.setdiff1d(np.arange(len(table)), missing)
    _refuse_unlabelled(tables, skipped, max_unreadable)
    rows = {split: _taken(table, keep[split]) for split, table in whole.items()}
    train = rows["train"]
    if len(train) < _LEAST_ROWS:
        raise InputError(
            f"{printable(train.name)} has {len(train)} rows with a target; at least {_LEAST_ROWS} are needed to train "
            "on some and validate on others: add rows"
        )
    task, names = (spec.task, spec.class_names) if spec else task_of(train, tables.target, tables.task)
    y = np.concatenate([targets(table, tables.target, task, names) for table in rows.values()])
    bounds = np.cumsum([0, *(len(t) for t in rows.values())])
    splits = {s: np.arange(a, b) for s, a, b in zip(rows, bounds[:-1], bounds[1:], strict=True)}
    used, kinds, left_out, odd = _kinds(whole["train"], tables) if spec is None else ([], {}, {}, [])
    digests = _digests(list(rows.values()), [c.name for c in spec.columns] if spec else used, y)
    warnings = odd + _copies(digests, splits)
    if "val" not in splits:
        splits = _held_out(splits, y, digests, task, names, (fraction, seed))
    if spec is None:
        inside = splits["train"]  # the training table stands first, so these are its own rows too
        spec = _fitted(train, tables.target, (task, names), kinds, inside, y, notes)
        warnings += _leaks(train, used, spec, y)
    encoded = [spec.encode_whole(table) for table in rows.values()]
    for part in encoded:
        notes.update({f"values of {name!r} rarely or never seen in training": n for name, n in part.unseen.items()})
        notes.update({f"missing values in {name!r}": n for name, n in part.missing.items()})
    if task == "regression":
        y = ((y - spec.target_mean) / spec.target_std).astype(np.float32)
    keys = [table.at(i) for table in rows.values() for i in range(len(table))]
    x = np.concatenate([part.x for part in encoded])
    order = {s: splits[s] for s in SPLITS if s in splits}
    return TableSet(tables.name, spec, x, y, keys, digests, order, skipped, notes, warnings, left_out)


def labelled(table: Table, spec: TableSpec) -> tuple[np.ndarray, np.ndarray, int]:
    """(x, y, rows without a target, which are left out) of a table for a network that was trained before."""
    missing = absent(table.column(spec.target))
    rows = _taken(table, np.setdiff1d(np.arange(len(table)), missing))
    if not len(rows):
        raise InputError(
            f"no row of {printable(table.name)} has a value in the target {printable(spec.target)!r}; add some"
        )
    y = targets(rows, spec.target, spec.task, spec.class_names)
    if spec.task == "regression":
        y = ((y - spec.target_mean) / spec.target_std).astype(np.float32)
    return spec.encode_whole(rows).x, y, len(missing)


def fingerprint_table(rows: TableSet) -> str:
    """SHA-256 over every row's content, target, place and split, and over what the network is given of them."""
    digest = hashlib.sha256(repr(rows.spec).encode("utf-8", "surrogatepass"))
    for split, indices in rows.splits.items():
        for i in indices:
            digest.update(f"{split}\0{rows.keys[i]}\0{rows.digests[i]}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def describe_table(rows: TableSet) -> dict[str, Any]:
    """What a run or `check` reports of its rows, as plain values."""
    facts: dict[str, Any] = {
        "name": rows.name,
        "kind": "table",
        "target": rows.spec.target,
        "task": rows.spec.task,
        "counts": {split: len(indices) for split, indices in rows.splits.items()},
        "columns": dict(Counter(c.kind for c in rows.spec.columns)),
        "left_out": dict(rows.left_out),
        "skipped": len(rows.skipped),
        "notes": dict(rows.notes.most_common()),
        "warnings": rows.warnings + _remarks(rows),
    }
    if names := rows.spec.class_names:
        counts = {split: np.bincount(rows.y[i], minlength=len(names)) for split, i in rows.splits.items()}
        facts["classes"] = {name: {split: int(n[k]) for split, n in counts.items()} for k, name in enumerate(names)}
    return facts


def _taken(table: Table, rows: np.ndarray) -> Table:
    columns = {name: column[rows] for name, column in table.columns.items()}
    return replace(table, columns=columns, at=lambda i: table.at(int(rows[i])))


def _refuse_unlabelled(tables: Tables, skipped: list[Skipped], max_unreadable: float) -> None:
    total = sum(len(t) for t in tables.splits.values())
    if len(skipped) > max_unreadable * total:
        first = ", ".join(s.key for s in skipped[:5]) + (" ..." if len(skipped) > 5 else "")
        raise InputError(
            f"{len(skipped):,} of {total:,} rows have no value in the target {printable(tables.target)!r} ({first}), "
            f"more than --max-unreadable {max_unreadable:g}; fill them in, or leave them out with a higher "
            "--max-unreadable"
        )


def _kinds(train: Table, tables: Tables) -> tuple[list[str], dict[str, str], dict[str, str], list[str]]:
    """Used columns, their kinds, those left out with the reason, and what is odd."""
    kinds: dict[str, str] = {}
    left_out = dict.fromkeys(tables.ignored, "as asked")
    odd = []
    for name in train.columns:
        if name == tables.target or name in left_out:
            continue
        kind, remark = kind_of(name, train)
        if kind:
            kinds[name] = kind
            odd += [f"column {printable(name)!r}: {remark}"] if remark else []
        else:
            left_out[name] = remark
    if not kinds:
        raise InputError(
            f"{printable(train.name)} has no column to learn from beside the target {printable(tables.target)!r}"
            + (f": left out are {listed([f'{k} ({v})' for k, v in left_out.items()])}" if left_out else "")
            + "; add columns that differ between rows"
        )
    return list(kinds), kinds, left_out, odd


def _digests(tables: Sequence[Table], names: list[str], y: np.ndarray) -> list[str]:
    """A digest of each row's used cells and target, whatever the order of the columns."""
    parts = []
    for table in tables:
        columns = []
        for name in sorted(n for n in names if n in table.columns):
            raw = table.columns[name]
            codes, different = factor(words(raw))
            hashed = [hashlib.blake2b(t.encode("utf-8", "surrogatepass"), digest_size=8).digest() for t in different]
            columns.append(np.array([*(int.from_bytes(h, "little") for h in hashed), 0], np.uint64)[codes])
        parts.append(np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), np.uint64))
    cells = np.concatenate([np.concatenate(parts), y.astype(np.float64).view(np.uint64)[:, None]], axis=1)
    return [hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest() for row in np.ascontiguousarray(cells)]


def _copies(digests: list[str], splits: dict[str, np.ndarray]) -> list[str]:
    """What there is to say of rows that stand twice."""
    home: dict[str, set[str]] = {}
    for split, indices in splits.items():
        for i in indices:
            home.setdefault(digests[i], set()).add(split)
    said = []
    across = sum(
        len({split} | home[digests[i]]) > 1 for split, rows in splits.items() if split != "train" for i in rows
    )
    if across:
        said.append(f"{across:,} rows stand in more than one split, target and all: figures are flattered by them")
    if copies := len(digests) - len(home):
        said.append(f"{copies:,} rows are exact copies of others")
    return said


def _held_out(
    splits: dict[str, np.ndarray],
    y: np.ndarray,
    digests: list[str],
    task: str,
    names: tuple[str, ...],
    how: tuple[float, int],
) -> dict[str, np.ndarray]:
    """`splits` with a part of the training rows for validation: of each class, or of small and large, its share."""
    train = splits["train"]
    labels = y if task == "classification" else np.zeros(len(y), np.int64)
    if task == "regression":
        bins = max(1, min(_BINS, len(train) // 5))
        labels[train] = np.argsort(np.argsort(y[train], kind="stable"), kind="stable") * bins // len(train)
    single = [printable(names[k]) for k, n in enumerate(np.bincount(labels[train], minlength=len(names))) if n < 2]
    if task == "classification" and single:
        raise InputError(
            f"the class {single[0]!r} of the target has one row"
            + (f" (and {len(single) - 1} other classes too)" if len(single) > 1 else "")
            + ", too few to train on some and validate on others; add at least one more, or a val table"
        )
    # Copies stay together, unless so few rows differ that a class would lie on one side.
    different = {
        label: len({digests[i] for i in train[labels[train] == label]}) for label in set(labels[train].tolist())
    }
    alone = 2 * sum(different.values()) < len(train) or min(different.values()) < 2
    marks = [str(i) for i in range(len(digests))] if alone else digests
    in_val = held_out(train, labels, marks, *how)
    return {"train": train[~in_val], "val": train[in_val], **{k: v for k, v in splits.items() if k == "test"}}


def _fitted(
    train: Table,
    target: str,
    learnt: tuple[str, tuple[str, ...]],
    kinds: dict[str, str],
    rows: np.ndarray,
    y: np.ndarray,
    notes: Counter[str],
) -> TableSpec:
    """What the training rows say of each column and of the target."""
    columns: list[Column] = []
    for name, kind in kinds.items():
        column, said = fit_column(name, kind, train.columns[name][rows])
        columns.append(column)
        if said.get("rare"):
            notes[f"categories of {printable(name)!r} too rare to be told apart"] = said["rare"]
    task, names = learnt
    mean, std = (float(y[rows].mean()), float(y[rows].std())) if task == "regression" else (0.0, 1.0)
    return TableSpec(tuple(columns), target, task, names, mean, std if std > 0 else 1.0)


def _leaks(train: Table, used: list[str], spec: TableSpec, y: np.ndarray) -> list[str]:
    """Columns that tell the target by themselves, and those that look like identifiers."""
    said = []
    y = y[: len(train)]
    for name in used:
        raw = train.columns[name]
        values = raw if raw.dtype != object else None
        codes, different = factor(words(raw))
        if spec.task == "classification" and 2 <= len(different) <= _TELLING and len(codes) >= 3 * len(different):
            counts = np.zeros((len(different) + 1, spec.num_classes), np.int64)
            np.add.at(counts, (codes, y), 1)
            if counts.max(axis=1).sum() == len(codes):
                said.append(_leak(name, spec.target))
        kind = next((c.kind for c in spec.columns if c.name == name), "")
        if kind == "number" and values is None:
            values, _ = read_numbers(raw, "number", name)
        if kind != "number" or values is None:
            continue
        there = ~np.isnan(values)
        if spec.task == "regression" and there.sum() > 2 and np.ptp(values[there]) > 0 and np.ptp(y[there]) > 0:
            with np.errstate(all="ignore"):
                if abs(np.corrcoef(values[there], y[there])[0, 1]) > 0.99999:
                    said.append(_leak(name, spec.target))
        if len(different) == len(raw) >= 20 and np.all(values == np.round(values)) and _called_id(name):
            said.append(
                f"column {printable(name)!r} looks like an identifier: every value differs; leave it out with --ignore"
            )
    return said


def _leak(name: str, target: str) -> str:
    return (
        f"column {printable(name)!r} tells the target {printable(target)!r} by itself: a leak, unless it is known "
        "before the target is; leave it out with --ignore"
    )


def _called_id(name: str) -> bool:
    plain = name.casefold().replace("-", "_").replace(" ", "_")
    return plain in _IDS or plain.endswith(("_id", "_key", "_no", "_nr")) or name.endswith(("Id", "ID"))


def _remarks(rows: TableSet) -> list[str]:
    """Advice: imbalance, small classes, few validation rows, columns that were left out."""
    said = []
    if rows.left_out:
        said.append(f"left out: {listed([f'{name} ({why})' for name, why in rows.left_out.items()], 12)}")
    if names := rows.spec.class_names:
        counts = np.bincount(rows.y[rows.splits["train"]], minlength=len(names))
        if counts.max() >= IMBALANCED * max(1, counts.min()):
            low, high = printable(names[int(counts.argmin())]), printable(names[int(counts.argmax())])
            said.append(
                f"classes are imbalanced ({low} {counts.min():,}, {high} {counts.max():,} training rows): accuracy "
                "favours the large ones, read the per-class table"
            )
        if few := [names[k] for k in np.flatnonzero(counts < FEW)]:
            said.append(f"fewer than {FEW} training rows: {listed(few, 5)}; expect weak results there")
    validation = len(rows.splits.get("val", ()))
    if 0 < validation < 100:
        said.append(f"{validation} validation rows: a single one can move the figures")
    return said
