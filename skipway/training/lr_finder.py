"""The learning-rate range test: rates that rise step by step, until the loss tells which one is too high.

Sources: Smith 2015, arXiv:1506.01186; the valley is that of fastai 2.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.distributed import collectives
from skipway.errors import NotFiniteError
from skipway.training.metrics import Batches
from skipway.training.optimizers import set_rates
from skipway.training.trainer import Trainer

__all__ = ["RangeTest", "range_test", "preserve_trainer", "train_step"]

_WIDTH = 2.0  # steps, of the bell that smooths
_DIVERGED = 4.0  # times the loss without any training: from there on it only gets worse
_LEVELS = 100  # that a whole fall has
_MIN_STEPS = 10  # steps without which nothing can be said


@dataclass(frozen=True)
class RangeTest:
    """Learning rates with the losses of the steps that were taken with them, raw and smoothed, and what they suggest.

    steepest: where the smoothed loss falls fastest, over the logarithm of the rate.
    valley: half way down its longest fall, which is careful.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    valley: float

    @property
    def suggestion(self) -> float:
        """Half way between the two, over the logarithm: the one is often too high and the other too low."""
        return math.sqrt(self.steepest * self.valley)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, the suggestion too."""
        return {**asdict(self), "suggestion": self.suggestion}


def range_test(
    trainer: Trainer,
    batches: Batches,
    *,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
    poll: Callable[[], None] = lambda: None,
) -> RangeTest:
    """Take up to `steps` steps with rates from `lowest` to `highest`, and leave everything as it was.

    Weights, statistics of norms, optimiser, average and place in the run come back; no random number is drawn.
    Batches are unlike each other: from the loss of each is taken what it would be without any training, less the mean
    of that over all of them. What is left says what the rate does, also with few samples.

    Raises:
        NotFiniteError: the loss is not finite within the first ten steps.
    """
    rates: list[float] = []
    losses: list[float] = []
    with preserve_trainer(trainer):
        trainer.to_train()
        starts = [_loss(trainer, *batch, k) for k, batch in _batches(trainer, batches, steps, poll)]
        usual = sum(starts) / len(starts)
        for k, batch in _batches(trainer, batches, steps, poll):
            rate = lowest * (highest / lowest) ** (k / max(1, steps - 1))
            loss = train_step(trainer, *batch, k, rate)
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss - starts[k] + usual)
            if k >= _MIN_STEPS and losses[-1] > _DIVERGED * usual:
                break
    if len(losses) < _MIN_STEPS:
        raise NotFiniteError(
            f"the loss is not finite after {len(losses)} steps of the range test, at learning rates up to "
            f"{rates[-1] if rates else lowest:.3g}; look at the data, or give --lr a number"
        )
    return _suggest(rates, losses)


def _batches(
    trainer: Trainer, batches: Batches, steps: int, poll: Callable[[], None]
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """(k, batch) of the first `steps` batches of however many epochs."""
    epochs = chain.from_iterable(batches.epoch(epoch) for epoch in count())
    for k, (x, y, _) in zip(range(steps), epochs, strict=False):
        poll()
        yield k, (x.to(trainer.device), y.to(trainer.device))


def _loss(trainer: Trainer, x: Tensor, y: Tensor, k: int) -> float:
    """What the k-th batch loses as the network stands, with the dropout that its step will have."""
    torch.manual_seed(trainer.settings.seed + k)
    with torch.no_grad():
        return _mean_over_processes(_penalized_loss(trainer, x, y))


@contextmanager
def preserve_trainer(trainer: Trainer) -> Iterator[None]:
    """Restore the trainer when the context ends: weights, buffers, optimizer, average, rates and random numbers."""
    tensors = {name: tensor.clone() for name, tensor in trainer.parts().items()}
    state, groups = asdict(trainer.state), [dict(group) for group in trainer.optimizer.param_groups]
    try:
        with torch.random.fork_rng(devices=[trainer.device] if trainer.device.type == "cuda" else []):
            yield
    finally:
        for group, before in zip(trainer.optimizer.param_groups, groups, strict=True):
            group.update(before)
        trainer.restore(tensors, state)


def train_step(trainer: Trainer, x: Tensor, y: Tensor, k: int, rate: float) -> float:
    """Take the k-th step, with the learning rate `rate`; return the loss before it, the mean over all processes."""
    torch.manual_seed(trainer.settings.seed + k)
    loss = _penalized_loss(trainer, x, y)
    if torch.isfinite(loss):
        loss.backward()
        trainer.clip_gradients()
        set_rates(trainer.optimizer, rate, trainer.settings.momentum)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
    return _mean_over_processes(loss)


def _penalized_loss(trainer: Trainer, x: Tensor, y: Tensor) -> Tensor:
    with trainer.autocast():
        outputs = trainer.model(x).float()
    return trainer.task.loss(outputs, y) + trainer.penalty()


def _mean_over_processes(loss: Tensor) -> float:
    """Over all processes."""
    return collectives.all_reduce_sum(loss.item())[0] / collectives.world_size()


def _suggest(rates: list[float], losses: list[float]) -> RangeTest:
    """What losses say of rates: behind the lowest smoothed loss they say nothing."""
    smoothed = _smooth(np.asarray(losses))
    falling = smoothed[: max(int(smoothed.argmin()) + 1, 3)]
    steepest = rates[int(np.gradient(falling).argmin())]
    step = max(float(np.ptp(falling)) / _LEVELS, 1e-6)  # a line that is nearly flat does not fall
    last, length = _longest_fall((falling / step).round().tolist())
    return RangeTest(rates, losses, smoothed.tolist(), steepest, rates[last - length // 2])


def _smooth(losses: np.ndarray) -> np.ndarray:
    """The mean of each loss and its neighbours, by a bell that is no later than the losses themselves."""
    distance = np.arange(len(losses))[:, None] - np.arange(len(losses))[None, :]
    weight = np.exp(-0.5 * (distance / _WIDTH) ** 2)
    smooth: np.ndarray = (weight @ losses) / weight.sum(axis=1)
    return smooth


def _longest_fall(values: list[float]) -> tuple[int, int]:
    """(last index, length) of the longest sequence of falling values, which may leave out what rises between them."""
    length = [1] * len(values)
    for i in range(len(values)):
        length[i] += max((length[j] for j in range(i) if values[i] < values[j]), default=0)
    last = int(np.argmax(length))
    return last, length[last]
