"""Schedules: the learning rate as a share of its highest value, a function of the position in [0, 1] of a run.

They know no step and no model, so they draw, test and resume by themselves.
Sources: one-cycle, Smith and Topin 2017, arXiv:1708.07120; cosine, Loshchilov and Hutter 2016, arXiv:1608.03983.
"""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "constant", "cosine", "one_cycle"]

_WARM_UP = 0.25  # share of a run in which one-cycle rises
_START = 1 / 25
_END = 1e-4
_COSINE_WARM_UP = 0.05


def one_cycle(position: float) -> float:
    """Up from 1/25 to 1 over the first quarter, down to almost nothing over the rest, both along a cosine."""
    if position < _WARM_UP:
        return _between(_START, 1.0, position / _WARM_UP)
    return _between(1.0, _END, (position - _WARM_UP) / (1 - _WARM_UP))


def cosine(position: float) -> float:
    """A short straight warm-up, then down to zero along a cosine."""
    if position < _COSINE_WARM_UP:
        return max(position, 1e-3) / _COSINE_WARM_UP
    return _between(1.0, 0.0, (position - _COSINE_WARM_UP) / (1 - _COSINE_WARM_UP))


def constant(position: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[float], float]] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2
