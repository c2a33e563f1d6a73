"""Checkpoints that a thread writes from a copy of the tensors, while training continues."""

import threading
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipway.training import checkpoint
from skipway.training.verified_steps import VerifiedSteps

__all__ = ["BackgroundSaver"]


class BackgroundSaver:
    """Writes checkpoints in a thread, one at a time.

    An error of the thread is kept, and raised by the next call of `save`, `wait` or `raise_failure`. The process does
    not end before the thread. The memory of the copies is used again by the next save.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._copies: dict[str, Tensor] = {}
        self._verified = VerifiedSteps()

    def save(self, folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Copy the tensors and the state, and start to write them. See `save_checkpoint`."""
        self.wait()
        self._copies = {name: _copy(tensor, self._copies.get(name)) for name, tensor in tensors.items()}
        arguments = folder, step, self._copies, deepcopy(state)
        self._thread = threading.Thread(target=self._write, args=arguments, name="skipway-checkpoint")
        self._thread.start()

    def _write(self, folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        try:
            checkpoint.save_checkpoint(folder, step, tensors, state, verified=self._verified)
        except BaseException as error:  # raised in the thread that trains
            self._failure = error

    def join(self) -> None:
        """Wait until the last checkpoint is written, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Wait until the last checkpoint is written, and raise its error if it has failed."""
        self.join()
        self.raise_failure()

    def raise_failure(self) -> None:
        """Raise the error of a checkpoint that could not be written, without waiting."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure


def _copy(tensor: Tensor, memory: Tensor | None) -> Tensor:
    """Copy a tensor to the CPU with its values and layout, into `memory` if it fits."""
    source = tensor.detach()
    expected = torch.empty_like(source, device="meta")
    if (
        memory is None
        or memory.shape != expected.shape
        or memory.dtype != expected.dtype
        or memory.stride() != expected.stride()
    ):
        memory = torch.empty_like(source, device="cpu")
    return memory.copy_(source)
