"""Learning-rate range test: increase the learning rate step by step until the loss diverges.

Sources: Smith 2015, arXiv:1506.01186; the valley heuristic follows fastai 2.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, count, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.distributed import collectives
from skipway.errors import NotFiniteError
from skipway.training.metrics import Batches
from skipway.training.optimizers import set_rates
from skipway.training.trainer import Trainer
from skipway.utils.devices import forked_rng, seed_random
from skipway.utils.format_text import count_of

__all__ = ["RangeTest", "range_test", "preserve_trainer", "train_step"]

_WIDTH = 2.0  # standard deviation of the Gaussian filter, in steps
_DIVERGED = 4.0  # multiple of the initial loss at which the test stops
_LEVELS = 100  # quantization levels of the range of the loss
_MIN_STEPS = 10  # fewest steps from which a rate can be suggested


@dataclass(frozen=True)
class RangeTest:
    """Result of a range test.

    Attributes:
        rates: learning rate of each step.
        losses: loss of each step.
        smoothed: smoothed losses.
        steepest: rate at which the smoothed loss falls fastest, over the logarithm of the rate.
        valley: rate in the middle of the longest fall, a cautious choice.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    steepest: float
    valley: float

    @property
    def suggestion(self) -> float:
        """Geometric mean of `steepest`, which is often too high, and `valley`, which is often too low."""
        return math.sqrt(self.steepest * self.valley)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields and the suggestion as plain values."""
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
    """Run a range test and restore the trainer afterwards.

    The initial loss differs between batches. The test subtracts this difference, so that the curve shows the effect of
    the learning rate even with few samples.

    Args:
        trainer: restored completely: weights, buffers, optimizer, EMA, state and random generators.
        batches: training batches; epochs repeat until there are `steps` of them.
        lowest: learning rate of the first step.
        highest: learning rate of the last step.
        steps: number of steps, spaced evenly over the logarithm of the rate.
        poll: called before each batch, to raise an error if a stop was requested.

    Returns:
        The curve and the suggested learning rate.

    Raises:
        NotFiniteError: the loss diverges within the first ten steps.
    """
    rates: list[float] = []
    losses: list[float] = []
    with preserve_trainer(trainer):
        trainer.to_train()
        starts = [_loss(trainer, *batch, k=k) for k, batch in _batches(trainer, batches, steps, poll)]
        usual = sum(starts) / len(starts)
        for k, batch in _batches(trainer, batches, steps, poll):
            rate = lowest * (highest / lowest) ** (k / max(1, steps - 1))
            loss = train_step(trainer, *batch[:2], k, rate, batch[2])
            if not math.isfinite(loss):
                break
            rates.append(rate)
            losses.append(loss - starts[k] + usual)
            if k >= _MIN_STEPS and losses[-1] > _DIVERGED * usual:
                break
    if len(losses) < _MIN_STEPS:
        raise NotFiniteError(
            f"cannot find a learning rate: expected a finite loss for {_MIN_STEPS} steps, got "
            f"{count_of(len(losses), 'step')} up to a rate of {rates[-1] if rates else lowest:.3g}. "
            "Check the data, or set --lr."
        )
    return _suggest(rates, losses)


def _batches(
    trainer: Trainer, batches: Batches, steps: int, poll: Callable[[], None]
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor | None]]]:
    """Yield (k, batch) for the first `steps` batches, over several epochs if needed."""
    epochs = chain.from_iterable(zip(batches.epoch(epoch), repeat(epoch)) for epoch in count())
    for k, ((x, y, ids), epoch) in zip(range(steps), epochs, strict=False):
        poll()
        weights = batches.weights(ids, epoch)
        weights = weights if weights is None else weights.to(trainer.device)
        yield k, (x.to(trainer.device), y.to(trainer.device), weights)


def _loss(trainer: Trainer, x: Tensor, y: Tensor, weights: Tensor | None, *, k: int) -> float:
    """Compute the loss of the k-th batch without a step, with the same dropout as in its training step."""
    seed_random(trainer.settings.seed + k, trainer.device)
    with torch.no_grad():
        return _mean_over_processes(_penalized_loss(trainer, x, y, weights))


@contextmanager
def preserve_trainer(trainer: Trainer) -> Iterator[None]:
    """Restore the trainer when the context ends: weights, buffers, optimizer, EMA, state and random generators."""
    tensors = {name: tensor.clone() for name, tensor in trainer.parts().items()}
    state, groups = asdict(trainer.state), [dict(group) for group in trainer.optimizer.param_groups]
    try:
        with forked_rng(trainer.device):
            yield
    finally:
        for group, before in zip(trainer.optimizer.param_groups, groups, strict=True):
            group.update(before)
        trainer.restore(tensors, state)


def train_step(trainer: Trainer, x: Tensor, y: Tensor, k: int, rate: float, weights: Tensor | None = None) -> float:
    """Take the k-th step with learning rate `rate`.

    Args:
        trainer: model and optimizer.
        x: inputs of the batch.
        y: targets of the batch.
        k: number of the step, which seeds dropout.
        rate: learning rate.
        weights: (B,) weights of the samples, or None.

    Returns:
        The loss before the step, averaged over all processes. If it is not finite, no step is taken.
    """
    seed_random(trainer.settings.seed + k, trainer.device)
    loss = _penalized_loss(trainer, x, y, weights)
    if torch.isfinite(loss):
        trainer.backward(loss)
        if trainer.changes_gradients:
            trainer.clip_gradients()
        set_rates(trainer.optimizer, rate, trainer.settings.momentum)
        trainer.step()
    return _mean_over_processes(loss)


def _penalized_loss(trainer: Trainer, x: Tensor, y: Tensor, weights: Tensor | None) -> Tensor:
    with trainer.autocast():
        outputs = trainer.model(x).float()
    return trainer.task.loss(outputs, y, weights) + trainer.penalty()


def _mean_over_processes(loss: Tensor) -> float:
    """Average a loss over all processes."""
    return collectives.all_reduce_sum(loss.item())[0] / collectives.world_size()


def _suggest(rates: list[float], losses: list[float]) -> RangeTest:
    """Derive the suggested rates from the curve up to its minimum."""
    smoothed = _smooth(np.asarray(losses))
    falling = smoothed[: max(int(smoothed.argmin()) + 1, 3)]
    steepest = rates[int(np.gradient(falling).argmin())]
    step = max(float(np.ptp(falling)) / _LEVELS, 1e-6)  # ignores the noise of a flat curve
    last, length = _longest_fall((falling / step).round().tolist())
    return RangeTest(rates, losses, smoothed.tolist(), steepest, rates[last - length // 2])


def _smooth(losses: np.ndarray) -> np.ndarray:
    """Smooth losses with a centered Gaussian filter, which causes no lag."""
    distance = np.arange(len(losses))[:, None] - np.arange(len(losses))[None, :]
    weight = np.exp(-0.5 * (distance / _WIDTH) ** 2)
    smooth: np.ndarray = (weight @ losses) / weight.sum(axis=1)
    return smooth


def _longest_fall(values: list[float]) -> tuple[int, int]:
    """Return (last index, length) of the longest decreasing subsequence."""
    length = [1] * len(values)
    for i in range(len(values)):
        length[i] += max((length[j] for j in range(i) if values[i] < values[j]), default=0)
    last = int(np.argmax(length))
    return last, length[last]
