"""Sums and finiteness of the training steps: read in each step, or every few steps on a CUDA device.

Reading a number from a device makes the host wait for all work that it has queued. On CUDA, the outputs, losses and
gradient norms of up to 16 steps therefore stay on the device. A step whose loss or gradient is not finite, and each
step after it, leaves the weights as they are, and the error is raised when the numbers are read.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipway.errors import NotFiniteError, printable
from skipway.training.trainer import Trainer

__all__ = ["StepLog"]

_STEPS = 16  # batches between two readings; each reading waits for the device twice


@dataclass(frozen=True)
class _Checked:
    """A loss or a gradient norm on the device, and the step that it belongs to."""

    value: Tensor
    what: str
    step: int
    ids: Any


class StepLog:
    """Adds the losses and metrics of training batches to the state, and raises an error if one is not finite.

    Args:
        trainer: its state gets the sums; its device decides when they are read.

    Attributes:
        skip: boolean scalar on the device, true from the first value on that is not finite; None if each value is
            read in its step.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        is_deferred = trainer.defers_reading
        self.skip = torch.zeros((), dtype=torch.bool, device=trainer.device) if is_deferred else None
        self.num_batches = 0
        self.checked: list[_Checked] = []
        self.losses: list[Tensor] = []  # means over the samples of a microbatch
        self.outputs: list[tuple[Tensor, Tensor, Tensor | None]] = []  # of each microbatch, with targets and weights

    def check(self, value: Tensor, what: str, ids: Any) -> None:
        """Check that a loss or a gradient norm is finite, now or at the next reading.

        Args:
            value: scalar.
            what: "loss" or "gradient".
            ids: ids of the samples of the batch.

        Raises:
            NotFiniteError: the value is read in its step, and is not finite.
        """
        step = self.trainer.state.step + 1
        if self.skip is not None:
            value = value.detach()
            self.skip = self.skip | ~torch.isfinite(value)
            self.checked.append(_Checked(value.float(), what, step, ids))
        elif not math.isfinite(number := value.item()):
            self._refuse(_Checked(value, what, step, ids), number)

    def add(self, loss: Tensor, outputs: Tensor, y: Tensor, weights: Tensor | None) -> None:
        """Add the loss and the metric of a microbatch to the sums, now or at the next reading.

        Args:
            loss: scalar, the mean over the B samples.
            outputs: (B, K) outputs of the network.
            y: targets.
            weights: (B,) weights of the samples, or None.
        """
        state, task = self.trainer.state, self.trainer.task
        if self.skip is None:
            state.loss += loss.item() * len(outputs)
            state.metric_sum += task.metric_sum(outputs, y, weights)
        else:
            self.losses.append(loss.detach().float())
            self.outputs.append((outputs.detach(), y, weights))

    def end_batch(self, *, is_last: bool) -> bool:
        """Read the sums if it is time, and return True if the state has the sums of all batches.

        Args:
            is_last: the batch is the last one of the epoch.
        """
        self.num_batches += 1
        if self.skip is None or is_last or self.num_batches >= _STEPS:
            self.read()
        return not self.num_batches

    def read(self) -> None:
        """Wait for the device, check all values, and add the sums to the state.

        Raises:
            NotFiniteError: a loss or a gradient of an earlier step was not finite. The step was not taken.
        """
        self.num_batches = 0
        if not self.checked:
            return
        values = torch.stack([*(c.value for c in self.checked), *self.losses]).tolist()
        for checked, value in zip(self.checked, values, strict=False):
            if not math.isfinite(value):
                self._refuse(checked, value)
        state = self.trainer.state
        outputs, targets, weights = zip(*self.outputs, strict=True)
        for value, part in zip(values[len(self.checked) :], outputs, strict=True):
            state.loss += value * len(part)
        state.metric_sum += self.trainer.task.metric_sum(
            torch.cat(outputs), torch.cat(targets), None if weights[0] is None else torch.cat(weights)
        )
        self.checked, self.losses, self.outputs = [], [], []

    def _refuse(self, checked: _Checked, value: float) -> None:
        ids, trainer = checked.ids, self.trainer
        names = ", ".join(printable(trainer.name_of(int(i))) for i in ids[:8]) + (" ..." if len(ids) > 8 else "")
        raise NotFiniteError(
            f"cannot take step {checked.step} of epoch {trainer.state.epoch + 1}: expected a finite {checked.what}, "
            f"got {value} with the {trainer.task.samples} {names}. Start a new run with a lower --lr or --clip-grad 1."
        )
