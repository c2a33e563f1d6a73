"""The baseline of a table: gradient boosting of scikit-learn with default settings, on the same rows."""

import time
from typing import Any

import numpy as np

from skipway.data.tables.dataset import TableDataset
from skipway.runs.boosting import BOOSTING, Boosting, boosting_inputs, fit_boosting, unfit_reason
from skipway.training.metrics import LabelScores, RegressionScores, Scores, compute_metrics

__all__ = ["baseline"]

_METRICS = frozenset(("map", "macro_f1", "micro_f1", "r2", "mae", "rmse"))


def baseline(rows: TableDataset) -> dict[str, Any]:
    """Train gradient boosting, one model per label or number, and return its metrics.

    Args:
        rows: encoded rows with their splits.

    Returns:
        The name, the metrics of the val and the test split, and the seconds; a "reason" instead of metrics if there are
        too many classes, labels or numbers.
    """
    start = time.monotonic()
    if reason := unfit_reason(rows.spec):
        return {"name": BOOSTING, "reason": f"not trained: {reason}"}
    train = rows.splits["train"]
    weights = None if rows.weights is None else rows.weights[train]
    boosting = fit_boosting(rows.spec, rows.x[train], rows.y[train], weights)
    metrics: dict[str, Any] = {"name": BOOSTING}
    for split in [split for split in ("val", "test") if split in rows.splits]:
        values = _metrics(rows, rows.splits[split], boosting)
        metrics |= {f"{split}_{name}": value for name, value in values.items()}
    return {**metrics, "seconds": round(time.monotonic() - start, 2)}


def _metrics(rows: TableDataset, ids: np.ndarray, boosting: Boosting) -> dict[str, float]:
    """Return the metrics of boosting on the rows `ids`."""
    spec, y, losses, models = rows.spec, rows.y[ids], np.zeros(len(ids)), boosting.models
    x = boosting_inputs(spec, rows.x[ids])[0]
    weights = None if rows.weights is None else rows.weights[ids]
    if spec.task == "classification":
        return {"accuracy": float(np.average(models[0].predict(x) == y, weights=weights))}
    if spec.task == "multilabel":
        shares = np.stack([_probability(model, x) for model in models], axis=1)
        scores: Scores = LabelScores(ids, losses, shares, y > 0.5, np.full(len(models), 0.5), weights=weights)
    else:
        outputs = np.stack([model.predict(x) for model in models], axis=1).astype(np.float64)
        targets = spec.in_units(y.astype(np.float64))
        scores = RegressionScores(ids, losses, spec.in_units(outputs), targets, weights=weights)
    return {name: value for name, value in compute_metrics(scores).items() if name in _METRICS}


def _probability(model: Any, x: np.ndarray) -> np.ndarray:
    """Return the (N,) probabilities of a label."""
    return np.full(len(x), model) if isinstance(model, float) else model.predict_proba(x)[:, 1]
