"""Pace: measured duration of an epoch on this machine, and the number of epochs that fit into a time limit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from skipway.distributed import collectives
from skipway.kernels.layer_dispatch import run_layers
from skipway.training.lr_finder import preserve_trainer, train_step
from skipway.training.metrics import Batches
from skipway.training.precision import autocast
from skipway.training.trainer import Trainer

__all__ = ["Pace", "epochs_within", "measure_pace", "step_seconds"]

_WARM_UP, _MEASURED = 2, 3  # batches; the first ones allocate memory and choose kernels
_LATEST = 10**9  # an epoch at which images have reached their full size
_MOST_EPOCHS, _MOST_STEPS = 60, 5000  # longer runs improve little; the longer of the two limits applies
_MARGIN = 0.95  # share of the time limit to plan for, because a few steps measure the pace only roughly


@dataclass(frozen=True)
class Pace:
    """Seconds per epoch.

    Attributes:
        first: training on images of the first size.
        full: training on images of the full size.
        validation: one validation.
    """

    first: float
    full: float
    validation: float

    def seconds(self, growth: Sequence[float]) -> float:
        """Estimate the seconds of a run.

        Args:
            growth: image size of each epoch, linear in the area: 0 is the first size, 1 the full size.
        """
        return sum(self.first + share * (self.full - self.first) + self.validation for share in growth)


def measure_pace(trainer: Trainer, train: Batches, validation: Batches) -> Pace:
    """Measure a few training steps and validation batches, and restore the trainer.

    Returns:
        The pace of the slowest process.
    """
    with preserve_trainer(trainer):
        trainer.to_train()
        first, full = (_training_seconds(trainer, train, epoch) for epoch in (0, _LATEST))
        evaluation = _validation_seconds(trainer, validation)
    return Pace(*map(max, zip(*collectives.all_gather((first, full, evaluation)), strict=True)))


def epochs_within(seconds: float, pace: Pace, steps: int, growth: Callable[[int], Sequence[float]]) -> int:
    """Return the largest number of epochs that fit into `seconds`, at least 1.

    Args:
        seconds: time limit of training and validation.
        pace: see `measure_pace`.
        steps: batches in an epoch.
        growth: returns the image size of each epoch for a number of epochs, see `Pace.seconds`.

    >>> epochs_within(100.0, Pace(first=4.0, full=4.0, validation=1.0), steps=50, growth=lambda epochs: [1.0] * epochs)
    19
    """
    most = max(_MOST_EPOCHS, -(-_MOST_STEPS // steps))
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        if pace.seconds(growth(middle)) <= _MARGIN * seconds:
            low = middle
        else:
            high = middle - 1
    return low


def step_seconds(layers: Sequence[nn.Module], x: Tensor, precision: str) -> float:
    """Measure the seconds per sample of a forward and a backward pass: the best of a few.

    Args:
        layers: layers in forward order; gradients are accumulated in their parameters.
        x: (B, ...), input of the first layer.
        precision: "bf16", "fp16" or "fp32".
    """
    seconds = []
    for _ in range(_MEASURED):
        begin = time.monotonic()
        with autocast(x.device.type, precision):
            total = run_layers(layers, x).float().sum()
        total.backward()
        total.item()  # waits for the device
        seconds.append(time.monotonic() - begin)
    return min(seconds) / len(x)


def _training_seconds(trainer: Trainer, batches: Batches, epoch: int) -> float:
    """Estimate the seconds of an epoch from the median step, which is robust to an interruption."""

    def step(k: int, x: Tensor, y: Tensor) -> None:
        train_step(trainer, x, y, k, rate=0.0)

    seconds = _batch_seconds(trainer, batches, epoch, count=_WARM_UP + _MEASURED, compute=step)
    measured = sorted(seconds[_WARM_UP:] or seconds[-1:])
    return measured[len(measured) // 2] * batches.steps


def _validation_seconds(trainer: Trainer, batches: Batches) -> float:
    model = trainer.eval_model.eval()

    def evaluate(k: int, x: Tensor, y: Tensor) -> None:
        with torch.inference_mode(), trainer.autocast():
            model(x).sum().item()

    return min(_batch_seconds(trainer, batches, 0, count=_MEASURED, compute=evaluate)) * batches.steps


def _batch_seconds(
    trainer: Trainer, batches: Batches, epoch: int, *, count: int, compute: Callable[[int, Tensor, Tensor], None]
) -> list[float]:
    """Measure the seconds to load and process each of the first `count` batches of an epoch."""
    seconds = []
    begin = time.monotonic()
    for k, (x, y, _) in enumerate(islice(batches.epoch(epoch), count)):
        compute(k, x.to(trainer.device), y.to(trainer.device))
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
    return seconds
