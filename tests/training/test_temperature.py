"""The temperature of class probabilities."""

import numpy as np
import pytest

from skipway.training.scores import ClassScores
from skipway.training.temperature import best_temperature


def scores_of(logits, labels, weights=None):
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    losses = -np.log(shares[np.arange(len(labels)), labels])
    return ClassScores(np.arange(len(labels)), losses, shares.astype(np.float32), labels, weights=weights)


def drawn(count, classes, seed=0):
    """Logits, and labels drawn from their probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(count, classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_logits_that_are_too_large_or_too_small_are_corrected(factor):
    logits, labels = drawn(4000, 3)
    assert best_temperature(scores_of(factor * logits, labels)) == pytest.approx(factor, rel=0.08)


def test_a_few_samples_that_are_all_right_do_not_make_the_model_certain():
    logits = np.array([[3.0, 0.0]] * 6)
    assert 0.6 < best_temperature(scores_of(logits, np.zeros(6, int))) < 1


def test_weights_count_as_repetitions():
    logits, labels = drawn(60, 2)
    counts = np.random.default_rng(1).integers(1, 4, 60)
    repeated = scores_of(np.repeat(logits, counts, axis=0), np.repeat(labels, counts))
    weighted = best_temperature(scores_of(logits, labels, counts.astype(float)))
    assert weighted == pytest.approx(best_temperature(repeated), rel=1e-4)
