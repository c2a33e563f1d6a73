"""Metrics of the pooled out-of-fold predictions of a cross-validation, from the rows of their tables.

Shapes: N samples, K classes or labels, T targets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.sample_weights import effective_count
from skipway.runs.class_tables import write_class_tables
from skipway.runs.headline import label_uncertainty, uncertainty_metrics
from skipway.runs.label_tables import write_label_tables
from skipway.runs.number_tables import write_number_tables
from skipway.training.metrics import compute_metrics
from skipway.training.scores import ClassScores, LabelScores, RegressionScores
from skipway.utils.natural_order import natural_key

__all__ = ["NUMERIC", "pool_metrics"]

NUMERIC = ("target", "predicted", "error", "loss", "weight", "probability", "label_probability")
_PROBABILITY = "probability_"


def pool_metrics(folder: Path, rows: Sequence[Mapping[str, Any]], metric: str, target: str) -> dict[str, Any]:
    """Compute the metrics of all held-out samples, and write their per_class.csv or per_target.csv.

    Args:
        folder: folder of the cross-validation.
        rows: rows of predictions.csv of all folds, with numbers as floats.
        metric: primary metric: "accuracy", "map" or "r2".
        target: name of the target of a regression with one target.

    Returns:
        Metrics by name, the interval of the primary one, and the constant prediction to compare with. Without a column
        of probabilities for each label there is no "map".
    """
    pool = {"accuracy": _pool_classes, "map": _pool_labels, "r2": _pool_numbers}[metric]
    return pool(folder, rows, target)


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], np.float64)


def _weights(rows: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    return _column(rows, "weight") if "weight" in rows[0] else None


def _pool_classes(folder: Path, rows: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any]:
    names = tuple(sorted({row[name] for row in rows for name in ("label", "predicted")}, key=natural_key))
    index = {name: k for k, name in enumerate(names)}
    labels, predicted = (np.array([index[row[name]] for row in rows]) for name in ("label", "predicted"))
    one_hot = np.eye(len(names))[predicted]  # tables have the probability of two classes only
    scores = ClassScores(np.arange(len(rows)), _column(rows, "loss"), one_hot, labels, weights=_weights(rows))
    write_class_tables(folder, names, scores)
    computed = compute_metrics(scores)
    values = {name: computed[name] for name in ("accuracy", "loss", "balanced_accuracy", "macro_f1")}
    sums = np.bincount(labels, scores.weights, minlength=len(names))
    classes = {name: {"train": count, "val": count} for name, count in zip(names, sums.tolist(), strict=True)}
    return {**values, **_uncertainty(values, "accuracy", scores.weights, len(rows), classes)}


def _pool_numbers(folder: Path, rows: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any]:
    suffixes = [name.removeprefix("target") for name in rows[0] if name == "target" or name.startswith("target_")]
    targets, predicted = (
        np.stack([_column(rows, f"{part}{suffix}") for suffix in suffixes], axis=1) for part in ("target", "predicted")
    )
    scores = RegressionScores(np.arange(len(rows)), np.zeros(len(rows)), predicted, targets, weights=_weights(rows))
    names = (target,) if suffixes == [""] else tuple(suffix.removeprefix("_") for suffix in suffixes)
    write_number_tables(folder, names, scores)
    values = {"r2": scores.r2, "rmse": scores.rmse, "mae": scores.mae}
    return {**values, **_uncertainty(values, "r2", scores.weights, len(rows), {})}


def _pool_labels(folder: Path, rows: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any]:
    names = tuple(name.removeprefix(_PROBABILITY) for name in rows[0] if name.startswith(_PROBABILITY))
    has_probabilities = bool(names)
    if not has_probabilities:
        texts = {label for row in rows for name in ("label", "predicted") for label in row[name].split("|")}
        names = tuple(sorted(texts - {""}))
    labels, predicted = (_present(rows, name, names) for name in ("label", "predicted"))
    ids, losses, weights = np.arange(len(rows)), _column(rows, "loss"), _weights(rows)
    # Each fold has its own thresholds, so the predicted labels are those of the tables.
    thresholded = LabelScores(ids, losses, predicted.astype(float), labels, np.full(len(names), 0.5), weights=weights)
    computed = compute_metrics(thresholded)
    values: dict[str, Any] = {name: computed[name] for name in ("loss", "macro_f1", "micro_f1", "subset_accuracy")}
    if not has_probabilities:
        return values
    shares = np.stack([_column(rows, _PROBABILITY + name) for name in names], axis=1)
    scores = LabelScores(ids, losses, shares, labels, np.full(len(names), 0.5), weights=weights)
    write_label_tables(folder, names, scores)
    uncertainty = {name.removeprefix("val_"): value for name, value in label_uncertainty(scores, "val").items()}
    return {"map": scores.map, **values, **uncertainty}


def _present(rows: Sequence[Mapping[str, Any]], column: str, names: Sequence[str]) -> np.ndarray:
    """Return (N, K) booleans of the labels in a column, which are joined by "|"."""
    parts = [set(row[column].removeprefix("'").split("|")) for row in rows]  # a CSV cell may have an apostrophe
    return np.array([[name in present or f"'{name}" in present for name in names] for present in parts], bool)


def _uncertainty(
    values: Mapping[str, float], metric: str, weights: np.ndarray | None, count: int, classes: Mapping[str, Any]
) -> dict[str, Any]:
    data = {"counts": {"val": effective_count(weights, count)}, "classes": classes}
    uncertainty = uncertainty_metrics({f"val_{metric}": values[metric]}, metric, data)
    return {name.removeprefix("val_"): value for name, value in uncertainty.items()}
