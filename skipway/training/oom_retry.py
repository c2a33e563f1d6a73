"""Where memory runs out, batches are computed in pieces: half as large each time, their gradients summed."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

from skipway.distributed import collectives
from skipway.errors import StorageError, is_out_of_memory
from skipway.training import checkpoint
from skipway.training.trainer import State, Trainer
from skipway.utils.console import Console

__all__ = ["retry_with_microbatches"]


def retry_with_microbatches(
    fit: Callable[[], State], trainer: Trainer, *, folder: Path, batch_size: int, console: Console
) -> State:
    """What `fit` gives; where memory runs out, again from the newest checkpoint in `folder` with pieces half as large.

    A step is the same mean over the same samples, but norms see the pieces. The number of pieces is part of the state,
    so that a resumed run keeps it.

    Raises:
        StorageError: memory does not hold pieces of two samples either.
    """
    while True:
        try:
            return fit()
        except (MemoryError, RuntimeError) as error:
            if collectives.world_size() > 1 or not is_out_of_memory(error):  # the other processes would not go back
                raise
        # Outside of the handler, so that the error no longer holds what was computed.
        pieces = 2 * trainer.state.num_microbatches
        if batch_size // pieces < 2:
            raise StorageError(
                f"memory ran out with batches of {batch_size} in {trainer.state.num_microbatches} pieces; what is "
                "saved is whole: give a smaller --img-size, a smaller --model or a machine with more memory"
            )
        trainer.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if trainer.device.type == "cuda":
            torch.cuda.empty_cache()
        newest = checkpoint.load_checkpoint(folder)
        trainer.restore(newest.tensors, newest.state["state"])
        trainer.state.num_microbatches = pieces
        console.print(
            f"  memory ran out with batches of {batch_size}: from step {trainer.state.step} on they are computed in "
            f"{pieces} pieces, which norms see one by one"
        )
