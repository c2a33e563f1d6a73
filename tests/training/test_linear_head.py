import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from skipway.errors import NotFiniteError
from skipway.training.linear_head import PENALTIES, fit_linear_head, held_out_folds

pytestmark = pytest.mark.usefixtures("one_thread")


def features_of_classes(count, dim, classes, noise=3.0, seed=0, dtype=torch.float64):
    """Features (N, D) with unlike scales and offsets around the center of each class."""
    random = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, dim, generator=random, dtype=dtype)
    labels = torch.arange(count) % classes
    features = centers[labels] + noise * torch.randn(count, dim, generator=random, dtype=dtype)
    return features * torch.logspace(-2, 2, dim, dtype=dtype) + 5, labels


def standardized(features):
    return ((features - features.mean(0)) / features.std(0, correction=0)).numpy()


def shares(head, features):
    return torch.softmax(features @ head.weight.T + head.bias, 1).numpy()


def oracle(penalty, **options):
    return LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=20_000, **options)


@pytest.mark.parametrize("count, dim", [(90, 12), (24, 40)])
@pytest.mark.parametrize("penalty", [0.5, 30.0])
def test_weights_are_those_of_scikit_learn(count, dim, penalty):
    x, y = features_of_classes(count, dim, 3)
    head = fit_linear_head(x, y, 3, penalty=penalty)
    expected = oracle(penalty).fit(standardized(x), y)
    scale, mean = x.std(0, correction=0).numpy(), x.mean(0).numpy()
    assert head.weight.numpy() * scale == pytest.approx(expected.coef_, abs=1e-5)
    intercept = expected.intercept_ - expected.coef_ @ (mean / scale)
    assert head.bias.numpy() == pytest.approx(intercept - intercept.mean(), abs=1e-4)
    assert shares(head, x) == pytest.approx(expected.predict_proba(standardized(x)), abs=1e-6)
    assert head.penalty == penalty and np.isnan(head.score)


def test_float32_gives_the_same_shares():
    x, y = features_of_classes(120, 20, 4)
    head = fit_linear_head(x.float(), y, 4, penalty=3.0)
    assert head.weight.dtype == torch.float32
    expected = oracle(3.0).fit(standardized(x), y).predict_proba(standardized(x))
    assert shares(head, x.float()) == pytest.approx(expected, abs=1e-3)


def test_class_weights_are_those_of_scikit_learn():
    x, y = features_of_classes(90, 6, 3)
    keep = (y != 2) | (torch.arange(90) % 9 == 2)
    x, y = x[keep], y[keep]
    weights = [0.5, 1.0, 4.0]
    head = fit_linear_head(x, y, 3, class_weights=weights, penalty=2.0)
    expected = oracle(2.0, class_weight=dict(enumerate(weights))).fit(standardized(x), y)
    assert shares(head, x) == pytest.approx(expected.predict_proba(standardized(x)), abs=1e-6)


def test_the_penalty_is_the_one_with_the_least_loss_on_held_out_folds():
    x, y = features_of_classes(99, 30, 3, noise=4.0)
    head = fit_linear_head(x, y, 3)
    split = PredefinedSplit(held_out_folds(y, 0).numpy())
    held_out = {
        p: cross_val_predict(oracle(p), standardized(x), y, cv=split, method="predict_proba") for p in PENALTIES
    }
    losses = {p: log_loss(y, value) for p, value in held_out.items()}
    assert head.penalty == min(losses, key=losses.get)
    assert head.score == pytest.approx(accuracy_score(y, held_out[head.penalty].argmax(1)), abs=0.011)
    assert len(set(losses.values())) == len(losses)


def test_folds_hold_every_class_evenly_and_keep_groups_together():
    y = torch.tensor([0] * 20 + [1] * 10)
    fold = held_out_folds(y, seed=3)
    for index in range(5):
        assert torch.bincount(y[fold == index]).tolist() == [4, 2]
    groups = torch.arange(30).repeat(2)
    twice = held_out_folds(y.repeat(2), seed=3, groups=groups)
    assert twice[:30].equal(twice[30:])
    for index in range(5):
        assert torch.bincount(y.repeat(2)[twice == index]).tolist() == [8, 4]
    assert not held_out_folds(y, seed=4).equal(fold)


