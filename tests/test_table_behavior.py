"""The default model for tables on problems with known answers: outliers, skew, oscillation, many classes, noise."""

import numpy as np
from sklearn.linear_model import RidgeCV

from skipway import SkipClassifier, SkipRegressor


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(1 - np.square(y - predicted).sum() / np.square(y - y.mean()).sum())


def test_an_oscillating_target():
    """R2 of a sine over five periods: 0.18 with inputs that are numbers alone."""
    x = np.random.default_rng(0).uniform(-5, 5, size=(700, 1))
    y = np.sin(3 * x[:, 0])
    model = SkipRegressor(random_state=0).fit(x[:500], y[:500])
    assert _r2(y[500:], model.predict(x[500:])) > 0.9


def test_one_outlier_in_the_target_does_not_hide_the_rest():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.1 * generator.normal(size=400)
    train = y[:300].copy()
    train[7] = 1e6
    model = SkipRegressor(random_state=0).fit(x[:300], train)
    assert _r2(y[300:], model.predict(x[300:])) > 0.85
    assert _r2(y[300:], RidgeCV().fit(x[:300], train).predict(x[300:])) < 0  # a squared error follows the outlier


def test_a_skewed_target():
    """Prices of a lognormal distribution: the median error is that of the noise, not of the largest prices."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1200, 4))
    y = np.exp(x @ [1.0, 0.7, -0.5, 0.0] + 0.1 * generator.normal(size=1200))
    predicted = SkipRegressor(random_state=0).fit(x[:1000], y[:1000]).predict(x[1000:])
    assert np.median(np.abs(predicted - y[1000:]) / y[1000:]) < 0.3


def test_a_hundred_classes_of_ten_rows():
    generator = np.random.default_rng(0)
    centers = 3 * generator.normal(size=(100, 8))
    y = np.repeat(np.arange(100), 15)
    x = centers[y] + generator.normal(size=(1500, 8))
    train = np.arange(1500) % 15 < 10
    model = SkipClassifier(random_state=0).fit(x[train], y[train])
    assert model.score(x[~train], y[~train]) > 0.85


def test_classes_at_random_are_not_predicted_with_confidence():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(400, 10)), generator.integers(0, 2, 400)
    shares = SkipClassifier(random_state=0).fit(x[:300], y[:300]).predict_proba(x[300:])
    loss = -np.log(shares[np.arange(100), y[300:]]).mean()
    assert loss < 0.85  # 0.69 for equal probabilities
