"""Ranks: what the processes of one training tell each other; in a single process everything is nothing to do.

torch's process group (gloo on CPUs, NCCL on GPUs) carries it; torchrun, `accelerate launch` or `--nproc` starts it.
"""

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["count", "gathered", "here", "in_common", "join_group", "leave_group", "share_buffers", "summed"]


def here() -> int:
    """The number of this process among those of the training, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join_group(device: str) -> None:
    """Meet the other processes, once."""
    if count() > 1 and not dist.is_initialized():
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")


def leave_group() -> None:
    """Part from the others."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def summed(*values: float) -> list[float]:
    """Each value summed over all processes."""
    if count() == 1:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def gathered(value: Any) -> list[Any]:
    """The value of every process, in the order of ranks."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def in_common(value: Any) -> Any:
    """The value of the first process, for all."""
    if count() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers (the norms' statistics) of the first."""
    if count() > 1:
        buffers: list[Tensor] = list(network.buffers())
        for buffer in buffers:
            dist.broadcast(buffer, src=0)