def test_sixteen_samples_of_two_classes_are_enough():
    x, y = features_of_classes(16, 200, 2, noise=0.5, dtype=torch.float32)
    head = fit_linear_head(x, y, 2)
    assert head.score == 1.0 and (shares(head, x).argmax(1) == y.numpy()).all()
    again = fit_linear_head(x, y, 2)
    assert head.weight.equal(again.weight) and head.bias.equal(again.bias)


def test_a_part_of_many_samples_chooses_the_penalty():
    x, y = features_of_classes(9_000, 8, 3, dtype=torch.float32)
    head = fit_linear_head(x, y, 3)
    assert (shares(head, x).argmax(1) == y.numpy()).mean() == pytest.approx(head.score, abs=0.03)


def test_constant_features_and_classes_without_samples_do_no_harm():
    x, y = features_of_classes(40, 5, 2, noise=0.3)
    x[:, 2] = 7.0
    head = fit_linear_head(x, y, 3)
    assert head.weight[:, 2].abs().max() < 1e-6
    assert (shares(head, x).argmax(1) == y.numpy()).all()
    same = fit_linear_head(torch.full((6, 4), 2.0), torch.tensor([0, 1, 0, 1, 0, 0]), 2, penalty=1.0)
    assert shares(same, torch.full((1, 4), 2.0))[0] == pytest.approx([2 / 3, 1 / 3], abs=1e-3)


def test_features_that_are_not_finite_are_refused():
    x, y = features_of_classes(10, 3, 2)
    x[4, 1] = float("nan")
    with pytest.raises(NotFiniteError, match="expected finite features, got NaN or infinity. Check the pretrained"):
        fit_linear_head(x, y, 2)


def several_labels(count=120, dim=15, labels=4, seed=1):
    x, _ = features_of_classes(count, dim, 3, seed=seed)
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(dim, labels, generator=random, dtype=x.dtype)
    noise = torch.randn(count, labels, generator=random, dtype=x.dtype)
    return x, (torch.from_numpy(standardized(x)) @ directions + 2 * noise > 1.0).double()


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5, 10.0)])
def test_several_labels_are_one_logistic_regression_each(weights):
    x, y = several_labels()
    head = fit_linear_head(x, y, 4, penalty=2.0, class_weights=weights)
    probabilities = torch.sigmoid(x @ head.weight.T + head.bias).numpy()
    for k in range(4):
        balance = None if weights is None else {0: 1.0, 1: weights[k]}
        expected = oracle(2.0, class_weight=balance).fit(standardized(x), y[:, k])
        assert probabilities[:, k] == pytest.approx(expected.predict_proba(standardized(x))[:, 1], abs=1e-5)


def test_the_penalty_of_labels_is_chosen_on_held_out_folds_and_labels_may_be_absent():
    x, y = several_labels()
    y[:, 3] = 0
    head = fit_linear_head(x, y, 4)
    assert head.penalty in PENALTIES and 0.3 < head.score <= 1
    assert head.weight.isfinite().all() and torch.sigmoid(x @ head.weight.T + head.bias)[:, 3].max() < 0.1
    again = fit_linear_head(x, y, 4)
    assert again.weight.equal(head.weight)


def test_sample_weights_equal_repeated_samples():
    x, y = features_of_classes(60, 6, 3)
    counts = torch.arange(60) % 3 + 1
    weighted = fit_linear_head(x, y, 3, penalty=2.0, sample_weights=counts.double())
    repeated = fit_linear_head(x.repeat_interleave(counts, 0), y.repeat_interleave(counts), 3, penalty=2.0)
    # The features are standardized with equal weights, so that the two penalties differ a little.
    assert shares(weighted, x) == pytest.approx(shares(repeated, x), abs=0.02)


@pytest.mark.parametrize("several", [False, True])
def test_whole_weights_are_repetitions(several):
    x, y = features_of_classes(60, 6, 3)
    counts = torch.arange(60) % 4
    labels = torch.stack([y == 0, y > 0, y == 2], 1).double() if several else y
    weighted = fit_linear_head(x, labels, 3, penalty=2.0, sample_weights=counts.double())
    repeated = fit_linear_head(x.repeat_interleave(counts, 0), labels.repeat_interleave(counts, 0), 3, penalty=2.0)
    assert torch.allclose(weighted.weight, repeated.weight, atol=1e-5)
    assert torch.allclose(weighted.bias, repeated.bias, atol=1e-4)
