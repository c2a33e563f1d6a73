"""Ranks: what the processes of one training tell each other; in a single process everything is nothing to do.

torch's process group (gloo on CPUs, NCCL on GPUs) carries it; torchrun or `--nproc` starts it.
"""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipway.errors import InputError, Interrupted, printable

__all__ = [
    "all_gather",
    "all_reduce_sum",
    "assert_same",
    "broadcast_buffers",
    "explain_peer",
    "is_peer_lost",
    "is_peer_silent",
    "rank",
    "run_on_rank0",
    "world_size",
]

R = TypeVar("R")
# What gloo, NCCL and torch's store say. Their names alone say nothing: they also report tensors of unequal shapes.
_BROKEN = re.compile(
    r"connection (?:was likely )?closed|connection reset|connection refused|broken pipe|socket closed|failed to connect"
    r"|remote ?error|remote process exit|communicator was aborted",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"(?:gloo|nccl|store|socket|recv).*(?:timed out|timeout)", re.IGNORECASE | re.DOTALL)


def rank() -> int:
    """The number of this process among those of the training, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def assert_same(values: dict[str, Any]) -> None:
    """Refuse to go on where the processes were told different values."""
    all_values = all_gather(values)
    for other, other_values in enumerate(all_values):
        differing = [name for name, value in all_values[0].items() if other_values[name] != value]
        if differing:
            differences = "; ".join(
                f"{n} is {all_values[0][n]!r} in process 0 and {other_values[n]!r} in process {other}"
                for n in differing
            )
            raise InputError(
                f"the processes of this training do not agree: {printable(differences)}; start all with one command, "
                "on the same data"
            )


def all_reduce_sum(*values: float) -> list[float]:
    """Each value summed over all processes."""
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def all_gather(value: Any) -> list[Any]:
    """The value of every process, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_rank0(make: Callable[[], R]) -> R:
    """What `make` gives in the first process, for all of them; what it raises there, too."""
    if world_size() == 1:
        return make()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = make()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    result: R = outcome[0]
    return result


def is_peer_lost(error: Exception) -> bool:
    """Whether an error is that the connection to another process of the training broke, as it does when that ends."""
    return world_size() > 1 and _BROKEN.search(str(error)) is not None


def is_peer_silent(error: Exception) -> bool:
    """Whether an error is that another process of the training did not answer in time."""
    return world_size() > 1 and not is_peer_lost(error) and _TIMEOUT.search(str(error)) is not None


def explain_peer(error: Exception, run: str = "RUN") -> Interrupted | None:
    """Return the error for the user if `error` is that another process of the training ended or does not answer.

    Args:
        run: the folder to resume.
    """
    if is_peer_silent(error):
        reason = "another process of this training does not answer"
    elif is_peer_lost(error):
        time.sleep(1)  # the launcher looks several times a second: it shall find first who is gone, and name that
        reason = "another process of this training is gone"
    else:
        return None
    return Interrupted(f"{reason}; what is saved is whole: go on with --resume {run}")


def broadcast_buffers(network: nn.Module) -> None:
    """Give every process the buffers (the norms' statistics) of the first."""
    if world_size() > 1:
        buffers: list[Tensor] = list(network.buffers())
        for buffer in buffers:
            dist.broadcast(buffer, src=0)
