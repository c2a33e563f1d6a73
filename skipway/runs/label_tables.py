"""CSV tables of several labels per sample: per_class.csv with a row per label, and the columns of predictions.csv.

Shapes: N samples, K labels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.output_spec import join_labels
from skipway.runs.run_csv_tables import write_records
from skipway.training.metrics import per_label
from skipway.training.scores import LabelScores

__all__ = ["LABEL_COLUMNS", "label_cells", "label_probabilities", "write_label_tables"]

LABEL_COLUMNS = ("label", "predicted")
_MOST_COLUMNS = 100  # labels up to which each has a column of probabilities


def write_label_tables(folder: Path, names: tuple[str, ...], scores: LabelScores) -> None:
    """Write per_class.csv of an evaluated split, with a row per label; undefined values are empty cells.

    Args:
        folder: run folder.
        names: label names.
        scores: predictions for the samples of the split.
    """
    write_records(folder / "per_class.csv", per_label(scores, names))


def label_cells(names: Sequence[str], scores: LabelScores) -> list[tuple[Any, ...]]:
    """Return the cells of LABEL_COLUMNS: true and predicted labels of every sample, joined by "|"."""
    pairs = zip(scores.labels, scores.predicted, strict=True)
    return [(join_labels(names, labels), join_labels(names, predicted)) for labels, predicted in pairs]


def label_probabilities(names: Sequence[str], scores: LabelScores) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return columns and cells with the probabilities of the labels.

    Up to 100 labels have a column each. For more, two columns have the probabilities of the predicted and the true
    labels, joined by "|".
    """
    rounded = scores.probabilities.astype(np.float64).round(6)
    if len(names) <= _MOST_COLUMNS:
        return tuple(f"probability_{name}" for name in names), [tuple(row) for row in rounded.tolist()]
    cells = [
        (_join_numbers(row[predicted]), _join_numbers(row[labels]))
        for row, predicted, labels in zip(rounded, scores.predicted, scores.labels, strict=True)
    ]
    return ("probability", "label_probability"), cells


def _join_numbers(values: np.ndarray) -> str:
    return "|".join(f"{value:g}" for value in values)
