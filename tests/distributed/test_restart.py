import os
from types import SimpleNamespace

import pytest
import torch
from processes import environment, launched
from safetensors.torch import load_file
from small_runs import image_folder

from skipway.distributed import collectives, restart
from skipway.distributed.restart import RestartRequest, least_microbatches, request_restart, take_request
from skipway.errors import Interrupted, StorageError
from skipway.training.oom_retry import retry_with_microbatches
from skipway.utils.console import Console

WORDS = ["--epochs", "2", "-b", "16", "--save-every", "0", "--threads", "1", "-m", "resnet20", "--nproc", "2", "--fsdp"]

# Python imports it in every process that has its folder on the path: rank 1 has memory for few samples.
TIGHT = """
import os
if os.environ.get("RANK") == "1":
    import torch
    forward = torch.nn.Conv2d.forward
    def tight(self, x):
        if self.training and len(x) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, x)
    torch.nn.Conv2d.forward = tight
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without processes")
def test_sharded_processes_start_again_with_microbatches_if_one_lacks_memory(tmp_path):
    image_folder(tmp_path / "kinds")
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(TIGHT)
    path = f"{tmp_path / 'hook'}{os.pathsep}{environment()['PYTHONPATH']}"
    words = ["skipway", "train", "kinds", *WORDS, "--quiet", "--name"]
    code, text = launched(tmp_path, *words, "tight", PYTHONPATH=path)
    assert code == 0, text
    line = "process 1: ran out of memory with batch size 16: all processes start again from the last checkpoint, with "
    assert f"{line}each batch split into 2 microbatches (batch norm uses the statistics of a microbatch)\n" in text
    assert "lost the connection" not in text and "Traceback" not in text and "resuming" not in text
    code, text = launched(tmp_path, *words, "whole", **{restart.MICROBATCHES: "2"})
    assert code == 0 and "ran out of memory" not in text
    first, second = (
        load_file(tmp_path / "runs" / name / "weights" / "best.safetensors") for name in ("tight", "whole")
    )
    assert set(first) == set(second) and all(torch.equal(v, second[k]) for k, v in first.items())


def sharded(error=None, batch_size=16, pieces=1):
    """What `retry_with_microbatches` takes of a run whose weights are sharded, and whose step raises an error."""
    trainer = SimpleNamespace(settings=SimpleNamespace(fsdp=True), state=SimpleNamespace(num_microbatches=pieces))
    trainer.takes_steps = True

    def fit():
        raise error or MemoryError

    return {"fit": fit, "trainer": trainer, "batch_size": batch_size, "console": Console(quiet=True)}


def test_a_process_asks_the_launcher_that_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setenv(restart.REQUEST, str(tmp_path / "request.json"))
    with pytest.raises(
        Interrupted, match="all processes start again from the last checkpoint, with each batch split into 4"
    ):
        retry_with_microbatches(**sharded(pieces=2), folder=tmp_path / "run" / "weights" / "last")
    with pytest.raises(SystemExit) as end:
        collectives.explain_peer(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    assert end.value.code == Interrupted.exit_code
    assert take_request(tmp_path / "request.json") == RestartRequest(str(tmp_path / "run"), 4)
    assert take_request(tmp_path / "request.json") is None and not restart.is_restart_requested()


def test_without_such_a_launcher_the_run_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.delenv(restart.REQUEST, raising=False)
    assert not request_restart(tmp_path, 2) and not restart.is_restart_requested()
    with pytest.raises(StorageError, match="ran out of memory with batch size 16. Use --nproc, which starts all"):
        retry_with_microbatches(**sharded(), folder=tmp_path)
    with pytest.raises(StorageError, match="ran out of memory with batch size 8 in 2 microbatches"):
        retry_with_microbatches(**sharded(batch_size=8, pieces=2), folder=tmp_path)
    with pytest.raises(RuntimeError, match="shapes"):
        retry_with_microbatches(**sharded(RuntimeError("shapes differ")), folder=tmp_path)


def test_a_restarted_run_uses_the_microbatches_of_the_request(tmp_path, monkeypatch):
    assert least_microbatches() == 1
    monkeypatch.setenv(restart.MICROBATCHES, "4")
    values = sharded()
    values["fit"] = lambda: values["trainer"].state
    assert retry_with_microbatches(**values, folder=tmp_path).num_microbatches == 4
