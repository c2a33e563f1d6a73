"""The headline of a run with its uncertainty: intervals, the constant answer to compare with, the precision used."""

from collections.abc import Mapping
from typing import Any

from skipway.report.verdicts import majority
from skipway.runs.small_sets import FEW_IMAGES
from skipway.utils.uncertainty import exceeds_share, r2_interval, wilson_interval

__all__ = ["describe_precision", "describe_uncertainty", "offer_folds", "uncertainty_metrics"]

_FOLDS = 5  # of the cross-validation that is offered
_CERTAIN = 1000  # samples, from which on the interval of an accuracy is at most 3.1 points to each side


def uncertainty_metrics(metrics: Mapping[str, Any], metric: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json has of the uncertainty of the primary metric, for each evaluated split.

    Args:
        metrics: those of the splits.
        metric: "accuracy" or "r2".
        data: description of the data, with its counts.
    """
    values: dict[str, Any] = {}
    for split in [split for split in ("val", "test") if f"{split}_{metric}" in metrics]:
        value, count = metrics[f"{split}_{metric}"], data["counts"][split]
        if metric == "r2":
            interval = r2_interval(value, count)
            answer, share, exceeded = "the mean", 0.0, interval[0] > 0
        else:
            interval = wilson_interval(value, count)
            answer, share = majority(data["classes"], split)
            exceeded = exceeds_share(value, count, share)
        values[f"{split}_{metric}_interval"] = list(interval)
        values[f"{split}_constant_answer"] = {"answer": answer, metric: share, "exceeded": exceeded}
    return values


def describe_uncertainty(metrics: Mapping[str, Any], metric: str, split: str, count: int) -> str:
    """Return the interval of a split's metric in brackets, and whether a constant answer is as good.

    Nothing is returned for a large split whose metric is clearly above that of a constant answer.
    """
    low, high = metrics[f"{split}_{metric}_interval"]
    constant = metrics[f"{split}_constant_answer"]
    if count >= _CERTAIN and constant["exceeded"]:
        return ""
    form = ".1%" if metric == "accuracy" else ".3f"
    interval = f"95% interval {low:{form}} to {high:{form}}"
    if constant["exceeded"]:
        return f" ({interval})"
    answer = constant["answer"] if metric == "r2" else f"{constant['answer']!r}"
    return f" ({interval}; not distinguishable from always answering {answer}, which has {constant[metric]:{form}})"


def offer_folds(data: Mapping[str, Any], noun: str) -> str:
    """Return a line that offers cross-validation to a small set, or nothing.

    Args:
        data: description of the data, with its counts.
        noun: "images" or "rows".
    """
    val, total = data["counts"]["val"], data["counts"]["train"] + data["counts"]["val"]
    sizes = [counts.get("train", 0) + counts.get("val", 0) for counts in data.get("classes", {}).values()]
    folds = min([_FOLDS, total, *sizes])
    if total >= FEW_IMAGES or folds < 2:
        return ""
    return (
        f"\nthe validation result is of {val} {noun}: --folds {folds} evaluates all {total}, each by a model that was "
        "not trained on it"
    )


def describe_precision(precision: str, evaluated: str, *, views: bool) -> str:
    """Return how the last lines of a run were computed, if it differs from the lines of its epochs.

    Args:
        precision: that of the epoch lines.
        evaluated: that of the last lines.
        views: whether the last lines are of averaged views.
    """
    differences = [f"in {precision}"] * (precision != evaluated) + ["without averaged views"] * views
    return f"evaluated in {evaluated}, the epoch lines {' and '.join(differences)}\n" if differences else ""
