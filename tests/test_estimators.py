import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import skipway as sw
from skipway.data.sources.read_table import frame_table
from skipway.errors import InputError
from skipway.estimators import SkipClassifier, SkipRegressor

QUICK = {"layers": 1, "width": 16, "epochs": 8, "lr": 0.01, "random_state": 0}


@parametrize_with_checks([SkipClassifier(**QUICK), SkipRegressor(**QUICK)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def mixed(count=120, seed=0):
    """Numbers with holes, categories with holes, booleans and dates; the target follows the first two."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=count),
            "kind": rng.choice(["ant", "bee", "cow"], count),
            "flag": rng.choice([True, False], count),
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 300, count), unit="D"),
        }
    )
    y = 2 * frame["size"] + (frame["kind"] == "bee") * 3
    frame.loc[rng.random(count) < 0.1, "size"] = np.nan
    frame.loc[rng.random(count) < 0.1, "kind"] = None
    return frame, y.to_numpy()


def test_a_frame_with_text_and_holes_is_understood_as_a_file_is():
    frame, y = mixed()
    model = SkipRegressor(epochs=40, lr=0.01, random_state=0).fit(frame, y)
    assert [c.kind for c in model.spec_.columns] == ["number", "category", "boolean", "date"]
    assert model.score(frame, y) > 0.8
    unseen = frame.assign(kind="zebra")
    assert np.isfinite(model.predict(unseen)).all()
    classes = np.where(y > 1, "much", "little")
    model = SkipClassifier(epochs=20, lr=0.01, random_state=0).fit(frame, classes)
    assert set(model.predict(frame)) <= {"much", "little"} and model.score(frame, classes) > 0.8


def test_figures_that_a_default_network_reaches():
    X, y = load_wine(return_X_y=True)
    assert cross_val_score(SkipClassifier(random_state=0), X, y, cv=2).mean() > 0.94
    X, y = load_diabetes(return_X_y=True)
    assert cross_val_score(SkipRegressor(random_state=0), X, y, cv=2).mean() > 0.4


def test_it_stands_in_pipelines_and_searches_and_is_cloned_and_pickled():
    X, y = load_wine(return_X_y=True)
    model = make_pipeline(StandardScaler(), SkipClassifier(**QUICK)).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))
    search = GridSearchCV(SkipClassifier(**QUICK), {"width": [4, 16]}, cv=2).fit(X, y)
    assert search.best_params_["width"] in (4, 16)
    assert clone(SkipRegressor(width=7)).get_params()["width"] == 7


def test_the_same_random_state_gives_the_same_network_and_the_caller_keeps_his():
    X, y = load_wine(return_X_y=True)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = (SkipClassifier(**QUICK | {"random_state": s}).fit(X, y).predict_proba(X) for s in (1, 1, 2))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert torch.get_rng_state().equal(before)


def test_the_network_is_saved_and_loaded_without_pickle(tmp_path):
    frame, y = mixed(60)
    model = SkipRegressor(**QUICK).fit(frame, y)
    model.network_.save(tmp_path / "m.safetensors")
    network = sw.load(tmp_path / "m.safetensors")
    assert np.allclose(network.predict(frame), model.predict(frame))


def test_what_cannot_be_learnt_is_refused():
    X, y = load_wine(return_X_y=True)
    with pytest.raises(InputError, match="expected at least two classes in y, got only one class, .*0"):
        SkipClassifier(**QUICK).fit(X, np.zeros(len(X)))
    with pytest.raises(InputError, match="requires y to be passed, but the target y is None"):
        SkipRegressor(**QUICK).fit(X, None)
    with pytest.raises(InputError, match="cannot fit a regressor: .* got numbers too large to average. Scale y first"):
        SkipRegressor(**QUICK).fit(X, np.where(np.arange(len(X)) % 2, 1.7e308, 1.6e308))
    with pytest.raises(InputError, match="cannot fit: expected a column of X with at least two values, got none"):
        SkipRegressor(**QUICK).fit(pd.DataFrame({"a": ["x"] * 30}), np.arange(30.0))


def labeled(count=200):
    """Two columns; a row has the first label if the first number is large, the second if any of both is."""
    X = np.random.default_rng(0).normal(size=(count, 2))
    return X, np.stack([X[:, 0] > 0.5, X.max(axis=1) > 0.5, np.zeros(count, bool)], axis=1)


@pytest.mark.parametrize("dtype", [bool, int, float])
def test_an_indicator_matrix_is_several_labels_per_row(dtype, tmp_path):
    X, y = labeled()
    model = SkipClassifier(**QUICK | {"epochs": 60}).fit(X, y.astype(dtype))
    shares, found = model.predict_proba(X), model.predict(X)
    assert shares.shape == found.shape == y.shape and found.dtype == dtype and model.classes_.tolist() == [0, 1, 2]
    assert np.array_equal(found, shares >= 0.5) and model.score(X, y) > 0.9  # all labels of a row are right
    rows = torch.from_numpy(model.spec_.encode_strict(frame_table(pd.DataFrame(X, columns=["x0", "x1"]))).x).double()
    with torch.no_grad():
        assert np.allclose(shares, 1 / (1 + np.exp(-model.network_(rows).numpy())))
    model.network_.save(tmp_path / "model.safetensors")
    network = sw.load(tmp_path / "model.safetensors")
    assert network.predict(pd.DataFrame(X[:5], columns=["x0", "x1"])) == [
        tuple(str(i) for i in np.argsort(-p) if p[i] >= 0.5) for p in shares[:5]
    ]


def test_columns_of_a_frame_name_the_labels_and_the_targets():
    X, y = labeled(40)
    labels = pd.DataFrame(y, columns=["large", "any", "none"])
    assert SkipClassifier(**QUICK).fit(X, labels).spec_.class_names == ("large", "any", "none")
    assert SkipClassifier(**QUICK).fit(X, labels.astype(int).to_numpy().tolist()).spec_.class_names == ("0", "1", "2")
    numbers = pd.DataFrame(X, columns=["left", "right"])
    assert SkipRegressor(**QUICK).fit(X, numbers).spec_.target_names == ("left", "right")
    with pytest.raises(InputError, match=r"expected classes \(N,\) or an indicator matrix .* got '3' in a matrix"):
        SkipClassifier(**QUICK).fit(X, y * 2 + 1)


def test_several_numbers_have_their_own_units():
    X = np.random.default_rng(0).normal(size=(200, 2))
    y = np.stack([1e6 + 1e3 * X[:, 0], 1e-3 * X[:, 1], np.full(200, 7.0)], axis=1)
    model = SkipRegressor(**QUICK | {"epochs": 100}).fit(X, y)
    found = model.predict(X)
    assert found.shape == y.shape and np.abs((found - y) / [1e3, 1e-3, 1.0]).mean(axis=0).max() < 0.2
    assert model.spec_.target_mean == pytest.approx(y.mean(axis=0)) and model.spec_.target_std[2] == 1
