"""Uncertainty of metrics that are measured on few samples, and of curves that fluctuate.

Sources: Wilson, Probable inference, the law of succession, and statistical inference, 1927 (intervals of shares);
Fisher, On the probable error of a coefficient of correlation, 1921 (intervals of correlations); Newcombe, Interval
estimation for the difference between independent proportions, 1998 (differences from the intervals of both parts).
"""

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["Z95", "difference_floor", "exceeds_share", "jitter", "r2_interval", "share_noise", "wilson_interval"]

Z95 = 1.959964  # standard deviations that a 95% interval reaches to each side
_TAIL = 0.025  # on each side of a 95% interval
_EXACT = 1000  # samples, up to which binomial coefficients fit into floating-point numbers
_MAD_TO_SIGMA = 1.4826  # of a normal distribution: standard deviation over median absolute deviation


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share that was counted on `count` samples.

    >>> [round(bound, 4) for bound in wilson_interval(0.9, 100)]
    [0.8256, 0.9448]
    """
    center = (share + Z95 * Z95 / (2 * count)) / (1 + Z95 * Z95 / count)
    half = Z95 / (1 + Z95 * Z95 / count) * math.sqrt(share * (1 - share) / count + Z95 * Z95 / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def exceeds_share(accuracy: float, count: int, share: float) -> bool:
    """Return whether an accuracy on `count` samples is above that of a constant answer, which is right on `share`.

    The share has to be below the 95% interval and, on up to 1,000 samples, the exact binomial chance of an accuracy
    this high below 2.5%: Wilson's interval of 4 right of 4 begins at 51%, though a coin does that once in 16 times.

    >>> exceeds_share(1.0, 4, 0.5), exceeds_share(1.0, 6, 0.5)
    (False, True)
    """
    if wilson_interval(accuracy, count)[0] <= share:
        return False
    right = range(round(accuracy * count), count + 1) if count <= _EXACT else range(0)
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in right) < _TAIL


def r2_interval(r2: float, count: int) -> tuple[float, float]:
    """Return the 95% interval of a coefficient of determination on `count` samples, from -1 to 1.

    It is that of the correlation between targets and predictions, whose square R2 is if they are calibrated. A
    negative bound means that the correlation may be zero or negative. With less than 5 samples everything is possible.

    >>> [round(bound, 3) for bound in r2_interval(0.5, 88)]
    [0.341, 0.637]
    """
    if count < 5:
        return -1.0, 1.0
    correlation = min(math.sqrt(abs(r2)), 1 - 1e-12) * (1 if r2 > 0 else -1)
    half = Z95 / math.sqrt(count - 3)
    low, high = (math.tanh(math.atanh(correlation) + side * half) for side in (-1, 1))
    return low * abs(low), high * abs(high)


def difference_floor(larger: float, low: float, smaller: float, high: float) -> float:
    """Return the lower end of the 95% interval of `larger` - `smaller`.

    Args:
        larger: the first value.
        low: the lower end of its interval.
        smaller: the second value.
        high: the upper end of its interval.
    """
    return larger - smaller - math.hypot(larger - low, high - smaller)


def share_noise(share: float, count: int) -> float:
    """Return the standard error of a share on `count` samples; with one success and failure added, it is never 0."""
    smoothed = (share * count + 1) / (count + 2)
    return math.sqrt(smoothed * (1 - smoothed) / count)


def jitter(values: Sequence[float]) -> float:
    """Return the standard deviation of a curve around its own trend, 0 for less than 4 points.

    It is taken from second differences, in which a straight trend cancels, and by their median, so that a few jumps do
    not count.
    """
    if len(values) < 4:
        return 0.0
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return _MAD_TO_SIGMA * median(bends) / math.sqrt(6)
