"""Gradient boosting of scikit-learn with default settings, on encoded rows of a table.

Shapes: N rows, F inputs of a network, J columns of boosting, K outputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.data.tables.table_spec import TableSpec
from skipway.models.tree_ensemble import Trees
from skipway.weights.boosted_trees import TreeInputs, convert_trees

__all__ = ["BOOSTING", "Boosting", "boosting_inputs", "fit_boosting", "unfit_reason"]

BOOSTING = "gradient boosting"  # scikit-learn's histogram gradient boosting with default settings
_MAX_CATEGORIES = 255  # per column; boosting treats a column with more as numeric
_MAX_OUTPUTS = 20  # labels or numbers, each of which has a model of its own
_MAX_CLASSES = 100  # each of which has a tree of its own in each of up to 100 steps
_COMPARED = 512  # rows on which converted trees are compared with scikit-learn
_HALF_A_ROW = 0.5  # pseudo-count of a class or a label that the rows lack, or all have


@dataclass(frozen=True)
class Boosting:
    """Fitted models, one for all classes, or one per label or number.

    Attributes:
        spec: encoders of the columns.
        models: the models; a label that is the same in all rows, or a single class, has that value instead.
        shares: (K,) share of the rows with each class or label, between 0 and 1; empty for numbers.
        x: (N, F) encoded training rows.
    """

    spec: TableSpec
    models: list[Any]
    shares: np.ndarray
    x: np.ndarray

    def raw_outputs(self, x: np.ndarray) -> np.ndarray:
        """Return logits or standardized numbers (N, K) of encoded rows (N, F), as scikit-learn computes them."""
        inputs, bias = boosting_inputs(self.spec, x)[0], self._bias()
        outputs = np.tile(bias, (len(x), 1))
        for model, factors in self._fitted():
            is_number = self.spec.task == "regression"
            raw = model.predict(inputs) if is_number else model.decision_function(inputs)
            outputs += raw.reshape(len(x), -1) @ factors
        return outputs

    def trees(self) -> Trees:
        """Return the models as one module, from encoded rows (N, F) to their raw outputs (N, K)."""
        spec, x = self.spec, self.x[:: -(-len(self.x) // _COMPARED)]
        numbers = spec.num_numbers + len(spec.indicator_columns)
        indicator = np.full(numbers, -1)
        for _, of_column, place in spec.number_inputs():
            if place is not None:
                indicator[of_column] = place
        categories = np.arange(numbers, numbers + len(spec.categories))
        places = np.concatenate([np.arange(spec.num_numbers), categories])
        inputs = TreeInputs(places, indicator, x.shape[1], spec.categories)
        return convert_trees(self._fitted(), self._bias(), inputs, x, self.raw_outputs(x))

    def _fitted(self) -> list[tuple[Any, np.ndarray]]:
        """Return the fitted models, each with the factors of its raw outputs in the K outputs."""
        identity, pairs = np.eye(self.spec.num_outputs), []
        for i, model in enumerate(self.models):
            if not hasattr(model, "predict"):
                continue
            if self.spec.task != "classification":
                pairs.append((model, identity[i : i + 1]))
            elif len(model.classes_) == 2:  # one raw output, the difference of two logits
                first, second = identity[model.classes_.astype(int)]
                pairs.append((model, (second - first)[None] / 2))
            else:
                pairs.append((model, identity[model.classes_.astype(int)]))
        return pairs

    def _bias(self) -> np.ndarray:
        """Return the outputs (K,) that no model computes: of constant labels, and of classes without rows."""
        spec, bias = self.spec, np.zeros(self.spec.num_outputs)
        if spec.task == "regression":
            return bias
        logs = np.log(self.shares)
        if spec.task == "multilabel":
            is_constant = np.array([not hasattr(model, "predict") for model in self.models])
            return np.where(is_constant, logs - np.log1p(-self.shares), 0.0)
        model = self.models[0]
        present = model.classes_.astype(int) if hasattr(model, "predict") else np.array([int(model)])
        # The raw outputs of the present classes start at their logarithms minus the mean of these.
        return np.where(np.isin(np.arange(len(bias)), present), 0.0, logs - logs[present].mean())


def unfit_reason(spec: TableSpec) -> str:
    """Return what boosting cannot fit, as "expected at most ..., got ...", or an empty text."""
    is_classified = spec.task == "classification"
    limit, things = (_MAX_CLASSES, "classes") if is_classified else (_MAX_OUTPUTS, "labels or numbers")
    return f"expected at most {limit} {things}, got {spec.num_outputs:,}" if spec.num_outputs > limit else ""


def boosting_inputs(spec: TableSpec, x: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """Return the columns (N, J) of boosting, and a list that is True for columns of categories.

    They are the inputs without the indicators of missing numbers, which are NaN instead.

    Args:
        spec: encoders of the columns.
        x: (N, F) encoded rows.
    """
    numbers, indicated = spec.num_numbers, len(spec.indicator_columns)
    columns = np.concatenate([x[:, :numbers], x[:, numbers + indicated :]], axis=1)
    for _, places, indicator in spec.number_inputs():
        if indicator is not None:
            columns[x[:, indicator] > 0, places] = np.nan
    few = [count <= _MAX_CATEGORIES for count in spec.categories]
    return columns, [i >= numbers and few[i - numbers] for i in range(columns.shape[1])]


def fit_boosting(
    spec: TableSpec,
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray | None = None,
    label_weights: tuple[float, ...] | None = None,
) -> Boosting:
    """Train gradient boosting, one model per label or number. The result is deterministic.

    Args:
        spec: encoders of the columns.
        x: (N, F) encoded rows.
        y: classes (N,), or labels or standardized numbers (N, K).
        weights: (N,) weights of the rows, or None.
        label_weights: (K,) factors of the weights of rows with each label, or None.
    """
    columns, categorical = boosting_inputs(spec, x)
    targets = [y] if y.ndim == 1 else list(y.T)
    is_class, is_classified = bool(spec.class_names), spec.task == "classification"
    models = []
    for i, target in enumerate(targets):
        factors = weights
        if label_weights is not None:
            of_rows = (
                np.asarray(label_weights)[target] if is_classified else np.where(target > 0.5, label_weights[i], 1)
            )
            factors = of_rows if weights is None else weights * of_rows
        models.append(_fitted(columns, target, categorical, is_class=is_class, weights=factors))
    shares = np.zeros(0)
    if is_class:
        counts = np.bincount(y, minlength=spec.num_outputs) if is_classified else (y > 0.5).sum(axis=0)
        shares = np.clip(counts, _HALF_A_ROW, len(y) - _HALF_A_ROW) / len(y)
    return Boosting(spec, models, shares, x)


def _fitted(
    x: np.ndarray, y: np.ndarray, categorical: list[bool], *, is_class: bool, weights: np.ndarray | None
) -> Any:
    """Return a model of one target; a class or label that is the same in all rows needs none, and is returned."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    if is_class and np.ptp(y) == 0:
        return float(y[0])
    estimator = HistGradientBoostingClassifier if is_class else HistGradientBoostingRegressor
    model = estimator(categorical_features=categorical if any(categorical) else None, random_state=0)
    return model.fit(x, y, sample_weight=weights)
