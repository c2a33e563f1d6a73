"""Process group: how the processes of one training meet, how long they wait for each other, and which device each has.

torchrun or `--nproc` starts the processes; gloo connects them on CPUs, NCCL on GPUs.
"""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from skipway.distributed.collectives import world_size
from skipway.errors import InputError, printable

__all__ = ["join_group", "leave_group", "local_device"]

_MEETING = timedelta(minutes=2)  # for all to come to the place where they meet
_PATIENCE = timedelta(minutes=10)  # with a process that does not answer


def join_group(device: str) -> None:
    """Meet the other processes where torchrun or --nproc has started several.

    Raises:
        InputError: they are not where the environment says.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_MEETING))
    except (RuntimeError, ValueError) as error:
        address, port, number = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
        raise InputError(
            f"process {printable(number)} cannot meet the others at {printable(address)}:{printable(port)} "
            f"({printable(str(error).splitlines()[0])[:200]}); start with --nproc or torchrun, which choose a free port"
        ) from None
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)


def leave_group() -> None:
    """Part from the others."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device(device: str) -> torch.device:
    """Return the device that this process trains on: of a machine's GPUs, the one with its LOCAL_RANK."""
    if device == "cuda" and world_size() > 1:
        return torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)
