"""Collectives over the processes of a training. In a single process they return at once.

They use the process group of torch: gloo on CPUs, NCCL on GPUs.
"""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from skipway.distributed.restart import is_restart_requested
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
# Errors of gloo, NCCL and the store of torch, whose names are in their first lines. Their names are not enough: they
# also report mismatched tensor shapes.
_TRANSPORT = re.compile(r"\b(?:gloo|nccl|c10d|recv)", re.IGNORECASE)
_FRAMES = re.compile(r"\n(?:Exception raised from|frame #\d)")  # stack of C++, whose names are not the cause
# Errors of NCCL about this process: its arguments, its GPU, or its driver.
_OWN_FAULT = re.compile(r"nccl(?:InvalidUsage|InvalidArgument|UnhandledCudaError)|duplicate gpu", re.IGNORECASE)
_BROKEN = re.compile(
    r"connection (?:was likely )?closed|connection reset|connection refused|broken pipe|socket closed|failed to connect"
    r"|remote ?error|remote process exit|communicator was aborted",
    re.IGNORECASE,
)
_TIMEOUT = re.compile(r"timed out|timeout", re.IGNORECASE)


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def assert_same(values: dict[str, Any]) -> None:
    """Raise an error if `values` differ between the processes.

    Raises:
        InputError: a value differs; the error names it and two ranks.
    """
    all_values = all_gather(values)
    for other, other_values in enumerate(all_values):
        differing = [name for name, value in all_values[0].items() if other_values[name] != value]
        if differing:
            differences = "; ".join(
                f"{n} is {all_values[0][n]!r} in process 0 and {other_values[n]!r} in process {other}"
                for n in differing
            )
            raise InputError(
                f"cannot train: expected equal settings in all processes, got {printable(differences)}. Start all "
                "processes with the same command and the same data."
            )


def all_reduce_sum(*values: float) -> list[float]:
    """Sum each value over all processes.

    >>> all_reduce_sum(1.0, 2.0)
    [1.0, 2.0]
    """
    if world_size() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def all_gather(value: Any) -> list[Any]:
    """Return the value of every process, in the order of ranks.

    >>> all_gather("a")
    ['a']
    """
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def run_on_rank0(make: Callable[[], R]) -> R:
    """Call `make` in the first process, and return its result, or raise its error, in all processes."""
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
    """Return True if the error means that the connection to another process of the training broke."""
    return world_size() > 1 and _BROKEN.search(_transport_error(error)) is not None


def is_peer_silent(error: Exception) -> bool:
    """Return True if the error means that another process of the training timed out."""
    return world_size() > 1 and not is_peer_lost(error) and _TIMEOUT.search(_transport_error(error)) is not None


def _transport_error(error: Exception) -> str:
    """Return the text of an error of the connections between processes; "" for any other error, or one of this process.

    gloo raises RuntimeError, so that its name must be in the text. The stack that follows the text is left out.
    """
    text = _FRAMES.split(str(error))[0]
    is_transport = isinstance(error, dist.DistError) or (type(error) is RuntimeError and _TRANSPORT.search(text))
    return text if is_transport and not _OWN_FAULT.search(text) else ""


def explain_peer(error: Exception, run: str = "RUN") -> Interrupted | None:
    """Return the error to report if `error` means that another process ended or timed out, else None.

    Args:
        error: error of a collective.
        run: run folder to name in the message.

    Raises:
        SystemExit: the other process has asked to start all processes again.
    """
    if is_peer_silent(error):
        reason = "another process does not respond"
    elif is_peer_lost(error):
        if is_restart_requested():
            raise SystemExit(Interrupted.exit_code)  # the process that ran out of memory has reported it
        time.sleep(1)  # the launcher polls several times a second and should report the process that ended first
        reason = "lost the connection to another process"
    else:
        return None
    return Interrupted(f"{reason}; checkpoints are saved. Resume with --resume {run}")


def broadcast_buffers(network: nn.Module) -> None:
    """Copy the buffers (statistics of batch norms) of the first process to all processes."""
    if world_size() > 1:
        buffers: list[Tensor] = list(network.buffers())
        for buffer in buffers:
            dist.broadcast(buffer, src=0)
