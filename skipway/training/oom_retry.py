"""Recovery from running out of memory: batches are split into microbatches whose gradients are accumulated."""

from collections.abc import Callable
from pathlib import Path

from skipway.distributed import collectives
from skipway.distributed.restart import least_microbatches, request_restart
from skipway.errors import Interrupted, StorageError, is_out_of_memory
from skipway.training import checkpoint
from skipway.training.oom_agreement import AgreedOutOfMemory
from skipway.training.release_memory import release_memory
from skipway.training.trainer import State, Trainer
from skipway.utils.console import Console

__all__ = ["retry_with_microbatches"]


def retry_with_microbatches(
    fit: Callable[[], State], trainer: Trainer, *, folder: Path, batch_size: int, console: Console
) -> State:
    """Call `fit`, and retry from the newest checkpoint with microbatches half as large if a step runs out of memory.

    Several processes do so together, also if only one of them runs out of memory; with FSDP, the launcher starts all of
    them again. Each step averages the same samples, but batch norm uses the statistics of a microbatch. The number of
    microbatches is part of the state, so that a resumed run uses it again.

    Args:
        fit: runs the training loop and returns the final state.
        trainer: restored from the checkpoint before a retry.
        folder: folder of the checkpoints.
        batch_size: samples per batch.
        console: reports each retry.

    Returns:
        The result of `fit`.

    Raises:
        StorageError: two samples do not fit into memory, or no launcher can start the processes of FSDP again.
        Interrupted: the launcher starts them again.
    """
    is_sharded = trainer.settings.fsdp and collectives.world_size() > 1
    trainer.state.num_microbatches = max(trainer.state.num_microbatches, least_microbatches())
    while True:
        try:
            return fit()
        except (MemoryError, RuntimeError) as error:
            is_alone = collectives.world_size() == 1 or is_sharded  # others retry only what all have agreed on
            is_known = is_out_of_memory(error) if is_alone else isinstance(error, AgreedOutOfMemory)
            if not is_known or not trainer.takes_steps:  # microbatches save memory in training steps only
                raise
        # Outside of the handler, so that the traceback no longer keeps tensors alive.
        pieces = 2 * trainer.state.num_microbatches
        if batch_size // (pieces * collectives.world_size()) < 2:
            raise StorageError(
                f"ran out of memory with batch size {batch_size} in {trainer.state.num_microbatches} microbatches. Use "
                "a smaller --img-size or --model, or a machine with more memory. Saved checkpoints are intact."
            )
        if is_sharded:
            raise _end_of_shard(folder.parents[1], batch_size, pieces)
        trainer.optimizer.zero_grad(set_to_none=True)
        release_memory(trainer.device)
        newest = collectives.run_on_rank0(lambda: checkpoint.load_checkpoint(folder))
        trainer.restore(newest.tensors, newest.state["state"])
        trainer.state.num_microbatches = pieces
        if trainer.compiled is not None or collectives.world_size() > 1:
            trainer.renew_replicas()
        console.print(
            f"  ran out of memory with batch size {batch_size}: from step {trainer.state.step} on, each batch is split "
            f"into {pieces} microbatches (batch norm uses the statistics of a microbatch)"
        )


def _end_of_shard(run: Path, batch_size: int, pieces: int) -> Interrupted | StorageError:
    """Ask the launcher to start all processes again, and return the error that ends this one."""
    reason = f"ran out of memory with batch size {batch_size}"
    if request_restart(run, pieces):
        return Interrupted(
            f"{reason}: all processes start again from the last checkpoint, with each batch split into {pieces} "
            "microbatches (batch norm uses the statistics of a microbatch)"
        )
    return StorageError(
        f"{reason}. Use --nproc, which starts all processes again with smaller microbatches, or a smaller "
        "--batch-size. Saved checkpoints are intact."
    )
