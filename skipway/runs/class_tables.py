"""CSV tables of a classification: per_class.csv, confusion_matrix.csv, and the columns of predictions.csv."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.runs.run_csv_tables import write_records, write_table
from skipway.training.metrics import per_class
from skipway.training.scores import ClassScores

__all__ = ["CLASS_COLUMNS", "class_cells", "write_class_tables"]

CLASS_COLUMNS = ("label", "predicted", "probability", "label_probability")


def write_class_tables(folder: Path, names: tuple[str, ...], scores: ClassScores) -> None:
    """Write per_class.csv and confusion_matrix.csv of an evaluated split.

    Args:
        folder: run folder.
        names: class names.
        scores: predictions for the samples of the split.
    """
    write_records(folder / "per_class.csv", per_class(scores, names))
    matrix = scores.confusion()
    write_table(
        folder / "confusion_matrix.csv",
        ("true", *names),
        ((name, *matrix[i].tolist()) for i, name in enumerate(names)),
    )


def class_cells(names: Sequence[str], scores: ClassScores) -> list[tuple[Any, ...]]:
    """Return the cells of CLASS_COLUMNS: label, predicted class, and the probability of both, of every sample."""
    samples = np.arange(len(scores.predicted))
    of_predicted = scores.probabilities[samples, scores.predicted]
    of_label = scores.probabilities[samples, scores.labels]
    return [
        (
            names[scores.labels[i]],
            names[scores.predicted[i]],
            round(float(of_predicted[i]), 6),
            round(float(of_label[i]), 6),
        )
        for i in samples
    ]
