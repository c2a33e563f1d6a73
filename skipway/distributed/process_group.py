"""Process group: how the processes of one training meet, how long they wait for each other, and which device each has.

torchrun or `--nproc` starts the processes; gloo connects them on CPUs, NCCL on GPUs. The launcher holds the store where
they meet: without it they would wait for minutes, and train on with nobody to stop them.
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

LAUNCHER = "SKIPWAY_LAUNCHER"  # environment variable with the process number of `--nproc`'s launcher
_GLANCE = 0.5  # seconds between two looks at the launcher
_left = threading.Event()  # of the group that was joined last
_MEETING = timedelta(minutes=2)  # for all to come to the place where they meet
_PATIENCE = timedelta(minutes=10)  # with a process that does not answer


@contextlib.contextmanager
def joined_group(device: str) -> Iterator[None]:
    """Within it this process is one of the group that `join_group` joins.

    Raises:
        Interrupted: another process ended or does not answer.
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
    """Meet the other processes where torchrun or --nproc has started several.

    From here until `leave_group` the end of the launcher ends this process, too, as SIGTERM does: with its work saved.

    Raises:
        InputError: they are not where the environment says.
        Interrupted: the launcher is gone.
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
            time.sleep(_GLANCE)  # connections break before the launcher counts as gone, or signals why they did
            if os.getppid() != launcher:
                raise Interrupted(f"stopped by {_end_of(launcher)} before anything was done; start again") from None
        address, port, number = (os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
        raise InputError(
            f"process {printable(number)} cannot meet the others at {printable(address)}:{printable(port)} "
            f"({printable(str(error).splitlines()[0])[:200]}); start with --nproc or torchrun, which choose a free port"
        ) from None


def _watch_launcher(launcher: int) -> None:
    """Start a thread that sends SIGTERM to this process as soon as the launcher is no longer its parent."""
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
    """Part from the others."""
    _left.set()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local_device(device: str) -> torch.device:
    """Return the device that this process trains on: of a machine's GPUs, the one with its LOCAL_RANK."""
    if device == "cuda" and world_size() > 1:
        return torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)
