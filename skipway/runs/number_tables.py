"""CSV tables of a regression: per_target.csv, and the columns of predictions.csv.

Shapes: N samples, T targets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skipway.report.regression_plot import plot_predictions
from skipway.runs.run_csv_tables import write_records
from skipway.training.metrics import per_target
from skipway.training.scores import RegressionScores
from skipway.utils.atomic_files import make_folder

__all__ = ["number_cells", "number_columns", "write_number_tables"]

_PARTS = ("target", "predicted", "error")


def write_number_tables(folder: Path, names: tuple[str, ...], scores: RegressionScores) -> None:
    """Write per_target.csv of an evaluated split, and a plot of predicted over true numbers.

    Args:
        folder: run folder.
        names: names of the targets.
        scores: predictions for the samples of the split.
    """
    write_records(folder / "per_target.csv", per_target(scores, names))
    make_folder(folder / "plots")
    plot_predictions(scores.targets, scores.predicted, names, folder / "plots" / "predicted.png")


def number_columns(names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns target, predicted and error; of several targets, each with the name of the target behind it.

    >>> number_columns(["x", "y"])
    ('target_x', 'predicted_x', 'error_x', 'target_y', 'predicted_y', 'error_y')
    """
    if len(names) == 1:
        return _PARTS
    return tuple(f"{part}_{name}" for name in names for part in _PARTS)


def number_cells(scores: RegressionScores) -> list[tuple[Any, ...]]:
    """Return the cells of `number_columns` of every sample, in the units of the targets."""
    rows = []
    for targets, predicted in zip(scores.targets, scores.predicted, strict=True):
        cells: list[float] = []
        for target, value in zip(targets, predicted, strict=True):
            cells += [_seven_digits(target), _seven_digits(value), _seven_digits(value - target)]
        rows.append(tuple(cells))
    return rows


def _seven_digits(value: Any) -> float:
    """Round a number to the seven significant digits of float32."""
    return float(f"{float(value):.7g}")
