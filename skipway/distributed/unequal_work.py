"""Waiting for processes whose work before a collective may take longer than its timeout, such as decoding images.

Each process sends a sign of life through the store of the process group while it works. The others wait for it as long
as these arrive, so that only a process that ended or froze is reported.
"""

import contextlib
import threading
import time
from collections.abc import Iterator

import torch.distributed as dist

from skipway.distributed import collectives, process_group
from skipway.errors import Interrupted
from skipway.utils.stop_signals import StopFlag

__all__ = ["unequal_work"]

_BEAT = 2.0  # seconds between two signs of life
_POLL = 0.1  # seconds between two checks of the others
_DONE, _LEFT = "done", "left"
_calls = 0  # every process has the same number, because all enter each context


@contextlib.contextmanager
def unequal_work(stop: StopFlag) -> Iterator[None]:
    """Wait at the end of the context until every process has reached it, however long the work in it takes.

    Args:
        stop: flag that ends the waiting when it is set.

    Raises:
        DistNetworkError: another process left the context with an error.
        DistStoreError: another process sent no sign of life for as long as the timeout of collectives.
        Interrupted: `stop` was set.
    """
    global _calls
    store = process_group.joined_store()
    if store is None:
        yield
        return
    _calls += 1
    keys = [f"unequal-work/{_calls}/{rank}" for rank in range(collectives.world_size())]
    own, ended = keys[collectives.rank()], threading.Event()
    connection = store.clone()  # type: ignore[attr-defined]  # its own, because a lock guards that of the store
    sender = threading.Thread(target=_send, args=(connection, own, ended), name="skipway-alive", daemon=True)
    sender.start()
    outcome = _LEFT
    try:
        yield
        outcome = _DONE
    finally:
        ended.set()
        sender.join()
        with contextlib.suppress(RuntimeError):  # the store ended with its process, which the next collective reports
            store.set(own, outcome)
    _wait(store, keys, stop)


def _send(store: dist.Store, key: str, ended: threading.Event) -> None:
    """Write another number to the store every few seconds until `ended` is set or the store has ended."""
    number = 0
    with contextlib.suppress(RuntimeError):
        while not ended.is_set():
            number += 1
            store.set(key, str(number))
            ended.wait(_BEAT)


def _wait(store: dist.Store, keys: list[str], stop: StopFlag) -> None:
    patience = process_group.PATIENCE.total_seconds()
    latest = dict.fromkeys(keys, ("", time.monotonic()))
    while waiting := [key for key, (sign, _) in latest.items() if sign != _DONE]:
        for key in waiting:
            sign = store.get(key).decode() if store.check([key]) else ""
            if sign == _LEFT:
                raise dist.DistNetworkError(f"connection closed by process {key.rpartition('/')[2]}")
            if sign != latest[key][0]:
                latest[key] = (sign, time.monotonic())
            elif time.monotonic() - latest[key][1] > patience:
                raise dist.DistStoreError(f"timed out waiting for process {key.rpartition('/')[2]}")
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} before training. Run it again.")
        time.sleep(_POLL)
