"""Process group: rendezvous, timeouts and the device of each process.

torchrun or `--nproc` starts the processes; gloo connects them on CPUs, NCCL on GPUs. The launcher holds the store of
the rendezvous. Processes watch it, because without it they could neither connect nor be stopped.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

from skipway.distributed.collectives import explain_peer, world_size
from skipway.errors import InputError, Interrupted, printable
from skipway.utils.stop_signals import STOP

__all__ = ["LAUNCHER", "join_group", "joined_group", "leave_group", "local_device"]

LAUNCHER = "SKIPWAY_LAUNCHER"  # environment variable with the process id of the launcher of `--nproc`
_GLANCE = 0.5  # seconds between checks of the launcher
_left = threading.Event()  # set when this process leaves the group that it joined last
_MEETING = timedelta(minutes=2)  # timeout of the rendezvous
_PATIENCE = timedelta(minutes=10)  # timeout of collectives


@contextlib.contextmanager
def joined_group(device: str) -> Iterator[None]:
    """Join the process group, and leave it when the context ends. See `join_group`.

    Raises:
        Interrupted: another process ended or timed out.
    """
    try:
        join_group(device)
        yield
    except RuntimeError as error:
        if interrupted := explain_peer(error):
            raise interrupted from None
        raise
    finally:
        leave_group()


def join_group(device: str) -> None:
    """Join the process group if torchrun or --nproc started several processes.

    Until `leave_group`, this process stops like after SIGTERM, with its progress saved, if the launcher ends.

    Args:
        device: "cpu" or "cuda"; cuda selects the GPU with the LOCAL_RANK of this process.

    Raises:
        InputError: the rendezvous at MASTER_ADDR and MASTER_PORT failed.
        Interrupted: the launcher ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    if dist.is_torchelastic_launched():
        _watch_launcher(launcher)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_MEETING))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        if dist.is_torchelastic_launched():
            time.sleep(_GLANCE)  # connections break before the process gets a new parent, or a signal
            if os.getppid() != launcher:
                raise Interrupted(f"stopped by {_end_of(launcher)} before training began. Start it again.") from None
        address, port, number = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
        raise InputError(
            f"process {printable(number)} cannot connect to {printable(address)}:{printable(port)}: "
            f"{printable(str(error).splitlines()[0])[:200]}. Use --nproc or torchrun, which choose a free port."
        ) from None


def _watch_launcher(launcher: int) -> None:
    """Start a thread that sends SIGTERM to this process when the launcher is no longer its parent."""
    global _left
    _left = left = threading.Event()

    def watch() -> None:
        while os.getppid() == launcher:
            if left.wait(_GLANCE):
                return
        STOP.request(_end_of(launcher))
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="skipway-launcher", daemon=True).start()


def _end_of(launcher: int) -> str:
    return f"the end of its launcher (process {launcher})"


def leave_group() -> None:
    """Leave the process group and stop watching the launcher."""
    _left.set()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device(device: str) -> torch.device:
    """Return the device of this process: for cuda with several processes, the GPU with its LOCAL_RANK."""
    if device == "cuda" and world_size() > 1:
        return torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)
