from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    mean_squared_error,
    precision_score,
    r2_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)
from torch import nn

from skipway.training.losses import Classification, Regression
from skipway.training.metrics import Averaged, ClassScores, compute_metrics, per_class, score

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0])


class Feed:
    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

    def weights(self, ids, epoch=0):
        return None

    def epoch(self, epoch=0, start=0):
        for i in range(0, len(self.x), self.size):
            yield self.x[i : i + self.size], self.y[i : i + self.size], np.arange(i, min(i + self.size, len(self.x)))


@pytest.fixture
def scores():
    raw = np.random.default_rng(0).random((8, 4))
    shares = (raw / raw.sum(1, keepdims=True)).astype(np.float32)
    return ClassScores(np.arange(8), -np.log(shares[np.arange(8), LABELS]), shares, LABELS)


def test_figures_equal_those_of_scikit_learn(scores):
    assert scores.accuracy == accuracy_score(LABELS, scores.predicted)
    matrix = confusion_matrix(LABELS, scores.predicted, labels=range(4))
    assert (scores.confusion() == matrix).all()
    assert scores.accuracy == np.trace(matrix) / matrix.sum()
    rows = per_class(scores, ("a", "b", "c", "d"))
    for key, figure in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        wanted = figure(LABELS, scores.predicted, labels=range(4), average=None, zero_division=0)
        assert [row[key] for row in rows] == wanted.tolist()
    assert [row["count"] for row in rows] == [3, 2, 3, 0]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_image_is_scored_once_in_evaluation_mode_whatever_the_batch(size):
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    x, y = torch.randn(8, 5), torch.from_numpy(LABELS)
    polled = []
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = score(
        network,
        Feed(x, y, size),
        Classification(),
        autocast=nullcontext,
        device=torch.device("cpu"),
        poll=lambda: polled.append(1),
    )
    assert network.training and len(polled) == -(-8 // size) and found.ids.tolist() == list(range(8))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    network.eval()
    with torch.no_grad():
        wanted = network(x)
    assert np.allclose(found.probabilities, wanted.softmax(1).numpy(), atol=1e-6)
    assert found.loss == pytest.approx(nn.functional.cross_entropy(wanted, y).item(), abs=1e-6)


def test_the_mode_comes_back_after_an_error():
    network = nn.Linear(5, 4)

    def stop():
        raise KeyError

    with pytest.raises(KeyError):
        score(
            network,
            Feed(torch.randn(8, 5), torch.zeros(8, dtype=torch.long), 2),
            Classification(),
            autocast=nullcontext,
            device=torch.device("cpu"),
            poll=stop,
        )
    assert network.training


def test_figures_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.ones(8), 300)
    shares[:, 7] = 0.0  # a class that nobody sees
    labels = np.where(generator.random(300) < 0.5, shares.argmax(1), generator.integers(0, 7, 300))
    scores = ClassScores(np.arange(300), -np.log(shares[np.arange(300), labels]), shares, labels)
    found = compute_metrics(scores)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, scores.predicted))
    assert found["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, shares, k=5, labels=range(8)))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, scores.predicted, average="macro"))
    wanted = [roc_auc_score(labels == c, shares[:, c]) for c in range(7)]
    assert found["auroc"] == pytest.approx(np.mean(wanted))
    assert found["accuracy"] == scores.accuracy and found["loss"] == scores.loss


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_ranking_is_that_of_scikit_learn_with_ties_too(decimals):
    generator = np.random.default_rng(decimals)
    shares = generator.dirichlet(np.ones(3), 200).round(decimals)
    labels = generator.integers(0, 3, 200)
    found = compute_metrics(ClassScores(np.arange(200), np.zeros(200), shares, labels))
    wanted = np.mean([roc_auc_score(labels == c, shares[:, c]) for c in range(3)])
    assert found["auroc"] == pytest.approx(wanted, abs=1e-12)


def test_calibration_is_nothing_for_honest_probabilities_and_large_for_boasts():
    generator = np.random.default_rng(1)
    sure = generator.uniform(0.5, 1, 20_000)
    shares, labels = np.stack([sure, 1 - sure], 1), (generator.random(20_000) > sure).astype(int)
    honest = compute_metrics(ClassScores(np.arange(20_000), np.zeros(20_000), shares, labels))
    boasts = np.stack([np.full(20_000, 0.99), np.full(20_000, 0.01)], 1)
    assert honest["ece"] < 0.015
    found = compute_metrics(ClassScores(np.arange(20_000), np.zeros(20_000), boasts, labels))
    assert found["ece"] == pytest.approx(0.99 - (labels == 0).mean())


def test_a_set_of_one_class_has_no_ranking():
    scores = ClassScores(np.arange(3), np.zeros(3), np.full((3, 2), 0.5), np.zeros(3, int))
    assert set(compute_metrics(scores)) == {"accuracy", "loss", "balanced_accuracy", "macro_f1", "ece"}


def test_several_views_are_the_mean_of_their_probabilities():
    network = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    averaged = Averaged(network, lambda v: [v, -v, 2 * v])
    wanted = torch.stack([network(v).softmax(1) for v in (x, -x, 2 * x)]).mean(0)
    assert torch.allclose(averaged(x).exp(), wanted, atol=1e-6)


def test_figures_of_numbers_are_scikit_learns():
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(50, 1)).astype(np.float32), rng.normal(size=(50, 1)).astype(np.float32)
    task = Regression(mean=(10.0,), std=(3.0,))
    scores = task.scores(torch.from_numpy(outputs), torch.from_numpy(y), np.arange(50))
    true, predicted = y[:, 0].astype(np.float64) * 3 + 10, outputs[:, 0].astype(np.float64) * 3 + 10
    found = compute_metrics(scores)
    assert found["r2"] == pytest.approx(r2_score(true, predicted)) == scores.primary_metric
    assert found["mae"] == pytest.approx(mean_absolute_error(true, predicted))
    assert found["rmse"] == pytest.approx(mean_squared_error(true, predicted) ** 0.5)
    assert found["loss"] == pytest.approx(float(task.loss(torch.from_numpy(outputs), torch.from_numpy(y))))
    same = task.scores(torch.ones(3, 1), torch.ones(3, 1), np.arange(3))
    assert same.r2 == 1 and task.scores(torch.zeros(3, 1), torch.ones(3, 1), np.arange(3)).r2 == 0
