"""Several processes on this machine for one training, by torch's own launcher; the first that fails ends them all."""

import logging
import os
import signal
import sys
import uuid

from skipway.distributed import process_group
from skipway.errors import Interrupted, SkipwayError
from skipway.utils.devices import available_threads

__all__ = ["launch"]


def launch(count: int, words: list[str]) -> None:
    """Run `skipway WORDS` in `count` processes that train together, and wait for them.

    Raises:
        Interrupted: they were stopped, or one of them was killed; names it.
        SkipwayError: one of them failed and has said why; has its exit code.
    """
    os.environ[process_group.LAUNCHER] = str(os.getpid())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings of a lost process are pages of C++ frames
    os.environ.setdefault("OMP_NUM_THREADS", str(available_threads(count).count))
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in ("torch.distributed.elastic", "torch.distributed.launcher", "torch"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they tell of a failure is a screen of tables
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
    except SignalException as error:
        raise Interrupted(f"stopped by {error.sigval.name}; the processes have saved what they had trained") from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            raise Interrupted(
                f"process {rank} of {count} was ended by {signal.Signals(-failure.exitcode).name}, and the others with "
                "it; what is saved is whole: go on with --resume RUN"
            ) from None
        failed = SkipwayError(
            f"process {rank} of {count} has ended with exit code {failure.exitcode}, for what it said"
        )
        failed.exit_code = failure.exitcode
        raise failed from None
