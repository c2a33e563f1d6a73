"""Metrics of weighted samples: scikit-learn's sample_weight, and repeated samples for whole weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as oracle
from tiny_training import Feed, plain_network

from skipway.data.sample_weights import effective_count
from skipway.training.label_metrics import best_thresholds, constant_map, exceeds_chance, map_interval
from skipway.training.losses import Classification, MultiLabel, Regression
from skipway.training.metrics import compute_metrics, per_class, per_label, per_target, score
from skipway.training.scores import ClassScores, LabelScores, RegressionScores

RANDOM = np.random.default_rng(0)
COUNT = 40
WEIGHTS = RANDOM.choice([0.0, 0.5, 1.0, 3.0], COUNT)
TIMES = np.arange(COUNT) % 4  # whole weights


def class_scores():
    raw = RANDOM.random((COUNT, 7)).round(1) + 0.05
    shares = raw / raw.sum(1, keepdims=True)
    return ClassScores(np.arange(COUNT), -np.log(shares[:, 0]), shares, RANDOM.integers(7, size=COUNT))


def label_scores():
    probabilities = RANDOM.random((COUNT, 4)).round(2)
    labels = RANDOM.random((COUNT, 4)) < 0.4
    return LabelScores(np.arange(COUNT), RANDOM.random(COUNT), probabilities, labels, np.full(4, 0.4))


def number_scores():
    targets = RANDOM.normal(size=(COUNT, 2))
    predicted = targets + 0.3 * RANDOM.normal(size=(COUNT, 2))
    return RegressionScores(np.arange(COUNT), RANDOM.random(COUNT), predicted, targets)


def repeated(scores):
    """The scores of samples that occur as often as their weight."""
    names = [name for name in vars(scores) if name not in ("weights", "thresholds")]
    return replace(scores, **{name: np.repeat(getattr(scores, name), TIMES, axis=0) for name in names})


@pytest.mark.parametrize("make", [class_scores, label_scores, number_scores])
def test_whole_weights_are_repetitions(make):
    scores = make()
    weighted, found = replace(scores, weights=TIMES.astype(float)), compute_metrics(repeated(scores))
    assert compute_metrics(weighted) == pytest.approx(found, abs=1e-12)
    assert weighted.primary_metric == pytest.approx(repeated(scores).primary_metric)
    ones = replace(scores, weights=np.ones(COUNT))
    assert compute_metrics(ones) == pytest.approx(compute_metrics(scores), abs=1e-12)


def test_metrics_of_classes_are_those_of_scikit_learn():
    scores = replace(class_scores(), weights=WEIGHTS)
    found, y, predicted, options = compute_metrics(scores), scores.labels, scores.predicted, {"sample_weight": WEIGHTS}
    assert found["accuracy"] == pytest.approx(oracle.accuracy_score(y, predicted, **options))
    assert found["loss"] == pytest.approx(np.average(scores.losses, weights=WEIGHTS))
    assert found["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(y, predicted, **options))
    present = np.unique(y[WEIGHTS > 0])
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(y, predicted, labels=present, average="macro", **options))
    areas = [oracle.roc_auc_score(y == k, scores.probabilities[:, k], **options) for k in present]
    assert found["auroc"] == pytest.approx(np.mean(areas))
    rows = per_class(scores, tuple("abcdefg"))
    precision, recall, f1, _ = oracle.precision_recall_fscore_support(
        y, predicted, labels=range(7), zero_division=0, **options
    )
    for k, row in enumerate(rows):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision[k], recall[k], f1[k]))
        assert row["count"] == (y == k).sum()
    assert scores.confusion().sum() == COUNT and scores.confusion().dtype.kind == "i"


def test_metrics_of_labels_are_those_of_scikit_learn():
    scores = replace(label_scores(), weights=WEIGHTS)
    found, y, predicted, options = compute_metrics(scores), scores.labels, scores.predicted, {"sample_weight": WEIGHTS}
    assert found["map"] == pytest.approx(oracle.average_precision_score(y, scores.probabilities, **options))
    assert found["macro_f1"] == pytest.approx(oracle.f1_score(y, predicted, average="macro", **options))
    assert found["micro_f1"] == pytest.approx(oracle.f1_score(y, predicted, average="micro", **options))
    assert found["subset_accuracy"] == pytest.approx(oracle.accuracy_score(y, predicted, **options))
    assert found["auroc"] == pytest.approx(oracle.roc_auc_score(y, scores.probabilities, **options))
    for k, row in enumerate(per_label(scores, tuple("abcd"))):
        assert row["precision"] == pytest.approx(oracle.precision_score(y[:, k], predicted[:, k], **options))


def test_metrics_of_numbers_are_those_of_scikit_learn():
    scores = replace(number_scores(), weights=WEIGHTS)
    found, options = compute_metrics(scores), {"sample_weight": WEIGHTS}
    assert found["r2"] == pytest.approx(oracle.r2_score(scores.targets, scores.predicted, **options))
    assert found["mae"] == pytest.approx(oracle.mean_absolute_error(scores.targets, scores.predicted, **options))
    assert found["rmse"] == pytest.approx(oracle.root_mean_squared_error(scores.targets, scores.predicted, **options))
    rows = per_target(scores, ("x", "y"))
    assert rows[1]["mean"] == pytest.approx(np.average(scores.targets[:, 1], weights=WEIGHTS))


def test_thresholds_and_intervals_of_labels_are_weighted():
    scores, twice = label_scores(), repeated(label_scores())
    scores = replace(twice, weights=None)
    labels, probabilities = scores.labels, scores.probabilities
    ones = np.ones(len(labels))
    assert best_thresholds(labels, probabilities, ones).tolist() == best_thresholds(labels, probabilities).tolist()
    assert map_interval(labels, probabilities, ones) == pytest.approx(map_interval(labels, probabilities))
    assert constant_map(labels, ones) == pytest.approx(constant_map(labels))
    assert exceeds_chance(labels, labels.astype(float), 0.9, ones)
    weights = np.where(np.arange(len(labels)) < 3, 100.0, 1.0)
    low, high = map_interval(labels, probabilities, weights)
    narrow = map_interval(labels, probabilities)
    assert high - low > narrow[1] - narrow[0] and effective_count(weights, len(labels)) < 5


@pytest.mark.parametrize("task", [Classification(), MultiLabel(), Regression((0.0,) * 3, (1.0,) * 3)])
def test_sums_on_training_batches_are_weighted(task):
    outputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8) % 3 if isinstance(task, Classification) else (torch.arange(24).view(8, 3) % 5 < 2).float()
    times = torch.tensor([0, 1, 2, 3] * 2)
    many = (outputs.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    weights = times.float()
    assert task.metric_sum(outputs, y, weights) == pytest.approx(task.metric_sum(*many), rel=1e-5)
    assert float(task.loss(outputs, y, weights)) * 8 == pytest.approx(float(task.loss(*many)) * 12, rel=1e-5)
    assert float(task.loss(outputs, y, torch.ones(8))) == pytest.approx(float(task.loss(outputs, y)), rel=1e-6)


def test_scores_carry_the_weights_of_their_samples():
    weights = torch.linspace(0, 2, 26)
    feed, net, cpu = Feed(weights=weights), plain_network(), torch.device("cpu")
    scores = score(net, feed, Classification(), autocast=torch.no_grad, device=cpu)
    assert np.allclose(scores.weights, weights.double().numpy()[scores.ids])
    expected = np.average(scores.predicted == scores.labels, weights=scores.weights)
    assert scores.accuracy == pytest.approx(expected)
    assert score(net, Feed(), Classification(), autocast=torch.no_grad, device=cpu).weights is None
