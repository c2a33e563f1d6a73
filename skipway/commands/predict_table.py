"""What can be done with tables and the networks that were trained on them: predict, evaluate, check."""

import os
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np

from skipway.commands.write_predictions import Evaluation, Prediction, RegressionEvaluation
from skipway.data.tables.columns import Problem
from skipway.data.tables.dataset import (
    TableSource,
    build_table_dataset,
    describe_table,
    encode_labeled,
    open_table_source,
)
from skipway.data.tables.loader import RowBatches
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.models.prediction import as_table
from skipway.training.losses import Classification, Regression, Task
from skipway.training.metrics import compute_metrics, per_class, score
from skipway.utils.console import Console

__all__ = ["check_tables", "evaluate_table", "predict_tables"]

_ROWS = 4096


def predict_tables(network: Network, sources: Any, top: int, console: Console) -> list[Prediction]:
    """One Prediction per row of the tables, in order; a row with a cell that cannot be used says which.

    The target is not needed; columns are found by name, and further ones are passed over.
    """
    spec, rows = network.require_table_spec(), []
    if isinstance(sources, str | os.PathLike) or hasattr(sources, "columns") or not isinstance(sources, Iterable):
        sources = [sources]
    for source in sources:
        table = as_table(source)
        encoded = spec.encode(table)
        said = [
            f"{n:,} values of {printable(c)!r} were rarely or never seen in training" for c, n in encoded.unseen.items()
        ]
        said += [f"{n:,} values of {printable(c)!r} are missing" for c, n in encoded.missing.items()]
        for line in [*table.notes, *said]:
            console.print(f"{printable(table.name)}: {line}")
        why: dict[int, Problem] = {}
        for problem in sorted(encoded.problems, key=lambda p: p.row):
            why.setdefault(problem.row, problem)
        outputs = network.row_outputs(encoded.x)
        order = np.argsort(-outputs, axis=1, kind="stable")[:, :top]
        for i, output in enumerate(outputs):
            if i in why:
                reason = f"column {printable(why[i].column)!r}: {why[i].why}"
                rows.append(Prediction(table.row_name(i), (), reason, noun="row"))
            elif spec.class_names:
                likely = tuple((spec.class_names[k], float(output[k])) for k in order[i])
                rows.append(Prediction(table.row_name(i), likely, noun="row"))
            else:
                rows.append(Prediction(table.row_name(i), (), value=float(f"{output[0]:.7g}"), noun="row"))
    if not rows:
        raise InputError("predict needs at least one table with rows: a .csv, .tsv or .parquet file, or a DataFrame")
    return rows


def evaluate_table(network: Network, data: str, split: str | None) -> Evaluation | RegressionEvaluation:
    """How `network` does on a split of `data`: test where there is one, else val, else all rows."""
    spec = network.require_table_spec()
    tables = open_table_source(data, spec.target)
    if tables is None:
        raise InputError(
            f"{printable(data)} is no table, but the network was trained on one; give a .csv or .parquet file"
        )
    there = [s for s in ("test", "val", "train") if s in tables.splits]
    if split is not None and split not in there:
        raise InputError(f"{printable(data)} has no {printable(split)} split; it has {', '.join(reversed(there))}")
    chosen = split or there[0]
    x, y, skipped = encode_labeled(tables.splits[chosen], spec)
    task: Task = Classification(samples="rows")
    if spec.task == "regression":
        task = Regression(spec.target_mean, spec.target_std)
    feed = RowBatches(x, y, np.arange(len(y)), _ROWS)
    scores = score(network, feed, task, nullcontext, next(network.parameters()).device)
    told = compute_metrics(scores)
    if spec.task == "regression":
        return RegressionEvaluation(chosen, len(y), told["r2"], told["mae"], told["rmse"], told["loss"], skipped)
    classes = per_class(scores, spec.class_names)
    return Evaluation(chosen, len(y), told["accuracy"], told["loss"], classes, skipped, told, "rows")


def check_tables(tables: TableSource, max_unreadable: float) -> str:
    """What a careful eye sees in a table before training, as text."""
    rows = build_table_dataset(tables, 0.2, 0, max_unreadable=max_unreadable)
    facts, spec = describe_table(rows), rows.spec
    learnt = f"{len(spec.class_names)} classes" if spec.class_names else "a number (regression)"
    counts = {split: len(table) for split, table in tables.splits.items()}
    lines = [
        f"{printable(tables.name)}: {', '.join(f'{n:,} {split}' for split, n in counts.items())} rows; target "
        f"{printable(spec.target)!r}: {learnt}"
    ]
    width = max(len(printable(c.name)) for c in spec.columns)
    for column in spec.columns:
        about = f"{len(column.categories):,} categories" if column.kind == "category" else f"around {column.center:.4g}"
        holes = ", with missing values" if column.indicator else ""
        lines.append(f"  {printable(column.name):<{width}}  {column.kind}, {about}{holes}")
    totals = {name: sum(by_split.values()) for name, by_split in facts.get("classes", {}).items()}
    lines += [f"  class {printable(name)}: {n:,} rows" for name, n in totals.items()]
    lines += [f"{count:,} {note}" for note, count in facts["notes"].items()]
    lines += [f"{len(rows.skipped):,} rows have no target: {', '.join(s.key for s in rows.skipped[:10])}"] * bool(
        rows.skipped
    )
    lines += [f"mind: {w}" for w in facts["warnings"]]
    return "\n".join(lines if facts["warnings"] or rows.skipped else [*lines, "nothing to mind"])
