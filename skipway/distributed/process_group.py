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
from skipway.distributed.restart import is_restart_requested
from skipway.errors import InputError, Interrupted, printable
from skipway.utils.devices import local_processes, refuse_excess_processes
from skipway.utils.stop_signals import STOP

__all__ = ["LAUNCHER", "PATIENCE", "join_group", "joined_group", "joined_store", "leave_group", "local_device"]

LAUNCHER = "SKIPWAY_LAUNCHER"  # environment variable with the process id of the launcher of `--nproc`
_GLANCE = 0.5  # seconds between checks of the launcher
_left = threading.Event()  # set when this process leaves the group that it joined last
_MEETING = timedelta(minutes=2)  # timeout of the rendezvous
PATIENCE = timedelta(minutes=10)  # timeout of collectives
_store: dist.Store | None = None  # of the group that this process has joined


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
        device: "cpu", or an accelerator. Without an index, this process gets the one with its LOCAL_RANK.

    Raises:
        InputError: the processes are more than the devices, or the rendezvous at MASTER_ADDR and MASTER_PORT failed.
        Interrupted: the launcher ended.
    """
    global _store
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    refuse_excess_processes(local_processes(), device)
    backend = "gloo"
    kind, _, index = device.partition(":")
    if kind != "cpu":
        torch.get_device_module(kind).set_device(int(index or os.environ.get("LOCAL_RANK", "0")))
        backend = f"cpu:gloo,{kind}:{dist.get_default_backend_for_device(kind)}"
    launcher = int(os.environ.get(LAUNCHER, os.getppid()))
    if dist.is_torchelastic_launched():
        _watch_launcher(launcher)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=_MEETING))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        _store = store
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
    """Start a thread that sends SIGTERM to this process when the launcher is no longer its parent.

    A process that does not leave the group in time is stuck in a call, such as a collective of a GPU, and is ended.
    """
    global _left
    _left = left = threading.Event()

    def watch() -> None:
        while os.getppid() == launcher:
            if left.wait(_GLANCE):
                return
        STOP.request(_end_of(launcher))
        os.kill(os.getpid(), signal.SIGTERM)
        if not left.wait(PATIENCE.total_seconds()):
            line = f"skipway: {_end_of(launcher)} did not stop this process, which was stuck; saved files are intact\n"
            os.write(2, line.encode())
            os._exit(Interrupted.exit_code)

    threading.Thread(target=watch, name="skipway-launcher", daemon=True).start()


def _end_of(launcher: int) -> str:
    return f"the end of its launcher (process {launcher})"


def leave_group() -> None:
    """Leave the process group and stop watching the launcher."""
    global _store
    _left.set()
    _store = None
    # Before a restart, this process ends at once: the others may wait for it, and it would wait for them.
    if dist.is_available() and dist.is_initialized() and not is_restart_requested():
        dist.destroy_process_group()


def joined_store() -> dist.Store | None:
    """Return the store through which the processes met, or None in a single process."""
    return _store


def local_device(device: str) -> torch.device:
    """Return the device of this process: with several processes, the accelerator with its LOCAL_RANK."""
    if device in ("cuda", "xpu") and world_size() > 1:  # a device of an index is the only one of a machine
        return torch.device(device, int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device(device)
