"""Confidence intervals of metrics on few samples, and the noise of curves.

Sources: Wilson, Probable inference, the law of succession, and statistical inference, 1927 (intervals of proportions);
Fisher, On the probable error of a coefficient of correlation, 1921 (intervals of correlations); Newcombe, Interval
estimation for the difference between independent proportions, 1998 (differences from both intervals).
"""

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["Z95", "difference_floor", "exceeds_share", "jitter", "r2_interval", "share_noise", "wilson_interval"]

Z95 = 1.959964  # half width of a 95% interval in standard deviations
_TAIL = 0.025  # probability on each side of a 95% interval
_EXACT = 1000  # largest number of samples for which binomial coefficients fit into a float
_MAD_TO_SIGMA = 1.4826  # standard deviation over median absolute deviation, for a normal distribution


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Compute the 95% Wilson interval of a proportion.

    Args:
        share: observed proportion in [0, 1].
        count: number of samples.

    >>> [round(bound, 4) for bound in wilson_interval(0.9, 100)]
    [0.8256, 0.9448]
    """
    center = (share + Z95 * Z95 / (2 * count)) / (1 + Z95 * Z95 / count)
    half = Z95 / (1 + Z95 * Z95 / count) * math.sqrt(share * (1 - share) / count + Z95 * Z95 / (4 * count * count))
    return max(0.0, center - half), min(1.0, center + half)


def exceeds_share(accuracy: float, count: int, share: float) -> bool:
    """Return True if an accuracy is significantly higher than that of a constant prediction.

    The share must be below the 95% Wilson interval. On up to 1,000 samples, the exact binomial probability of this
    accuracy must also be below 2.5%. The interval alone is too optimistic: for 4 of 4 correct it starts at 51%, but
    the probability by chance is 1 in 16.

    Args:
        accuracy: observed accuracy in [0, 1].
        count: number of samples.
        share: accuracy of the constant prediction, such as the share of the majority class.

    >>> exceeds_share(1.0, 4, 0.5), exceeds_share(1.0, 6, 0.5)
    (False, True)
    """
    if wilson_interval(accuracy, count)[0] <= share:
        return False
    right = range(round(accuracy * count), count + 1) if count <= _EXACT else range(0)
    return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in right) < _TAIL


def r2_interval(r2: float, count: int) -> tuple[float, float]:
    """Compute the 95% interval of a coefficient of determination (R2), within [-1, 1].

    It follows from the interval of the correlation between targets and predictions, whose square is R2 if they are
    calibrated. A negative bound means that the correlation may be zero or negative. With fewer than 5 samples, the
    interval is (-1, 1).

    Args:
        r2: observed value.
        count: number of samples.

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
    """Compute the lower bound of the 95% interval of `larger` - `smaller`.

    Args:
        larger: first value.
        low: lower bound of the first value.
        smaller: second value.
        high: upper bound of the second value.

    >>> round(difference_floor(0.9, low=0.86, smaller=0.8, high=0.83), 3)
    0.05
    """
    return larger - smaller - math.hypot(larger - low, high - smaller)


def share_noise(share: float, count: int) -> float:
    """Compute the standard error of a proportion, with a success and a failure added so that it is never 0.

    >>> round(share_noise(0.9, 100), 4)
    0.031
    """
    smoothed = (share * count + 1) / (count + 2)
    return math.sqrt(smoothed * (1 - smoothed) / count)


def jitter(values: Sequence[float]) -> float:
    """Estimate the standard deviation of a curve around its trend; 0 for fewer than 4 points.

    The estimate is the median of the absolute second differences. A linear trend cancels in them, and the median is
    robust to a few jumps.

    >>> jitter([1.0, 2.0, 3.0, 4.0, 5.0])
    0.0
    """
    if len(values) < 4:
        return 0.0
    bends = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    return _MAD_TO_SIGMA * median(bends) / math.sqrt(6)
