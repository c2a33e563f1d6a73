"""Launcher of several training processes on this machine, based on torchelastic. If one fails, all are stopped."""

import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path

from skipway.distributed import process_group, restart
from skipway.errors import Interrupted, SkipwayError
from skipway.utils.devices import available_threads

__all__ = ["launch"]


def launch(count: int, words: list[str], *, quiet: bool = False, resumes: bool = False) -> None:
    """Run `skipway WORDS` in several processes that train together, and wait for them.

    They start again from the newest checkpoint if one of them requests it; see `restart`.

    Args:
        count: number of processes.
        words: command-line arguments.
        quiet: a restarted run prints errors only.
        resumes: the words resume a run, and so are those of a restart.

    Raises:
        Interrupted: the processes were stopped, or one was killed by a signal.
        SkipwayError: a process failed and printed its error; has its exit code.
    """
    os.environ[process_group.LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings of a lost process print pages of C++ frames
    os.environ.setdefault("OMP_NUM_THREADS", str(available_threads(count).count))
    with tempfile.TemporaryDirectory(prefix="skipway-launch-") as folder:
        path = Path(folder) / "request.json"
        os.environ[restart.REQUEST] = str(path)
        try:
            while request := _run(count, words, path):
                os.environ[restart.MICROBATCHES] = str(request.microbatches)
                if not resumes:
                    words = ["train", "--resume", request.folder, *(["--quiet"] if quiet else [])]
        finally:
            for name in (restart.REQUEST, restart.MICROBATCHES):
                os.environ.pop(name, None)


def _run(count: int, words: list[str], path: Path) -> restart.RestartRequest | None:
    """Run `skipway WORDS` in processes to their end; return the request of a restart that one has left at `path`."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the failure is reported here in one line
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "skipway", *words)
        return None
    except SignalException as error:
        raise Interrupted(
            f"stopped by {error.sigval.name}: the processes saved their progress. Resume with --resume RUN."
        ) from None
    except ChildFailedError as error:
        if request := restart.take_request(path):
            return request
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise Interrupted(
                f"process {rank} of {count} was killed by {signal.Signals(-failure.exitcode).name}, and all were "
                "stopped. Checkpoints are saved. Resume with --resume RUN."
            ) from None
        failed = SkipwayError(
            f"process {rank} of {count} ended with exit code {failure.exitcode}. See the error that it printed."
        )
        failed.exit_code = failure.exitcode
        raise failed from None
