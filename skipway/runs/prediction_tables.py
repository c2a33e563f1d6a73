"""Tables of an evaluated split of images or rows: predictions.csv, and the metrics of each class, label or number."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipway.data.output_spec import OutputSpec
from skipway.runs.class_tables import CLASS_COLUMNS, class_cells, write_class_tables
from skipway.runs.label_tables import LABEL_COLUMNS, label_cells, label_probabilities, write_label_tables
from skipway.runs.number_tables import number_cells, number_columns, write_number_tables
from skipway.runs.run_csv_tables import write_table
from skipway.training.scores import ClassScores, LabelScores, RegressionScores, Scores

__all__ = ["prediction_cells", "write_evaluation_tables"]


def write_evaluation_tables(
    folder: Path, keys: Sequence[str], spec: OutputSpec, scores: Scores, *, split: str, key_column: str
) -> None:
    """Write predictions.csv and the tables of a split: per_class.csv, confusion_matrix.csv or per_target.csv.

    Args:
        folder: run folder.
        keys: names of all samples, indexed by id.
        spec: meaning of the outputs.
        scores: predictions for the samples of the split, with the weights of their table.
        split: name of the split.
        key_column: header of the sample names, "file" or "row".
    """
    columns, cells = prediction_cells(spec, scores)
    if isinstance(scores, ClassScores):
        write_class_tables(folder, spec.class_names, scores)
    elif isinstance(scores, LabelScores):
        write_label_tables(folder, spec.class_names, scores)
        more, values = label_probabilities(spec.class_names, scores)
        columns, cells = (*columns, *more), [(*row, *rest) for row, rest in zip(cells, values, strict=True)]
    else:
        assert isinstance(scores, RegressionScores)
        write_number_tables(folder, spec.target_names, scores)
    losses: list[tuple[float, ...]] = [()] * len(cells)
    if not isinstance(scores, RegressionScores):  # errors show what the loss of numbers would
        columns, losses = (*columns, "loss"), [(round(float(loss), 6),) for loss in scores.losses]
    if scores.weights is not None:
        columns = (*columns, "weight")
        losses = [(*loss, float(weight)) for loss, weight in zip(losses, scores.weights, strict=True)]
    write_table(
        folder / "predictions.csv",
        (key_column, "split", *columns),
        ((keys[i], split, *row, *loss) for i, row, loss in zip(scores.ids.tolist(), cells, losses, strict=True)),
    )


def prediction_cells(spec: OutputSpec, scores: Scores) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns that compare predictions with targets, and their cells for every sample.

    Args:
        spec: meaning of the outputs.
        scores: predictions for the samples.
    """
    if isinstance(scores, ClassScores):
        return CLASS_COLUMNS, class_cells(spec.class_names, scores)
    if isinstance(scores, LabelScores):
        return LABEL_COLUMNS, label_cells(spec.class_names, scores)
    assert isinstance(scores, RegressionScores)
    return number_columns(spec.target_names), number_cells(scores)
