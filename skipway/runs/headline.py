"""Uncertainty of the primary metric of a run: intervals, the constant prediction to compare with, the precision."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from skipway.report.verdicts import majority
from skipway.runs.small_sets import FEW_IMAGES
from skipway.training.label_metrics import constant_map, exceeds_chance, map_interval
from skipway.training.scores import LabelScores
from skipway.utils.primary_metric import PRIMARY_METRICS
from skipway.utils.uncertainty import exceeds_share, r2_interval, wilson_interval

__all__ = [
    "describe_precision",
    "describe_uncertainty",
    "format_metric",
    "label_uncertainty",
    "offer_folds",
    "uncertainty_metrics",
]

_FOLDS = 5  # of the cross-validation that is offered
_CERTAIN = 1000  # samples from which the 95% interval of an accuracy is at most +-3.1 points


def uncertainty_metrics(metrics: Mapping[str, Any], metric: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the interval and the constant prediction of each evaluated split, for metrics.json.

    Args:
        metrics: metrics by split, such as `val_accuracy`.
        metric: "accuracy" or "r2"; the interval of a "map" needs the predictions: see `label_uncertainty`.
        data: description of the data with its counts; those of weighted samples are their effective counts.
    """
    values: dict[str, Any] = {}
    weights = data.get("weights", {})
    counts, classes = weights.get("effective_counts", data["counts"]), weights.get("classes", data.get("classes"))
    for split in [split for split in ("val", "test") if metric != "map" and f"{split}_{metric}" in metrics]:
        value, count = metrics[f"{split}_{metric}"], counts[split]
        if metric == "r2":
            interval = r2_interval(value, count)
            answer, share, exceeded = "the mean", 0.0, interval[0] > 0
        else:
            interval = wilson_interval(value, count)
            answer, share = majority(classes, split)
            exceeded = exceeds_share(value, count, share)
        values[f"{split}_{metric}_interval"] = list(interval)
        values[f"{split}_constant_answer"] = {"answer": answer, metric: share, "exceeded": exceeded}
    return values


def label_uncertainty(scores: LabelScores, split: str) -> dict[str, Any]:
    """Return the interval of the mean average precision of a split, and the constant prediction, for metrics.json."""
    labels, probabilities, weights = scores.labels, scores.probabilities, scores.weights
    interval = map_interval(labels, probabilities, weights)
    exceeded = exceeds_chance(labels, probabilities, interval[0], weights)
    constant = {"answer": "the frequency of each label", "map": constant_map(labels, weights), "exceeded": exceeded}
    return {f"{split}_map_interval": list(interval), f"{split}_constant_answer": constant}


def describe_uncertainty(metrics: Mapping[str, Any], metric: str, split: str, count: int) -> str:
    """Return the interval of a split's metric in brackets, with a remark if a constant prediction is as good.

    The text is empty for a large split whose metric is clearly above that of a constant prediction.

    Args:
        metrics: metrics with the values of `uncertainty_metrics`.
        metric: "accuracy", "map" or "r2".
        split: "val" or "test".
        count: samples of the split.
    """
    low, high = metrics[f"{split}_{metric}_interval"]
    constant = metrics[f"{split}_constant_answer"]
    if count >= _CERTAIN and constant["exceeded"]:
        return ""
    text = partial(PRIMARY_METRICS[metric].text, digits=1)
    interval = f"95% interval {text(low)} to {text(high)}"
    if constant["exceeded"]:
        return f" ({interval})"
    answer = f"{constant['answer']!r}" if metric == "accuracy" else constant["answer"]
    return f" ({interval}; not clearly better than always predicting {answer}: {text(constant[metric])})"


def format_metric(value: float, metric: str) -> str:
    """Format an accuracy or a mean average precision in percent, and R2 with four decimals.

    >>> format_metric(0.98886, "accuracy"), format_metric(0.5, "r2")
    ('98.89%', '0.5000')
    """
    return PRIMARY_METRICS[metric].text(value, 2)


def offer_folds(data: Mapping[str, Any], noun: str) -> str:
    """Return a hint at cross-validation for a small dataset, or an empty text.

    Args:
        data: description of the data with its counts.
        noun: "images" or "rows".
    """
    val, total = data["counts"]["val"], data["counts"]["train"] + data["counts"]["val"]
    sizes = [counts.get("train", 0) + counts.get("val", 0) for counts in data.get("classes", {}).values()]
    folds = min([_FOLDS, total, *sizes])
    if total >= FEW_IMAGES or folds < 2:
        return ""
    return f"hint: only {val} validation {noun}; --folds {folds} cross-validates on all {total}"


def describe_precision(precision: str, evaluated: str, *, views: int, epoch: str) -> str:
    """Return a note if the final metrics were computed otherwise than those of the epoch table, or an empty text.

    Args:
        precision: precision of the epoch table.
        evaluated: precision of the final metrics.
        views: views of each sample that the final metrics average over.
        epoch: evaluated epoch, "best" or "last".
    """
    differs, is_averaged = precision != evaluated, views > 1
    final = [f"in {evaluated}"] * differs + [f"by the mean over {views} views of each image"] * is_averaged
    table = [f"in {precision}"] * differs + ["by one view"] * is_averaged
    if not final:
        return ""
    return (
        f"note: the final metrics evaluate the {epoch} epoch {' '.join(final)}; the epoch table is {' '.join(table)}, "
        "so its values can differ slightly"
    )
