"""CSV tables of a run folder, for spreadsheets and other programs.

Text cells that a spreadsheet would run as a formula are prefixed with an apostrophe.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.images.decoded_images import DecodedImages
from skipway.errors import printable
from skipway.training.metrics import ClassScores, per_class
from skipway.utils.atomic_files import write_file

__all__ = [
    "RESULTS",
    "escape_cell",
    "prediction_cells",
    "write_class_tables",
    "write_image_splits",
    "write_results",
    "write_table",
]

RESULTS = (
    "epoch",
    "seconds",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "samples_per_second",
    "data_time_fraction",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file atomically, with escaped text cells.

    Args:
        path: file to write.
        columns: header.
        rows: cells of each row.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([escape_cell(name) for name in columns])
    writer.writerows([escape_cell(value) for value in row] for row in rows)
    write_file(path, text.getvalue().encode("utf-8"))


def escape_cell(value: Any) -> Any:
    """Escape a text cell: one line, and no formula for a spreadsheet; other values are unchanged."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_results(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write results.csv with one row per epoch.

    Args:
        folder: run folder.
        history: metrics of each epoch.
    """
    columns = tuple(history[0]) if history else RESULTS  # regression has val_r2 instead of val_accuracy
    write_table(folder / "results.csv", columns, ([row[name] for name in columns] for row in history))


def write_image_splits(folder: Path, images: DecodedImages) -> None:
    """Write splits.csv and skipped.csv of a run on images."""
    write_table(folder / "splits.csv", ("file", "class", "split", "sha256"), _split_rows(images))
    write_table(
        folder / "skipped.csv",
        ("file", "split", "class", "reason"),
        ((image.key, image.split, image.class_name, image.reason) for image in images.skipped),
    )


def _split_rows(images: DecodedImages) -> Iterator[tuple[str, str, str, str]]:
    for split, indices in images.splits.items():
        for i in indices:
            yield images.keys[i], images.target_text(i), split, images.digests[i]


def write_class_tables(
    folder: Path,
    keys: Sequence[str],
    names: tuple[str, ...],
    scores: ClassScores,
    *,
    split: str,
    key_column: str,
) -> None:
    """Write per_class.csv, confusion_matrix.csv and predictions.csv of an evaluated split.

    Args:
        folder: run folder.
        keys: names of all samples, indexed by id.
        names: class names.
        scores: predictions for the samples of the split.
        split: name of the split.
        key_column: header of the sample names, "file" or "row".
    """
    rows = per_class(scores, names)
    write_table(folder / "per_class.csv", tuple(rows[0]), (tuple(row.values()) for row in rows))
    matrix = scores.confusion()
    write_table(
        folder / "confusion_matrix.csv",
        ("true", *names),
        ((name, *matrix[i].tolist()) for i, name in enumerate(names)),
    )
    cells = prediction_cells(keys, names, scores)
    write_table(
        folder / "predictions.csv",
        (key_column, "split", "label", "predicted", "probability", "label_probability", "loss"),
        ((key, split, *rest, round(float(scores.losses[i]), 6)) for i, (key, *rest) in enumerate(cells)),
    )


def prediction_cells(
    keys: Sequence[str], names: tuple[str, ...], scores: ClassScores
) -> list[tuple[str, str, str, float, float]]:
    """Return (name, label, predicted class, its probability, probability of the label) of every evaluated sample.

    Args:
        keys: names of all samples, indexed by id.
        names: class names.
        scores: predictions for the samples.
    """
    samples = np.arange(len(scores.predicted))
    of_predicted = scores.probabilities[samples, scores.predicted]
    of_label = scores.probabilities[samples, scores.labels]
    return [
        (
            keys[scores.ids[i]],
            names[scores.labels[i]],
            names[scores.predicted[i]],
            round(float(of_predicted[i]), 6),
            round(float(of_label[i]), 6),
        )
        for i in samples
    ]
