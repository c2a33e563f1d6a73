"""Agreement of several processes about a training step in which one of them runs out of memory.

The other processes wait for the gradients of that process. It therefore completes the collectives of the step with
gradients of zero. All processes then learn that the step failed before any of them takes it, and retry it together.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from skipway.distributed import collectives
from skipway.errors import is_out_of_memory
from skipway.training.release_memory import release_memory
from skipway.training.trainer import Trainer

__all__ = ["AgreedOutOfMemory", "OomAgreement"]


class AgreedOutOfMemory(MemoryError):
    """Raised in all processes if one of them ran out of memory in a training step."""


class OomAgreement:
    """Notes if this process runs out of memory in a step, instead of raising the error.

    A single process raises it, and so do processes that share the weights by FSDP; see `restart`.

    Args:
        trainer: its model is wrapped in DistributedDataParallel.

    Attributes:
        failed: this process has run out of memory in the current step.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.failed = trainer, False
        self.is_active = collectives.world_size() > 1 and not trainer.settings.fsdp

    @contextmanager
    def microbatch(self, *, is_synced: bool) -> Iterator[None]:
        """Compute a microbatch within the context.

        Args:
            is_synced: the gradients are averaged over the processes in its backward pass.
        """
        if not self.is_active:
            yield
            return
        versions = {p: _version(p) for p in self.trainer.trainable_params} if is_synced else {}
        self.trainer.has_outputs, fails = False, False
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.failed = fails = True
            traceback.clear_frames(error.__traceback__)  # their variables keep activations alive
        if fails and is_synced:
            self._complete(versions)

    def _complete(self, versions: dict[nn.Parameter, int | None]) -> None:
        """Take part in the collectives of the backward pass that are left, with gradients of zero."""
        release_memory(self.trainer.device)
        if not self.trainer.has_outputs:  # the replica prepares its collectives at the end of the forward pass
            self.trainer.model._post_forward(None)  # type: ignore[operator]
        left = [p for p, version in versions.items() if p.requires_grad and _version(p) == version]
        if left:
            torch.autograd.backward(left, [torch.zeros_like(p) for p in left])

    @staticmethod
    def settle(failures: int) -> None:
        """Raise the error in all processes if the step failed in one of them.

        Args:
            failures: sum of `failed` over the processes.

        Raises:
            AgreedOutOfMemory: a process ran out of memory.
        """
        if failures:
            raise AgreedOutOfMemory(f"{failures} of {collectives.world_size()} processes ran out of memory in a step")


def _version(parameter: nn.Parameter) -> int | None:
    """Return a number that each change of the gradient increases, or None without a gradient."""
    return None if parameter.grad is None else parameter.grad._version
