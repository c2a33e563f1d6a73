"""Restart of the processes of `--nproc` from the newest checkpoint, with more microbatches.

Processes that share the weights by FSDP cannot complete a step in which one of them runs out of memory, because the
others wait for its shards. That process leaves a request and ends. The launcher ends the others, reads the request and
starts all of them again.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from skipway.utils.atomic_files import write_file

__all__ = [
    "MICROBATCHES",
    "REQUEST",
    "RestartRequest",
    "is_restart_requested",
    "least_microbatches",
    "request_restart",
    "take_request",
]

REQUEST = "SKIPWAY_RESTART"  # environment variable with the path of the request; set by the launcher
MICROBATCHES = "SKIPWAY_MICROBATCHES"  # environment variable with the fewest microbatches of a batch


@dataclass(frozen=True)
class RestartRequest:
    """Request to resume a run.

    Attributes:
        folder: run folder.
        microbatches: fewest microbatches of a batch.
    """

    folder: str
    microbatches: int


def request_restart(folder: Path, microbatches: int) -> bool:
    """Ask the launcher to resume the run in `folder` once this process has ended.

    Returns:
        False without a launcher that does so, such as with torchrun.
    """
    path = os.environ.get(REQUEST)
    if not path:
        return False
    write_file(Path(path), json.dumps(asdict(RestartRequest(str(folder), microbatches))).encode())
    return True


def is_restart_requested() -> bool:
    """Return True if a process has requested a restart, so that the others end too."""
    return os.path.exists(os.environ.get(REQUEST, ""))


def take_request(path: Path) -> RestartRequest | None:
    """Return the request that a process left at `path` and remove it, or None if there is none."""
    if not path.exists():
        return None
    request = RestartRequest(**json.loads(path.read_text(encoding="utf-8")))
    path.unlink()
    return request


def least_microbatches() -> int:
    """Return the fewest microbatches of a batch: 1, or more after a restart.

    >>> least_microbatches()
    1
    """
    return int(os.environ.get(MICROBATCHES) or 1)
