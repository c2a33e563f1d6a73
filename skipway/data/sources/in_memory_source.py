"""Sources of the data that is passed in Python: a Source of images, or the tables of a TableSource."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from skipway.data.sources.image_source import SPLITS, Content, Item, Skipped, Source, peeked, read_content
from skipway.data.sources.in_memory import Held, Samples, is_frame
from skipway.data.sources.plain_targets import as_array, plain_targets
from skipway.data.sources.read_table import frame_table
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import Cells
from skipway.errors import InputError, printable, reason_of

__all__ = ["held_images", "held_tables", "matrix_table"]

_PREFIX = "x"  # of the columns of a matrix: x0, x1, ...
_NO_TARGET = "no target in y"


def held_images(held: Held, task: str = "auto", is_known: bool = False) -> Source:
    """Return the images of a call as a Source.

    Args:
        held: images of each split.
        task: "auto", "classification", "multilabel" or "regression".
        is_known: True if a trained model has the classes or targets, so that one class or constant numbers are enough.

    Raises:
        InputError: the targets cannot be used.
    """
    samples = {split: held.splits[split] for split in SPLITS if split in held.splits}
    y = {split: of.y for split, of in samples.items()}
    targets = plain_targets(y, task, samples["train"].class_names, is_known=is_known)
    items = {split: [of.x[i] for i in targets.kept[split]] for split, of in samples.items()}
    keys = {split: [of.keys[i] for i in targets.kept[split]] for split, of in samples.items()}
    skipped = []
    for split, of in samples.items():
        lacking = np.setdiff1d(np.arange(len(of.keys)), targets.kept[split])
        skipped += [Skipped(of.keys[i], split, "", _NO_TARGET) for i in lacking]

    def contents(split: str) -> Iterator[Item]:
        return iter(items[split])

    def peek() -> list[Content]:
        return [read_content(item) for item in peeked(items["train"])]

    return Source(
        name="images",
        class_names=targets.class_names,
        keys=keys,
        targets=targets.values,
        contents=contents,
        peek=peek,
        task=targets.task,
        target_names=targets.target_names,
        skipped=skipped,
    )


def held_tables(held: Held, target: tuple[str, ...]) -> tuple[dict[str, Table], tuple[str, ...]]:
    """Return the rows of a call as tables by split, and the names of their targets.

    Args:
        held: rows of each split.
        target: target columns of a DataFrame, or names for the targets that were passed as y; empty if unset.

    Raises:
        InputError: there is no target, or there are two.
    """
    tables, names = {}, target
    for split in SPLITS:
        if split in held.splits:
            frame, names = _frame(held.splits[split], target)
            table = frame_table(frame, f"the {split} rows" if split != "train" else "the rows")
            keys = held.splits[split].keys
            tables[split] = Table(table.name, table.columns, keys.__getitem__, notes=table.notes)
    return tables, names


def matrix_table(x: Any) -> Table:
    """Convert a matrix (N, F) of numbers, an array or a tensor, to a table with the columns x0, x1, ...

    Raises:
        InputError: a value is no number, or an integer that is too large.
    """
    try:
        matrix = np.asarray(_on_host(x), np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise InputError(
            f"cannot use the matrix: expected numbers up to 1e+300, got other values ({reason_of(error)}). Pass a "
            "DataFrame for text columns."
        ) from None
    columns: dict[str, Cells] = {f"{_PREFIX}{i}": np.ascontiguousarray(column) for i, column in enumerate(matrix.T)}
    return Table("the matrix", columns, lambda i: f"row {i}")


def _frame(samples: Samples, target: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """Return the rows of a split as a DataFrame with its target columns, and the names of these columns."""
    import pandas as pd

    frame = samples.x if is_frame(samples.x) else pd.DataFrame(samples.x).add_prefix(_PREFIX)
    if samples.y is None:
        if not target:
            raise InputError(
                "cannot use the DataFrame: expected its target, got none. Pass target, the name of a column, or y. "
                f"Columns: {', '.join(printable(name) for name in list(frame.columns)[:12])}."
            )
        return frame, target
    if twice := [name for name in target if name in frame.columns]:
        raise InputError(
            f"cannot use y: expected targets in y or in the column {printable(twice[0])!r}, got both. Drop one of them."
        )
    y = pd.DataFrame(samples.y if hasattr(samples.y, "iloc") else as_array(samples.y))
    if target and len(target) != y.shape[1]:
        raise InputError(
            f"cannot use y: expected {len(target)} columns for the targets {', '.join(map(printable, target))}, got "
            f"{y.shape[1]}. Pass one column per target."
        )
    names = target or tuple(_free_name(name, frame) for name in _names_of(y))
    columns = {name: y.iloc[:, i].to_numpy() for i, name in enumerate(names)}
    return frame.assign(**columns), names


def _names_of(y: Any) -> list[str]:
    """Return the names of the columns of y; those of an array are y, or y0, y1, ..."""
    if len(y.columns) == 1 and y.columns[0] in (0, None):
        return ["y"]
    return [f"y{name}" if isinstance(name, int) else str(name) for name in y.columns]


def _free_name(name: str, frame: Any) -> str:
    """Return a name for a column that the frame does not have."""
    while name in frame.columns:
        name += "_"
    return name


def _on_host(y: Any) -> Any:
    return y.detach().cpu().numpy() if hasattr(y, "detach") else y
