"""Pace: how long an epoch takes on this machine, from a few measured steps, and how many epochs fit into a time."""

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
from skipway.training.trainer import Trainer

__all__ = ["Pace", "epochs_within", "measure_pace", "step_seconds"]

_WARM_UP, _MEASURED = 2, 3  # batches: the first ones allocate memory and choose kernels
_LATEST = 10**9  # an epoch by which images have grown to their full size
_MOST_EPOCHS, _MOST_STEPS = 60, 5000  # a longer run brings little: whichever of the two is more
_MARGIN = 0.95  # share of the time that is planned for: a few steps tell the pace no better


@dataclass(frozen=True)
class Pace:
    """Seconds of an epoch of training while images have their first and their full size, and of one validation."""

    first: float
    full: float
    validation: float

    def seconds(self, growth: Sequence[float]) -> float:
        """Return the seconds of a run.

        Args:
            growth: for each epoch how far images have grown, by area: 0 for the first size, 1 for the full one.
        """
        return sum(self.first + share * (self.full - self.first) + self.validation for share in growth)


def measure_pace(trainer: Trainer, train: Batches, validation: Batches) -> Pace:
    """Measure a few steps of training and of evaluation; the trainer is left as it was.

    Processes measure together, and the slowest of them counts.
    """
    with preserve_trainer(trainer):
        trainer.to_train()
        first, full = (_training_seconds(trainer, train, epoch) for epoch in (0, _LATEST))
        evaluation = _validation_seconds(trainer, validation)
    return Pace(*map(max, zip(*collectives.all_gather((first, full, evaluation)), strict=True)))


def epochs_within(seconds: float, pace: Pace, steps: int, growth: Callable[[int], Sequence[float]]) -> int:
    """Return the most epochs that fit into `seconds`, at least 1.

    Args:
        seconds: for training and validation, all in all.
        pace: as measured.
        steps: batches in an epoch.
        growth: returns for a number of epochs what `Pace.seconds` takes.
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
    """Return the seconds that a forward and a backward pass take for one sample of a batch: the best of a few.

    Args:
        layers: in their order; their gradients are overwritten.
        x: (B, ...), what the first one takes.
        precision: "bf16" or "fp32".
    """
    seconds = []
    for _ in range(_MEASURED):
        begin = time.monotonic()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            run_layers(layers, x).float().sum().backward()
        seconds.append(time.monotonic() - begin)
    return min(seconds) / len(x)


def _training_seconds(trainer: Trainer, batches: Batches, epoch: int) -> float:
    """Return the seconds of an epoch, by a few steps of it: the median, so that one interruption does not count."""

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
    """Return the seconds of each of the first `count` batches of an epoch: to make it, and to compute with it."""
    seconds = []
    begin = time.monotonic()
    for k, (x, y, _) in enumerate(islice(batches.epoch(epoch), count)):
        compute(k, x.to(trainer.device), y.to(trainer.device))
        seconds.append(time.monotonic() - begin)
        begin = time.monotonic()
    return seconds
