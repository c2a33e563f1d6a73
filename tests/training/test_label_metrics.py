"""Metrics of several labels per sample, against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from skipway.training.label_metrics import (
    RARE,
    average_precisions,
    best_thresholds,
    constant_map,
    exceeds_chance,
    map_interval,
    ranking_precision,
)
from skipway.training.losses import MultiLabel
from skipway.training.metrics import Averaged, compute_metrics, per_label, per_target
from skipway.training.scores import LabelScores, RegressionScores


@pytest.fixture(scope="module")
def sample():
    """Labels (200, 5), the last one absent, and probabilities with ties."""
    random = np.random.default_rng(0)
    labels = random.random((200, 5)) < (0.5, 0.3, 0.1, 0.02, 0.0)
    probabilities = np.clip(0.3 * labels + 0.8 * random.random((200, 5)), 0, 1).round(2).astype(np.float32)
    return labels, probabilities


def scores_of(labels, probabilities, thresholds=0.5):
    thresholds = np.broadcast_to(np.array(thresholds, float), labels.shape[1:])
    return LabelScores(np.arange(len(labels)), np.zeros(len(labels)), probabilities, labels, thresholds)


@pytest.mark.parametrize("weighted", [False, True])
def test_average_precisions_are_those_of_scikit_learn(sample, weighted):
    labels, probabilities = sample
    weights = np.random.default_rng(1).integers(0, 3, len(labels)).astype(float) if weighted else None
    values = average_precisions(labels, probabilities, weights)
    for k in range(4):
        expected = average_precision_score(labels[:, k], probabilities[:, k], sample_weight=weights)
        assert values[k] == pytest.approx(expected)
    assert np.isnan(values[4])


def test_weights_of_several_resamples_are_computed_at_once(sample):
    weights = np.random.default_rng(1).integers(0, 3, (200, 7)).astype(float)
    together = average_precisions(*sample, weights)
    single = np.stack([average_precisions(*sample, column) for column in weights.T], axis=1)
    assert together == pytest.approx(single, nan_ok=True)


def test_metrics_at_the_thresholds_are_those_of_scikit_learn(sample):
    labels, probabilities = sample
    scores = scores_of(labels, probabilities, (0.4, 0.5, 0.6, 0.7, 0.8))
    predicted, present = scores.predicted, range(4)
    metrics = compute_metrics(scores)
    assert metrics["map"] == pytest.approx(
        np.mean([average_precision_score(labels[:, k], probabilities[:, k]) for k in present])
    )
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels[:, :4], predicted[:, :4], average="macro"))
    assert metrics["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert metrics["subset_accuracy"] == accuracy_score(labels, predicted)
    rows = per_label(scores, ("a", "b", "c", "d", "e"))
    for key, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = function(labels, predicted, average=None, zero_division=0)
        assert [row[key] for row in rows] == pytest.approx(expected.tolist())
    assert [row["auroc"] for row in rows[:4]] == pytest.approx(
        [roc_auc_score(labels[:, k], probabilities[:, k]) for k in present]
    )
    assert rows[4]["auroc"] is rows[4]["average_precision"] is None and rows[4]["threshold"] == 0.8


def test_ranking_precision_is_that_of_scikit_learn(sample):
    labels, probabilities = sample
    values = ranking_precision(torch.from_numpy(probabilities), torch.from_numpy(labels).float())
    expected = label_ranking_average_precision_score(labels, probabilities)
    assert float(values.mean()) == pytest.approx(expected)
    assert (values[~torch.from_numpy(labels).any(1)] == 1).all()


def test_thresholds_of_frequent_labels_maximize_f1_and_rare_ones_lean_on_all_labels():
    random = np.random.default_rng(0)
    labels = np.zeros((4000, 3), bool)
    labels[:2000, 0], labels[:2, 1] = True, True
    probabilities = random.beta(2, 6, labels.shape) * 0.9 + 0.08 * labels
    probabilities[:2, 1] = 0.99
    chosen = best_thresholds(labels, probabilities)
    grid = np.linspace(0, 1, 400)
    best = max(f1_score(labels[:, 0], probabilities[:, 0] >= t) for t in grid)
    assert f1_score(labels[:, 0], probabilities[:, 0] >= chosen[0]) > best - 0.01
    own, common = best_thresholds(labels[:, 1:2], probabilities[:, 1:2])[0], chosen[2]
    assert common < chosen[1] < own  # two positive samples weigh 2 to 3
    logits = np.log(np.array([own, common, chosen[1]]) / (1 - np.array([own, common, chosen[1]])))
    assert logits[2] == pytest.approx((2 * logits[0] + RARE * logits[1]) / (2 + RARE), abs=1e-3)


def test_thresholds_without_any_positive_sample_are_a_half():
    assert best_thresholds(np.zeros((4, 2), bool), np.full((4, 2), 0.2)).tolist() == [0.5, 0.5]


def test_the_interval_holds_the_value_and_shrinks_with_the_samples(sample):
    labels, probabilities = sample
    low, high = map_interval(labels, probabilities)
    value = compute_metrics(scores_of(labels, probabilities))["map"]
    assert low < value < high and (low, high) == map_interval(labels, probabilities)
    frequent = [map_interval(labels[:n, :2], probabilities[:n, :2]) for n in (50, 200)]
    assert frequent[1][1] - frequent[1][0] < 0.7 * (frequent[0][1] - frequent[0][0])


def test_a_perfect_ranking_of_few_samples_is_no_certainty():
    labels = np.array([[True, False], [False, True], [True, True], [False, False]])
    low, high = map_interval(labels, labels.astype(float))
    assert low < 0.6 and high == pytest.approx(1)
    assert not exceeds_chance(labels, labels.astype(float), low=0.9)
    many = np.tile(labels, (10, 1))
    assert exceeds_chance(many, many.astype(float), map_interval(many, many.astype(float))[0])


def test_constant_probabilities_have_the_mean_share_of_the_labels(sample):
    labels, _ = sample
    constant = np.tile(labels.mean(axis=0), (200, 1))
    assert constant_map(labels) == pytest.approx(compute_metrics(scores_of(labels, constant))["map"])
    assert not exceeds_chance(labels, constant, low=constant_map(labels) - 0.01)


def test_label_smoothing_and_positive_weights_of_the_loss():
    outputs, y = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    smoothed = MultiLabel(label_smoothing=0.2).loss(outputs, y)
    assert float(smoothed) == pytest.approx(float(MultiLabel().loss(outputs, torch.tensor([[0.9, 0.1]]))))
    plain = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0]))
    weighted = MultiLabel(positive_weights=(3.0, 5.0)).loss(outputs, y)
    assert float(weighted) == pytest.approx(float(3 * plain[0] + plain[1]) / 2)
    mixed = MultiLabel().loss(outputs, torch.tensor([[0.7, 0.3]]))  # mixup: between the losses of both labels
    parts = [MultiLabel().loss(outputs, torch.tensor([row])) for row in ([1.0, 1.0], [1.0, 0.0], [0.0, 0.0])]
    assert min(parts) < mixed < max(parts) and torch.isfinite(mixed)


def test_views_are_averaged_as_probabilities_or_numbers():
    network = torch.nn.Identity()
    x = torch.tensor([[1.0, -2.0]])
    labels = Averaged(network, lambda v: [v, 3 * v], "multilabel")(x)
    assert labels.sigmoid() == pytest.approx((x.sigmoid() + (3 * x).sigmoid()) / 2)
    assert Averaged(network, lambda v: [v, 3 * v], "regression")(x) == pytest.approx(2 * x)


def test_each_target_has_its_metrics():
    random = np.random.default_rng(0)
    targets = random.normal(size=(30, 2)) * (1, 100) + (5, 0)
    predicted = targets + random.normal(size=(30, 2)) * (0.1, 50) + (0.2, 0)
    scores = RegressionScores(np.arange(30), np.zeros(30), predicted, targets)
    rows = per_target(scores, ("x", "y"))
    assert [row["target"] for row in rows] == ["x", "y"]
    assert rows[0]["mean_error"] == pytest.approx(float((predicted - targets)[:, 0].mean()))
    metrics = compute_metrics(scores)
    for name in ("r2", "mae", "rmse"):
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in rows]))
