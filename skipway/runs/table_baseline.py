"""The baseline of a table: gradient boosting of scikit-learn with default settings, on the same rows."""

import time
from typing import Any

import numpy as np

from skipway.data.tables.dataset import TableDataset
from skipway.training.metrics import LabelScores, RegressionScores, Scores, compute_metrics

__all__ = ["BASELINE", "baseline"]

BASELINE = "gradient boosting"  # scikit-learn's histogram gradient boosting with default settings
_MAX_CATEGORIES = 255  # per column; the baseline treats a column with more as numeric
_METRICS = frozenset(("map", "macro_f1", "micro_f1", "r2", "mae", "rmse"))
_MAX_OUTPUTS = 20  # labels or numbers, each of which has a model of its own
_MAX_CLASSES = 100  # each of which has a tree of its own in each of up to 100 steps


def baseline(rows: TableDataset) -> dict[str, Any]:
    """Train gradient boosting, one model per label or number, and return its metrics.

    Args:
        rows: encoded rows with their splits.

    Returns:
        The name, the metrics of the val and the test split, and the seconds; a "reason" instead of metrics if there are
        too many classes, labels or numbers.
    """
    spec, start = rows.spec, time.monotonic()
    is_classified = spec.task == "classification"
    limit, things = (_MAX_CLASSES, "classes") if is_classified else (_MAX_OUTPUTS, "labels or numbers")
    if spec.num_outputs > limit:
        reason = f"not trained: expected at most {limit} {things}, got {spec.num_outputs:,}"
        return {"name": BASELINE, "reason": reason}
    x, categorical = _inputs(rows)
    train = rows.splits["train"]
    columns = [rows.y] if rows.y.ndim == 1 else list(rows.y.T)
    weights, is_class = None if rows.weights is None else rows.weights[train], bool(spec.class_names)
    models = [_fitted(x[train], y[train], categorical, is_class=is_class, weights=weights) for y in columns]
    metrics: dict[str, Any] = {"name": BASELINE}
    for split in [split for split in ("val", "test") if split in rows.splits]:
        ids = rows.splits[split]
        metrics |= {f"{split}_{name}": value for name, value in _metrics(rows, ids, models, x[ids]).items()}
    return {**metrics, "seconds": round(time.monotonic() - start, 2)}


def _metrics(rows: TableDataset, ids: np.ndarray, models: list[Any], x: np.ndarray) -> dict[str, float]:
    """Return the metrics of the models on the rows `ids`, whose inputs are x."""
    spec, y, losses = rows.spec, rows.y[ids], np.zeros(len(ids))
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


def _inputs(rows: TableDataset) -> tuple[np.ndarray, list[bool]]:
    """Return the inputs (N, F) with NaN for missing numbers, and a list that is True for categorical columns."""
    spec = rows.spec
    numbers, indicated = spec.num_numbers, len(spec.indicator_columns)
    x = np.concatenate([rows.x[:, :numbers], rows.x[:, numbers + indicated :]], axis=1)
    for _, places, indicator in spec.number_inputs():
        if indicator is not None:  # the baseline handles NaN itself
            x[rows.x[:, indicator] > 0, places] = np.nan
    few = [count <= _MAX_CATEGORIES for count in spec.categories]
    return x, [i >= numbers and few[i - numbers] for i in range(x.shape[1])]


def _fitted(
    x: np.ndarray, y: np.ndarray, categorical: list[bool], *, is_class: bool, weights: np.ndarray | None
) -> Any:
    """Return a model of one target; a label that is the same in all rows needs none, and is returned."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    if is_class and np.ptp(y) == 0:
        return float(y[0])
    estimator = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    model = estimator(categorical_features=categorical if any(categorical) else None, random_state=0)
    return model.fit(x, y, sample_weight=weights)


def _probability(model: Any, x: np.ndarray) -> np.ndarray:
    """Return the (N,) probabilities of a label."""
    return np.full(len(x), model) if isinstance(model, float) else model.predict_proba(x)[:, 1]
