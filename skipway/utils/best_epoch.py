"""Selection of the best epoch, from the epochs so far only, so that a resumed run selects the same epoch.

With many validation samples, the best epoch has the highest metric; ties are resolved by the lowest loss. With few, a
single sample changes the accuracy by more than an epoch of training does. The curve is then smoothed: each epoch
is averaged with the two before it, and shares (accuracy, mAP) that differ by at most one sample are equal.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from skipway.utils.primary_metric import PRIMARY_METRICS

__all__ = ["FEW_SAMPLES", "best_epoch", "is_best_so_far"]

FEW_SAMPLES = 200  # at more samples, the standard error of an accuracy of 90% is below 2.2 percentage points
_WINDOW = 3  # epochs


def is_best_so_far(history: Sequence[Mapping[str, Any]], best: int, metric: str, count: int) -> bool:
    """Return True if the last epoch of `history` is better than epoch `best`.

    Args:
        history: a row per epoch with the keys val_loss and val_METRIC.
        best: number of the best epoch before, from 1; 0 if there is none.
        metric: name of a metric to maximize.
        count: number of validation samples.

    >>> rows = [{"val_accuracy": 0.8, "val_loss": 0.5}, {"val_accuracy": 0.9, "val_loss": 0.4}]
    >>> is_best_so_far(rows, best=1, metric="accuracy", count=1000)
    True
    """
    if not best:
        return True
    window = _WINDOW if count < FEW_SAMPLES else 1
    if history[0].get("lr") == 0:  # the first row is a fitted head, which is not a noisy sample of several epochs
        return _improves(history, best - 1, metric, window)
    index, last = best - 1, len(history) - 1
    if index + 1 < min(window, len(history)):  # the first epochs have no full window, so they are always replaced
        return True
    # One sample changes an accuracy by 1 / count, and a mean average precision by about as much.
    tolerance = 1 / count if PRIMARY_METRICS[metric].is_share and window > 1 else 0.0
    curve = [_smooth(history, i, f"val_{metric}", window) for i in range(window - 1, len(history))]
    floor = max(curve) - tolerance - 1e-9 * (window > 1)  # tolerates rounding in the mean
    if curve[-1] < floor:
        return False
    held = curve[index - window + 1]
    return held < floor or _smooth(history, last, "val_loss", window) < _smooth(history, index, "val_loss", window)


def _improves(history: Sequence[Mapping[str, Any]], best: int, metric: str, window: int) -> bool:
    """Return True if the last row is better than row `best`, for a history that starts with a fitted head.

    The row of the head is not smoothed. Rows of fine-tuning are averaged over up to `window` of them.
    """

    def quality(index: int) -> tuple[float, float]:
        size = min(window, max(index, 1))
        return _smooth(history, index, f"val_{metric}", size), -_smooth(history, index, "val_loss", size)

    return quality(len(history) - 1) > quality(best)


def best_epoch(history: Sequence[Mapping[str, Any]], metric: str, count: int) -> int:
    """Return the number of the best epoch of a history, or 0 if it is empty. See `is_best_so_far` for the arguments."""
    best = 0
    for end in range(1, len(history) + 1):
        best = end if is_best_so_far(history[:end], best, metric, count) else best
    return best


def _smooth(history: Sequence[Mapping[str, Any]], index: int, key: str, window: int) -> float:
    """Compute the mean over the `window` rows up to `index`."""
    return sum(float(row[key]) for row in history[index - window + 1 : index + 1]) / window
