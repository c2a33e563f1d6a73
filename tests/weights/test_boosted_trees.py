"""Converted trees answer as those of scikit-learn: for numbers, holes, categories, unseen ones, and every task."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingRegressor

from skipway.data.tables.columns import Column
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import SkipwayError
from skipway.runs.boosting import fit_boosting
from skipway.weights.boosted_trees import TreeInputs, convert_trees

COLUMNS = (
    *(Column(f"n{i}", "number", indicator=i % 2 == 1) for i in range(4)),
    *(Column(f"c{count}", "category", categories=tuple(map(str, range(count)))) for count in (3, 40, 300)),
)
OUTPUTS = {
    "two": {"class_names": ("a", "b")},
    "three": {"class_names": ("a", "b", "c")},
    "lacking": {"class_names": ("a", "b", "c", "never")},
    "labels": {"task": "multilabel", "class_names": ("x", "y", "always")},
    "number": {"task": "regression", "target_names": ("t",), "target_mean": (0.0,), "target_std": (1.0,)},
    "numbers": {"task": "regression", "target_names": ("t", "u"), "target_mean": (0.0,) * 2, "target_std": (1.0,) * 2},
}


def encoded(spec, count, seed, most=None):
    """Encoded rows with holes; `most` is the number of indices of each category that occur."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=(count, spec.num_numbers)).round(2)
    holes = rng.random((count, len(spec.indicator_columns))) < 0.2
    categories = np.stack([rng.integers(0, min(most or n, n), count) for n in spec.categories], axis=1)
    for _, places, indicator in spec.number_inputs():
        if indicator is not None:
            numbers[holes[:, indicator - spec.num_numbers], places] = 0
    return np.concatenate([numbers, holes, categories], axis=1).astype(np.float32)


def targets(kind, x):
    score = x[:, 0] + x[:, 1] * x[:, 2] + 2 * x[:, 4] + np.sin(x[:, -2])
    if kind in ("two", "three", "lacking"):
        cuts = {"two": [0.5], "three": [0.0, 1.0], "lacking": [0.0, 1.0]}[kind]
        return np.digitize(score, cuts).astype(np.int64)
    if kind == "labels":
        return np.stack([score > 0, score > 1, score < 99], axis=1).astype(np.float32)
    columns = {"number": [score], "numbers": [score, 3 - 2 * score]}[kind]
    return np.stack(columns, axis=1).astype(np.float32)


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_equal_those_of_scikit_learn(kind):
    spec = TableSpec(COLUMNS, **{"target_names": ("t",), **OUTPUTS[kind]})
    x = encoded(spec, 600, seed=0, most=30)
    boosting = fit_boosting(spec, x, targets(kind, x))
    new = encoded(spec, 300, seed=1)  # most of the categories did not occur
    expected = boosting.raw_outputs(new)
    outputs = boosting.trees().double()(torch.from_numpy(new).double()).numpy()
    np.testing.assert_allclose(outputs, expected, atol=2e-6 * np.abs(expected).max())
    if kind == "labels":
        shares = boosting.models[0].predict_proba(boosted_inputs(spec, new))[:, 1]
        np.testing.assert_allclose(1 / (1 + np.exp(-outputs[:, 0])), shares, atol=1e-5)
        assert (outputs[:, 2] > np.log(1000)).all()
    elif spec.class_names:
        shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
        of_model = boosting.models[0].predict_proba(boosted_inputs(spec, new))
        present = of_model.shape[1]
        np.testing.assert_allclose(shares[:, :present] / shares[:, :present].sum(1, keepdims=True), of_model, atol=1e-5)
        assert shares[:, present:].sum() < 0.01 * len(new)


def boosted_inputs(spec, x):
    """The columns of boosting, with NaN for holes."""
    numbers, indicated = spec.num_numbers, len(spec.indicator_columns)
    columns = np.delete(x, np.arange(numbers, numbers + indicated), axis=1)
    for _, places, indicator in spec.number_inputs():
        if indicator is not None:
            columns[x[:, indicator] == 1, places] = np.nan
    return columns


def number_inputs(count=1):
    return TreeInputs(np.arange(count), np.full(count, -1), count, ())


def test_numbers_at_a_threshold_take_the_same_way():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 1)).astype(np.float32)
    model = HistGradientBoostingRegressor(max_iter=5).fit(x, np.sin(5 * x[:, 0]))
    cuts = np.concatenate([tree[0].nodes["num_threshold"] for tree in model._predictors]).astype(np.float32)
    near = np.concatenate([cuts, np.nextafter(cuts, np.float32(9)), np.nextafter(cuts, np.float32(-9))])[:, None]
    trees = convert_trees([(model, np.eye(1))], np.zeros(1), number_inputs(), near, model.predict(near)[:, None])
    outputs = trees.double()(torch.from_numpy(near).double()).numpy()[:, 0]
    np.testing.assert_allclose(outputs, model.predict(near), atol=1e-6)


def test_many_rows_are_computed_in_parts(monkeypatch):
    x = np.random.default_rng(0).normal(size=(300, 1)).astype(np.float32)
    model = HistGradientBoostingRegressor(max_iter=5).fit(x, np.sin(5 * x[:, 0]))
    trees = convert_trees([(model, np.eye(1))], np.zeros(1), number_inputs(), x, model.predict(x)[:, None])
    whole = trees(torch.from_numpy(x))
    monkeypatch.setattr("skipway.models.tree_ensemble._MOST_PLACES", 50)
    torch.testing.assert_close(trees(torch.from_numpy(x)), whole)


def test_a_changed_scikit_learn_is_noticed():
    x = np.random.default_rng(0).normal(size=(100, 1)).astype(np.float32)
    model = HistGradientBoostingRegressor(max_iter=2).fit(x, x[:, 0])
    with pytest.raises(SkipwayError, match="expected the outputs of scikit-learn, got a difference of"):
        convert_trees([(model, np.eye(1))], np.ones(1), number_inputs(), x, model.predict(x)[:, None])
