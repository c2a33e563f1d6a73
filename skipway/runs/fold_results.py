"""Results of cross-validation: the pooled metric of all held-out samples, and the metric of each fold.

Source: Stone, Cross-validatory choice and assessment of statistical predictions, 1974. The interval of the pooled
accuracy assumes independent predictions, which is only approximate: Bengio and Grandvalet, No unbiased estimator of the
variance of k-fold cross-validation, 2004.
"""

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from skipway.errors import InputError, printable
from skipway.report.label_figures import label_predictions
from skipway.report.run_reader import UNREADABLE, rows_of
from skipway.runs.finished_run import Run
from skipway.runs.headline import describe_uncertainty, format_metric, label_uncertainty, uncertainty_metrics
from skipway.runs.run_csv_tables import write_table
from skipway.training.scores import LabelScores, RegressionScores
from skipway.utils.atomic_files import write_json
from skipway.utils.format_text import count_of
from skipway.utils.primary_metric import PRIMARY_METRICS, primary_metric_in
from skipway.utils.run_schema import with_schema

__all__ = ["describe_fold", "describe_folds", "fold_row", "is_evaluated", "samples_of_run", "write_folds"]


def write_folds(folder: Path, runs: Sequence[Run], *, data: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """Write folds.json, folds.csv and predictions.csv; return the values of folds.json.

    Args:
        folder: folder of the cross-validation.
        runs: runs of the folds in order.
        data: name of the dataset.
        counts: samples in each split of the dataset.

    Returns:
        The values of folds.json.

    Raises:
        InputError: a fold's predictions.csv is damaged.
    """
    rows = _pooled_predictions(runs)
    write_table(folder / "predictions.csv", tuple(rows[0]), (tuple(row.values()) for row in rows))
    folds = [fold_row(run) for run in runs]
    write_table(folder / "folds.csv", tuple(folds[0]), (tuple(row.values()) for row in folds))
    metric = _metric_of(runs[0])
    values = [fold[metric] for fold in folds]
    facts = {
        "data": data,
        "counts": dict(counts),
        "count": len(rows),
        **_POOLED[metric](rows),
        "mean": mean(values),
        "standard_deviation": stdev(values),
        "seconds": round(sum(fold["seconds"] for fold in folds), 2),
        "folds": folds,
    }
    write_json(folder / "folds.json", with_schema(facts))
    return facts


def _metric_of(run: Run) -> str:
    return primary_metric_in(run.metrics).name


def fold_row(run: Run) -> dict[str, Any]:
    """Return the row of a fold in folds.csv."""
    metrics = run.metrics
    names = _FOLD_METRICS[_metric_of(run)]
    return {
        "fold": int(run.path.name.rpartition("-")[2]),
        "folder": run.path.name,
        "train": metrics["data"]["counts"]["train"],
        "val": metrics["data"]["counts"]["val"],
        **{name: metrics[f"val_{name}"] for name in names},
        "epochs": metrics["epochs"],
        "best_epoch": metrics["best_epoch"],
        "seconds": metrics["seconds"],
    }


def is_evaluated(run: Run) -> bool:
    """Return True if the metrics of a fold are complete and finite."""
    try:
        row = {**fold_row(run), "folder": 0}
        return isinstance(run.metrics["resolved"]["model"], str) and all(
            type(value) in (int, float) and math.isfinite(value) for value in row.values()
        )
    except (LookupError, TypeError):
        return False


def samples_of_run(folder: Path) -> dict[str, str]:
    """Return {name: fingerprint} of the samples in the splits.csv of a run; empty if the file is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {row[0]: row[-1] for row in csv.reader(file) if row}
    except UNREADABLE:
        return {}


def _pooled_predictions(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the rows of predictions.csv of all folds, each with its fold, sorted by name.

    Raises:
        InputError: a table is damaged, or a sample is missing.
    """
    rows: list[dict[str, Any]] = []
    for run in runs:
        number = int(run.path.name.rpartition("-")[2])
        try:
            table = rows_of(run.path / "predictions.csv")
            rows += [{**_with_numbers(row, _metric_of(run)), "fold": number} for row in table]
        except (*UNREADABLE, KeyError) as error:
            raise _damaged(run.path) from error
        if len(rows) != sum(r.metrics["data"]["counts"]["val"] for r in runs[:number]):
            raise _damaged(run.path)
    return sorted(rows, key=lambda row: _natural(next(iter(row.values()))))


def _with_numbers(row: Mapping[str, str], metric: str) -> dict[str, Any]:
    """Return a row of predictions.csv with its numeric columns as floats.

    Raises:
        KeyError: the row lacks a column.
        ValueError: a value is not a finite number.
    """
    names = ["probability", "label_probability", "loss"]
    if metric == "map":
        names = ["loss", *(name for name in row if name.startswith("probability_"))]
    elif metric == "r2":
        names = [name for name in row if name.partition("_")[0] in ("target", "predicted", "error")]
        if not names:
            raise KeyError("target")
    numbers = {name: float(row[name]) for name in names}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a number is not finite")
    texts = {} if metric == "r2" else {"label": row["label"], "predicted": row["predicted"]}
    return {**row, **numbers, **texts}


def _damaged(folder: Path) -> InputError:
    return InputError(
        f"cannot read {printable(folder / 'predictions.csv')}: expected one row for each validation sample. Remove "
        f"{printable(folder)}, and resume the cross-validation."
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key that orders numbers within names by value.

    >>> sorted(["b:10", "b:9", "a"], key=_natural)
    ['a', 'b:9', 'b:10']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _class_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return accuracy and loss of all samples, with the interval and the constant prediction to compare with."""
    accuracy = float(np.mean([row["predicted"] == row["label"] for row in rows]))
    counts = Counter(row["label"] for row in rows)
    classes = {name: {"train": n, "val": n} for name, n in sorted(counts.items())}
    values = {"accuracy": accuracy, "loss": float(np.mean([row["loss"] for row in rows]))}
    return {**values, **_uncertainty(values, "accuracy", {"counts": {"val": len(rows)}, "classes": classes})}


def _number_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return R2, RMSE and MAE of all rows, with the interval and the constant prediction to compare with."""
    targets, predicted = (
        np.array([[row[name] for name in row if name.partition("_")[0] == part] for row in rows])
        for part in ("target", "predicted")
    )
    scores = RegressionScores(np.arange(len(rows)), np.square(predicted - targets).mean(axis=1), predicted, targets)
    values = {"r2": scores.r2, "rmse": scores.rmse, "mae": scores.mae}
    return {**values, **_uncertainty(values, "r2", {"counts": {"val": len(rows)}})}


def _label_metrics(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return mAP and loss of all samples, with the interval and the constant prediction to compare with.

    Probabilities of different models are pooled. Each model's own thresholds decide the predicted labels.
    """
    losses = np.array([row["loss"] for row in rows])
    pooled = label_predictions(rows)
    if pooled is None:
        raise InputError(
            "cannot pool the folds: expected a column of probabilities per label, as for up to 100 labels, got none. "
            "The metrics of each fold are in its own folder."
        )
    scores = LabelScores(
        np.arange(len(rows)), losses, pooled.probabilities, pooled.labels, np.full(len(pooled.names), 0.5)
    )
    uncertainty = {name.removeprefix("val_"): value for name, value in label_uncertainty(scores, "val").items()}
    return {"map": scores.map, "loss": float(losses.mean()), **uncertainty}


_POOLED = {"accuracy": _class_metrics, "map": _label_metrics, "r2": _number_metrics}
_FOLD_METRICS = {"accuracy": ("accuracy", "loss"), "map": ("map", "loss", "macro_f1"), "r2": ("r2", "rmse", "mae")}


def _uncertainty(values: Mapping[str, float], metric: str, data: Mapping[str, Any]) -> dict[str, Any]:
    uncertainty = uncertainty_metrics({f"val_{metric}": values[metric]}, metric, data)
    return {name.removeprefix("val_"): value for name, value in uncertainty.items()}


def describe_fold(run: Run, noun: str) -> str:
    """Return the metric of a fold, its model and its best epoch in words.

    Args:
        run: run of the fold.
        noun: "images" or "rows".
    """
    row, metric = fold_row(run), _metric_of(run)
    model = run.metrics["resolved"]["model"]
    epochs = f"best epoch {row['best_epoch']} of {row['epochs']}"
    return f"{metric} {format_metric(row[metric], metric)} on {count_of(row['val'], noun[:-1])}, {model}, {epochs}"


def describe_folds(values: dict[str, Any], noun: str, folder: Path) -> str:
    """Return the last lines of a cross-validation: the pooled metric, its meaning, and the files.

    Args:
        values: values of folds.json.
        noun: "images" or "rows".
        folder: folder of the cross-validation.
    """
    metric = primary_metric_in(values, prefix="").name
    named = {f"val_{name}": value for name, value in values.items()}
    interval = printable(describe_uncertainty(named, metric, "val", values["count"]))
    rmse = f", RMSE {values['rmse']:.4g}" if metric == "r2" else ""
    folds, count = values["folds"], len(values["folds"])
    spread = values["standard_deviation"]
    deviation = f"{100 * spread:.2f} points" if PRIMARY_METRICS[metric].is_share else f"{spread:.4f}"
    lines = [
        f"cross-validation {metric}: {format_metric(values[metric], metric)} on {values['count']:,} {noun}{interval}"
        f"{rmse}; mean of folds {format_metric(values['mean'], metric)}, standard deviation {deviation}",
        f"note: each of the {count} models was trained on {(count - 1) / count:.0%} of the {noun} and evaluated on the "
        "rest. To train a model for use, run the same command without --folds.",
    ]
    if any(fold["epochs"] > 1 for fold in folds):
        lines.append(
            f"note: the best epoch of each model was selected on the {noun} that evaluate it, so the result is "
            "slightly optimistic."
        )
    return "\n".join([*lines, f"folds: {folder}/folds.csv\npredictions: {folder}/predictions.csv"])
