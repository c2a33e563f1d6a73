"""Schedules: the learning rate as a share of its highest value, a function of the position in [0, 1] of a run.

They know no step and no model, so they draw, test and resume by themselves, and are put together by `sequential` and
`scaled`.
Sources: one-cycle, Smith and Topin 2017, arXiv:1708.07120, and Smith 2018, arXiv:1803.09820, for its momentum; cosine,
Loshchilov and Hutter 2016, arXiv:1608.03983; warm-up, Goyal et al. 2017, arXiv:1706.02677; steps, He et al. 2015,
arXiv:1512.03385; flat, then cosine: J. Howard's `fit_flat_cos` (fastai, 2019).
"""

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "Schedule", "anneal", "make_schedule", "sequential", "momentum_at", "scaled"]

Schedule = Callable[[float], float]


def anneal(start: float, end: float, *, straight: bool = False) -> Schedule:
    """From `start` to `end`, along half a cosine or a straight line.

    >>> anneal(0.0, 1.0)(0.5)
    0.5
    """

    def schedule(position: float) -> float:
        position = min(max(position, 0.0), 1.0)
        return end + (start - end) * ((1 - position) if straight else (1 + math.cos(math.pi * position)) / 2)

    return schedule


def sequential(*parts: tuple[float, Schedule]) -> Schedule:
    """Schedules one after the other, each with the share of the run that is its own; the shares sum to 1.

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
    """The same course, `factor` times as high."""
    return lambda position: factor * schedule(position)


def constant(position: float) -> float:
    """1 throughout."""
    return 1.0


def steps(position: float) -> float:
    """A tenth from the middle on, a hundredth from three quarters on."""
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
    """The schedule of that name; where a share of the run is `frozen`, once for that part and once for the rest."""
    schedule = SCHEDULES[name]
    return sequential((frozen, schedule), (1 - frozen, scaled(schedule, 0.5))) if frozen else schedule


def momentum_at(name: str, momentum: float, rate: float) -> float:
    """The momentum where the learning rate is `rate` of its highest: `momentum` there, and nearer to 1 below it.

    One-cycle moves the two against each other; the other schedules keep their momentum.
    """
    return momentum + (1 - min(rate, 1.0)) * (1 - momentum) / 2 if name == "one-cycle" else momentum
