from contextlib import nullcontext

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score
from torch import nn

from skipway.training.metrics import ClassScores, per_class, score
from skipway.training.task import Classification

LABELS = np.array([0, 0, 1, 1, 2, 2, 2, 0])


class Feed:
    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

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
def test_every_picture_is_scored_once_in_evaluation_mode_whatever_the_batch(size):
    network = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    x, y = torch.randn(8, 5), torch.from_numpy(LABELS)
    polled = []
    before = {k: v.clone() for k, v in network.state_dict().items()}
    found = score(
        network, Feed(x, y, size), Classification(), nullcontext, torch.device("cpu"), lambda: polled.append(1)
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
            nullcontext,
            torch.device("cpu"),
            stop,
        )
    assert network.training
