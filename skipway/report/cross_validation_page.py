"""Write the report of a cross-validation: the pooled metric, the folds, and the parts of a run's report."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from skipway.report import svg_figures
from skipway.report.calibration import reliability
from skipway.report.headline import folds_lead
from skipway.report.html import PREDICTIONS, environment, target_columns
from skipway.report.palette import css_variables
from skipway.report.run_reader import Reader, mapping, number
from skipway.report.verdicts import percent
from skipway.utils.atomic_files import write_file
from skipway.utils.primary_metric import PRIMARY_METRICS

__all__ = ["write"]

_LINKS = ("folds.json", "folds.csv", "predictions.csv", "per_class.csv", "per_target.csv", "confusion_matrix.csv")
_SPLIT = "held-out"
_METRICS = {  # of the pooled predictions, with their labels
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "subset_accuracy": "Subset accuracy",
    "rmse": "Root mean squared error",
    "mae": "Mean absolute error",
    "loss": "Loss",
}
_SHARES = ("balanced_accuracy", "macro_f1", "micro_f1", "subset_accuracy")


def write(folder: Path) -> Path:
    """Write report.html of the folder of a cross-validation, and return its path."""
    reader = Reader(folder)
    values = reader.json("folds.json")
    metric = PRIMARY_METRICS[str(values["metric"])]
    predictions = reader.table("predictions.csv", limit=PREDICTIONS)
    names, matrix = _optional_matrix(reader, folder)
    noun, target = str(values.get("noun", "samples")), str(values.get("target", ""))
    per_class = reader.table("per_class.csv") if (folder / "per_class.csv").is_file() else []
    columns = target_columns(predictions, target) if metric.name == "r2" else []
    calibration = reliability(predictions) if metric.name == "accuracy" else None
    facts: dict[str, Any] = {
        "folder": folder.resolve().name,
        "data_name": str(values.get("data", "")),
        "noun": noun,
        "metric_title": metric.title,
        "kept_epoch": str(values.get("kept_epoch", "best")),
        "lead": folds_lead(values, metric),
        "value": metric.text(number(values.get(metric.name, values["mean"])), 2),
        "interval": _interval(values, metric.name),
        "spread": _spread(values, metric.name),
        "count": number(values["count"]),
        "metrics": [(label, _text(name, values[name])) for name, label in _METRICS.items() if name in values],
        "folds": [_fold_row(fold, metric.name) for fold in values["folds"]],
        "per_class": sorted(per_class, key=lambda row: np.nan_to_num(number(row.get("f1")))),
        "confusion": None if matrix is None else svg_figures.confusion_matrix(matrix, names, _SPLIT, noun),
        "reliability": None if calibration is None else svg_figures.reliability_diagram(calibration, _SPLIT, noun),
        "predicted": svg_figures.predicted_over_true(predictions, columns, _SPLIT, noun) if columns else None,
        "left_out": _left_out(mapping(values.get("counts")), noun),
        "links": [name for name in _LINKS if (folder / name).is_file()],
        "light": Markup(css_variables(dark=False)),
        "dark": Markup(css_variables(dark=True)),
    }
    page = environment().get_template("cross_validation.html").render(facts)
    path = folder / "report.html"
    write_file(path, page.encode("utf-8", "backslashreplace"))
    return path


def _optional_matrix(reader: Reader, folder: Path) -> tuple[list[str], np.ndarray | None]:
    if not (folder / "confusion_matrix.csv").is_file():
        return [], None
    return reader.matrix("confusion_matrix.csv")


def _interval(values: Mapping[str, Any], metric: str) -> str:
    """Return the 95% interval of the pooled metric, and the constant prediction if it is as good."""
    interval = values.get(f"{metric}_interval")
    if not isinstance(interval, list) or len(interval) != 2:
        return ""
    low, high = (PRIMARY_METRICS[metric].text(number(end), 1) for end in interval)
    constant = mapping(values.get("constant_answer"))
    weak = "" if constant.get("exceeded") else "; this is not clearly better than a constant prediction"
    return f"95% interval {low} to {high}{weak}"


def _spread(values: Mapping[str, Any], metric: str) -> str:
    primary, deviation = PRIMARY_METRICS[metric], number(values["standard_deviation"])
    text = f"{100 * deviation:.2f} points" if primary.is_share else f"{deviation:.4f}"
    return f"mean of folds {primary.text(number(values['mean']), 2)}, standard deviation {text}"


def _fold_row(fold: Mapping[str, Any], metric: str) -> dict[str, Any]:
    return {
        "fold": number(fold["fold"]),
        "folder": str(fold["folder"]),
        "train": number(fold["train"]),
        "val": number(fold["val"]),
        "value": PRIMARY_METRICS[metric].text(number(fold[metric]), 2),
        "best": number(fold["best_epoch"]),
        "epochs": number(fold["epochs"]),
        "seconds": number(fold["seconds"]),
    }


def _left_out(counts: Mapping[str, Any], noun: str) -> str:
    test = number(counts.get("test"))
    return f"The {test:,.0f} test {noun} are left out." if math.isfinite(test) and test else ""


def _text(name: str, value: Any) -> str:
    return percent(number(value)) if name in _SHARES else f"{number(value):,.4g}"
