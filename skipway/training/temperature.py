"""Temperature of class probabilities: one number that divides the logits, fitted to samples that trained nothing.

It leaves the order of the classes, and so every accuracy, as it is.
Sources: temperature scaling, Guo et al. 2017, arXiv:1706.04599.

Shapes: N samples, K classes.
"""

import math

import numpy as np

from skipway.training.scores import ClassScores

__all__ = ["best_temperature"]

_PRIOR_STD = 0.5  # of the logarithm: a few samples that are all right must not make the probabilities certain
_BOUND = math.log(20)  # of the logarithm
_STEPS = 40  # each narrows the interval of the logarithm by a third
_SMALLEST = 1e-38  # probability, of float32


def best_temperature(scores: ClassScores) -> float:
    """Return the temperature that minimizes the cross-entropy of `scores`, with a prior around 1.

    The logarithm of the temperature has a normal prior with standard deviation 0.5. It keeps the temperature near 1
    for a few samples, and has little influence for hundreds.

    >>> shares = np.array([[0.99, 0.01]] * 80 + [[0.01, 0.99]] * 20)
    >>> labels = np.zeros(100, int)
    >>> scores = ClassScores(np.arange(100), -np.log(shares[:, 0]), shares, labels)
    >>> round(best_temperature(scores), 1)
    2.9
    """
    logits = np.log(np.maximum(scores.probabilities.astype(np.float64), _SMALLEST))
    of_label = logits[np.arange(len(logits)), scores.labels]
    total = float(len(logits)) if scores.weights is None else float(scores.weights.sum())

    def cost(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        losses = np.logaddexp.reduce(logits * scale, axis=1) - of_label * scale
        return total * float(scores.mean(losses)) + (log_temperature / _PRIOR_STD) ** 2 / 2

    low, high = -_BOUND, _BOUND
    for _ in range(_STEPS):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, right) if cost(left) < cost(right) else (left, high)
    return float(f"{math.exp((low + high) / 2):.6g}")
