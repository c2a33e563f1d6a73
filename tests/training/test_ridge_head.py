"""The head of a regression: scikit-learn's ridge, and its leave-one-out errors."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from skipway.errors import NotFiniteError
from skipway.training.ridge_head import RIDGE_PENALTIES, fit_ridge_head

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(count=60, dim=8, noise=1.0, seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, dim)) * np.logspace(-2, 2, dim) + 3
    y = (x / np.logspace(-2, 2, dim)) @ random.normal(size=(dim, 2)) + noise * random.normal(size=(count, 2))
    return x, (y - y.mean(0)) / y.std(0)


def standardized(x, weights=None):
    mean = np.average(x, axis=0, weights=weights)
    return (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))


@pytest.mark.parametrize("count, dim", [(60, 8), (20, 30)])
@pytest.mark.parametrize("penalty", [0.5, 30.0])
def test_weights_are_those_of_scikit_learn(count, dim, penalty):
    x, y = numbers(count, dim)
    head = fit_ridge_head(torch.from_numpy(x), torch.from_numpy(y), penalty=penalty)
    expected = Ridge(alpha=penalty).fit(standardized(x), y)
    assert x @ head.weight.numpy().T + head.bias.numpy() == pytest.approx(expected.predict(standardized(x)), abs=1e-6)
    assert head.penalty == penalty and np.isnan(head.score)


def test_weighted_samples_are_those_of_scikit_learn():
    x, y = numbers()
    weights = np.random.default_rng(1).uniform(0.1, 3, len(x))
    head = fit_ridge_head(
        torch.from_numpy(x), torch.from_numpy(y), penalty=3.0, sample_weights=torch.from_numpy(weights)
    )
    scaled = standardized(x, weights)
    expected = Ridge(alpha=3.0).fit(scaled, y, sample_weight=weights)
    assert x @ head.weight.numpy().T + head.bias.numpy() == pytest.approx(expected.predict(scaled), abs=1e-6)


def test_whole_weights_of_a_ridge_are_repetitions():
    x, y = map(torch.from_numpy, numbers())
    counts = torch.arange(len(x)) % 4
    weighted = fit_ridge_head(x, y, penalty=3.0, sample_weights=counts.double())
    repeated = fit_ridge_head(x.repeat_interleave(counts, 0), y.repeat_interleave(counts, 0), penalty=3.0)
    assert torch.allclose(weighted.weight, repeated.weight, atol=1e-8)
    assert torch.allclose(weighted.bias, repeated.bias, atol=1e-8)


@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_the_penalty_has_the_smallest_leave_one_out_error(noise):
    x, y = numbers(count=40, dim=25, noise=noise)
    head = fit_ridge_head(torch.from_numpy(x).float(), torch.from_numpy(y).float())
    assert head.weight.dtype == torch.float32
    assert head.penalty == pytest.approx(RidgeCV(RIDGE_PENALTIES).fit(standardized(x), y).alpha_)
    held_out = cross_val_predict(Ridge(alpha=head.penalty), standardized(x), y, cv=LeaveOneOut())
    assert head.score == pytest.approx(r2_score(y, held_out), abs=1e-4)


def test_features_that_are_not_finite_are_refused():
    x, y = numbers()
    x[0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="cannot fit a linear head: expected finite features, got NaN"):
        fit_ridge_head(torch.from_numpy(x), torch.from_numpy(y))
