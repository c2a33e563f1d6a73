"""Which epoch is the best: decided when it ends, from the epochs so far alone, so that a resumed run decides equally.

With many validation samples it is the highest metric, of equal ones the lowest loss. With few, one sample moves the
accuracy by more than training does, and the maximum of a noisy curve is luck. So the curve is smoothed first: an epoch
counts as the mean of itself and the two before, and accuracies that differ by at most one sample count as equal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["FEW_SAMPLES", "best_epoch", "is_best_so_far"]

FEW_SAMPLES = 200  # from here on the standard error of an accuracy of 90% is below 2 points
_WINDOW = 3  # epochs


def is_best_so_far(history: Sequence[Mapping[str, Any]], best: int, metric: str, count: int) -> bool:
    """Return whether the last row of `history` is a better choice than the epoch `best`.

    Args:
        history: a row per epoch, with epoch, val_loss and val_METRIC.
        best: number of the epoch that was the best before, from 1 on; 0 if there is none.
        metric: name of the metric that is the higher the better.
        count: validation samples.
    """
    if not best:
        return True
    window = _WINDOW if count < FEW_SAMPLES else 1
    if history[0].get("lr") == 0:  # a head that was fitted and not trained: no luck of one epoch among several
        return _improves(history, best - 1, metric, window)
    index, last = best - 1, len(history) - 1
    if index + 1 < min(window, len(history)):  # luck of a single epoch is no mean: the first ones never stay
        return True
    tolerance = 1 / count if metric == "accuracy" and window > 1 else 0.0
    curve = [_smooth(history, i, f"val_{metric}", window) for i in range(window - 1, len(history))]
    floor = max(curve) - tolerance - 1e-9 * (window > 1)  # a mean of three is exact up to rounding
    if curve[-1] < floor:
        return False
    held = curve[index - window + 1]
    return held < floor or _smooth(history, last, "val_loss", window) < _smooth(history, index, "val_loss", window)


def _improves(history: Sequence[Mapping[str, Any]], best: int, metric: str, window: int) -> bool:
    """Return whether the last row is better than row `best`, if the first row is that of a fitted head.

    That row counts as it is, and those of fine-tuning as the mean over up to `window` of them.
    """

    def quality(index: int) -> tuple[float, float]:
        size = min(window, max(index, 1))
        return _smooth(history, index, f"val_{metric}", size), -_smooth(history, index, "val_loss", size)

    return quality(len(history) - 1) > quality(best)


def best_epoch(history: Sequence[Mapping[str, Any]], metric: str, count: int) -> int:
    """Return the number of the epoch that a run with this history has kept, 0 if there is no epoch."""
    best = 0
    for end in range(1, len(history) + 1):
        best = end if is_best_so_far(history[:end], best, metric, count) else best
    return best


def _smooth(history: Sequence[Mapping[str, Any]], index: int, key: str, window: int) -> float:
    """Return the mean over the `window` rows that end with `index`."""
    return sum(float(row[key]) for row in history[index - window + 1 : index + 1]) / window
