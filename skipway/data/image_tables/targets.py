"""Targets of a table of images: classes, several labels, or numbers.

Several labels of an image are in one column (separated, or as a list in JSON), or in columns of 0 and 1.

Shapes: N rows of a split, K labels, T numbers.
"""

import ast
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from skipway.data.column_roles import ColumnRoles
from skipway.data.output_spec import OutputSpec, TaskName
from skipway.data.sources.table import Table, join_quoted
from skipway.data.sources.text_column import TextColumn
from skipway.data.tables.columns import factorize_texts, read_numbers
from skipway.data.tables.target import Target, infer_target
from skipway.errors import InputError, printable

__all__ = ["ImageTargets", "read_image_targets"]

_SEPARATORS = ("|", ";", ",")
_LONGEST_LIST = 100_000  # characters of a cell that is parsed as a list of labels


@dataclass
class ImageTargets:
    """Targets of the rows of all splits.

    Attributes:
        task: "classification", "multilabel" or "regression".
        class_names: names of the classes or labels; empty for regression.
        values: {split: targets as in a Source}.
        label_sep: text between the labels in the target column.
        warnings: remarks about the targets.
    """

    task: TaskName
    class_names: tuple[str, ...]
    values: dict[str, np.ndarray]
    label_sep: str = ""
    warnings: list[str] = field(default_factory=list)


def read_image_targets(
    tables: dict[str, Table], names: tuple[str, ...], roles: ColumnRoles, known: OutputSpec | None = None
) -> ImageTargets:
    """Read the targets of tables without missing targets.

    Args:
        tables: {split: table}; the training table decides on the task and the classes, or else the first one.
        names: target columns.
        roles: the task, and the text between several labels.
        known: outputs of a trained model, whose task and classes the targets have, or None.

    Raises:
        InputError: the values do not fit the task.
    """
    defining = tables.get("train") or next(iter(tables.values()))
    task = roles.task if known is None else known.task
    separator = roles.label_sep or (known.label_sep if known is not None else None) or None
    if len(names) == 1:
        separator = _prepare_labels(tables, defining, names[0], task, separator)
    elif task in ("auto", "classification") and (classes := _single_ones(tables, names, task)):
        return ImageTargets("classification", names, classes)
    if known is None:
        target = infer_target(defining, names, task, separator)
    else:
        target = Target(names, known.task, known.class_names, separator or "")
    values = {split: target.read(table) for split, table in tables.items()}
    return ImageTargets(target.task, target.class_names, values, label_sep=target.label_sep)


def _prepare_labels(
    tables: dict[str, Table], defining: Table, name: str, task: str, separator: str | None
) -> str | None:
    """Convert cells with lists of labels, or return the text between several labels; None for single values."""
    cells = defining.columns[name]
    if separator or task in ("classification", "regression") or getattr(cells, "separator", ""):
        return separator
    texts = factorize_texts(cells)[1]
    if _are_lists(texts):
        for table in tables.values():
            codes, texts = factorize_texts(table.column(name))
            lists: list[list[str] | None] = [_parsed(text) or [text] for text in texts]
            table.columns[name] = TextColumn.of_lists([*lists, None][code] for code in codes)
        return None
    separator = _separator(texts, task) or None
    if task == "multilabel" and separator is None:
        raise InputError(
            f"cannot find several labels in the target {printable(name)!r} of {printable(defining.name)}: expected "
            f"--label-sep, or one of {' '.join(_SEPARATORS)} between them, got single values. Use --label-sep, or drop "
            "--task."
        )
    return separator


def _single_ones(tables: dict[str, Table], names: tuple[str, ...], task: str) -> dict[str, np.ndarray] | None:
    """Return the classes of columns of 0 and 1 of which each row has exactly one 1, or None."""
    classes = {}
    for split, table in tables.items():
        columns = [read_numbers(table.column(name), "number", name) for name in names]
        values = np.stack([numbers for numbers, _ in columns], axis=1)
        if any(problems for _, problems in columns) or not np.isin(values, (0, 1)).all():
            return None
        if (values.sum(axis=1) != 1).any():
            if task == "classification":
                raise InputError(
                    f"cannot classify the images of {printable(table.name)}: expected a single 1 in the columns "
                    f"{join_quoted(list(names))} of each row, got rows with none or several. Use --task multilabel."
                )
            return None
        classes[split] = values.argmax(axis=1).astype(np.int64)
    return classes


def _are_lists(texts: Sequence[str]) -> bool:
    """Return True if a cell is a list of labels, and all that begin like one are."""
    lists = [text for text in texts if text.startswith(("[", "{"))]
    return bool(lists) and all(_parsed(text) is not None for text in lists)


def _parsed(text: str) -> list[str] | None:
    """Return the labels in a list of JSON or Python, or in the choices of Label Studio; None for other text."""
    if not text.startswith(("[", "{")) or len(text) > _LONGEST_LIST:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None
    if isinstance(value, dict):
        value = value.get("choices")
    if not isinstance(value, list) or not all(isinstance(label, str | int | float) for label in value):
        return None
    return [str(label).strip() for label in value]


def _separator(texts: Sequence[str], task: str) -> str:
    """Return the text between several labels in a column, or "" if its cells are single labels."""
    if task not in ("auto", "multilabel"):
        return ""
    for separator in (*_SEPARATORS, *([" "] if task == "multilabel" else [])):
        cells = [[part.strip() for part in text.split(separator)] for text in texts]
        several = [parts for parts in cells if len(parts) > 1]
        if not several:
            continue
        if task == "multilabel":
            return separator
        labels = Counter(chain.from_iterable(cells))
        alone = {parts[0] for parts in cells if len(parts) == 1}
        # Labels repeat in several cells, and some are alone in a cell; the parts of "Paris, France" are not.
        is_repeated = len(labels) < len(cells) and all(labels[part] > 1 for part in chain.from_iterable(several))
        if alone and is_repeated and "" not in labels:
            return separator
    return ""
