"""Learning-rate schedules: functions of the position in [0, 1] in a run that return a share of the peak learning rate.

Schedules are pure functions without a step counter, so that they can be plotted, tested and resumed. `sequential` and
`scaled` compose them.
Sources: one-cycle, Smith and Topin 2017, arXiv:1708.07120; its momentum, Smith 2018, arXiv:1803.09820; cosine,
Loshchilov and Hutter 2016, arXiv:1608.03983; warmup, Goyal et al. 2017, arXiv:1706.02677; steps, He et al. 2015,
arXiv:1512.03385; flat-cosine, J. Howard's `fit_flat_cos` (fastai, 2019).
"""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "Schedule", "anneal", "make_schedule", "sequential", "momentum_at", "scaled"]

Schedule = Callable[[float], float]


def anneal(start: float, end: float, *, straight: bool = False) -> Schedule:
    """Anneal from `start` to `end` along half a cosine, or along a line if `straight`.

    >>> anneal(0.0, 1.0)(0.5)
    0.5
    """

    def schedule(position: float) -> float:
        position = min(max(position, 0.0), 1.0)
        return end + (start - end) * ((1 - position) if straight else (1 + math.cos(math.pi * position)) / 2)

    return schedule


def sequential(*parts: tuple[float, Schedule]) -> Schedule:
    """Run schedules one after another, each for its share of the run. The shares sum to 1.

    >>> rise_and_fall = sequential((0.25, anneal(0.0, 1.0)), (0.75, anneal(1.0, 0.0)))
    >>> rise_and_fall(0.25), rise_and_fall(1.0)
    (1.0, 0.0)
    """

    def schedule(position: float) -> float:
        begin = 0.0
        for share, part in parts[:-1]:
            if position < begin + share:
                return part((position - begin) / share)
            begin += share
        share, last = parts[-1]
        return last((position - begin) / share)

    return schedule


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Multiply a schedule by `factor`.

    >>> scaled(constant, 0.5)(0.3)
    0.5
    """
    return lambda position: factor * schedule(position)


def constant(position: float) -> float:
    """Return 1 at every position."""
    return 1.0


def steps(position: float) -> float:
    """Return 1 in the first half, 0.1 until three quarters, and 0.01 after that."""
    if position < 0.5:
        return 1.0
    return 0.1 if position < 0.75 else 0.01


SCHEDULES: dict[str, Schedule] = {
    "one-cycle": sequential((0.25, anneal(1 / 25, 1.0)), (0.75, anneal(1.0, 1e-4))),
    "cosine": sequential((0.05, anneal(0.02, 1.0, straight=True)), (0.95, anneal(1.0, 0.0))),
    "steps": sequential((0.05, anneal(0.02, 1.0, straight=True)), (0.95, steps)),
    "flat-cosine": sequential((0.72, constant), (0.28, anneal(1.0, 1e-4))),
    "constant": constant,
}


def make_schedule(name: str, frozen: float = 0.0) -> Schedule:
    """Return the schedule `name`, restarted at half its height after the share `frozen` of the run.

    Args:
        name: a key of SCHEDULES.
        frozen: share of the run in which only the head is trained.

    >>> make_schedule("constant", frozen=0.2)(0.9)
    0.5
    """
    schedule = SCHEDULES[name]
    return sequential((frozen, schedule), (1 - frozen, scaled(schedule, 0.5))) if frozen else schedule


def momentum_at(name: str, momentum: float, rate: float) -> float:
    """Return the momentum for a learning rate.

    One-cycle raises the momentum towards 1 as the learning rate falls. The other schedules keep it constant.

    Args:
        name: a key of SCHEDULES.
        momentum: momentum at the peak learning rate.
        rate: learning rate as a share of its peak.

    >>> momentum_at("one-cycle", 0.9, rate=0.5), momentum_at("cosine", 0.9, rate=0.5)
    (0.925, 0.9)
    """
    return momentum + (1 - min(rate, 1.0)) * (1 - momentum) / 2 if name == "one-cycle" else momentum
