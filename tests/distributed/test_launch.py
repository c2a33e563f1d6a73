import logging
import os
import signal
import socket
import sys
import threading
import time

import pytest
import torch
from processes import environment, free_port, launched, outputs_of, rank_environment, start
from safetensors.torch import load_file
from small_runs import image_folder

from skipway.distributed import process_group, unequal_work
from skipway.distributed.launch import launch
from skipway.errors import InputError, Interrupted, SkipwayError
from skipway.utils.stop_signals import STOP, StopFlag

WORDS = ["--epochs", "2", "-b", "16", "--save-every", "0", "--threads", "1", "-m", "resnet20"]
needs_processes = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without processes")

# Python imports it in every process that has its folder on the path: rank 1 is killed after the first saved step.
KILLED = """
import os, pathlib, signal
if os.environ.get("RANK") == "1":
    import torch
    backward = torch.Tensor.backward
    def fatal(*arguments, **options):
        if any(pathlib.Path("runs/broken/weights/last").glob("step-0000000[1-9]*")):
            os.kill(os.getpid(), signal.SIGKILL)
        return backward(*arguments, **options)
    torch.Tensor.backward = fatal
"""


@needs_processes
def test_a_killed_process_ends_the_job_at_once_and_is_named_and_the_run_goes_on_to_the_same_bits(tmp_path):
    image_folder(tmp_path / "kinds")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    code, text = launched(tmp_path, *torchrun, "skipway", "train", "kinds", *WORDS, "--name", "whole")
    assert code == 0 and text.count("final val accuracy: ") == 1, text
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(KILLED)
    path = f"{tmp_path / 'hook'}:{environment()['PYTHONPATH']}"
    words = ["skipway", "train", "kinds", *WORDS, "--name", "broken", "--nproc", "2"]
    code, text = launched(tmp_path, *words, PYTHONPATH=path)
    assert code == 75, text
    assert "process 1 of 2 was killed by SIGKILL, and all were stopped. Checkpoints are saved. Resume with" in text
    assert "Traceback" not in text
    code, text = launched(tmp_path, "skipway", "train", "--resume", "runs/broken", "--nproc", "2")
    assert code == 0 and "resuming" in text, text
    expected, resumed = (
        load_file(tmp_path / "runs" / name / "weights" / "best.safetensors") for name in ("whole", "broken")
    )
    assert set(expected) == set(resumed) and all(torch.equal(v, resumed[k]) for k, v in expected.items())


def ranks(folders, *words):
    """Two processes, as somebody starts them by hand: [(exit code, output with errors)], each from its own words."""
    port = free_port()
    processes = [
        start(sys.executable, "-m", "skipway", *own, cwd=folder, env=rank_environment(k, 2, port))
        for k, (folder, own) in enumerate(zip(folders, words, strict=True))
    ]
    outputs = outputs_of(*processes)
    return [(p.returncode, output + errors) for p, (output, errors) in zip(processes, outputs, strict=True)]


@needs_processes
def test_processes_that_were_told_different_things_do_not_train(tmp_path):
    words = [["train", "digits", *WORDS, "--seed", str(k), "--lr", "0.1"] for k in (0, 1)]
    for code, text in ranks([tmp_path, tmp_path], *words):
        assert code == 2 and "Traceback" not in text
        assert (
            "expected equal settings in all processes, got seed is 0 in process 0 and 1 in process 1. Start all" in text
        )


@needs_processes
def test_processes_that_see_different_data_do_not_train(tmp_path):
    for k in (0, 1):
        image_folder(tmp_path / str(k) / "kinds", count=4 + k)
    words = ["train", "kinds", *WORDS, "-o", tmp_path / "runs"]
    for code, text in ranks([tmp_path / "0", tmp_path / "1"], words, words):
        assert code == 2 and "Traceback" not in text
        assert "in all processes, got the fingerprint of the images is " in text


@needs_processes
def test_a_process_that_cannot_meet_the_others_says_where(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = ["-m", "skipway", "train", "digits", *WORDS]
        process = start(sys.executable, *words, cwd=tmp_path, env=rank_environment(0, 2, port))
        ((output, errors),) = outputs_of(process)
    text = output + errors
    assert process.returncode == 2 and "Traceback" not in text
    assert f"process 0 cannot connect to 127.0.0.1:{port}: " in text and "which choose a free port" in text


ORPHAN = {"TORCHELASTIC_RUN_ID": "gone", "TORCHELASTIC_USE_AGENT_STORE": "True", process_group.LAUNCHER: "-1"}


@needs_processes
def test_a_process_whose_launcher_is_gone_waits_for_nobody(tmp_path):
    environment = {**rank_environment(1, 2, free_port()), **ORPHAN}  # nobody listens there, as after the launcher's end
    words = ["-m", "skipway", "train", "digits", *WORDS]
    process = start(sys.executable, *words, cwd=tmp_path, env=environment)
    ((output, errors),) = outputs_of(process)
    assert process.returncode == 75 and not output
    assert "process 1: stopped by the end of its launcher (process -1)" in errors and errors.count("\n") == 1


@needs_processes
def test_a_connection_that_breaks_with_the_launcher_is_no_fault(monkeypatch):
    def broken(*_, **__):
        raise torch.distributed.DistNetworkError("Broken pipe")

    for name, value in {**rank_environment(1, 2, 1), **ORPHAN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process_group, "_watch_launcher", lambda launcher: None)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(None, 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", broken)
    with pytest.raises(Interrupted, match="stopped by the end of its launcher .process -1. before training began"):
        process_group.join_group("cpu")
    monkeypatch.setenv(process_group.LAUNCHER, str(os.getppid()))
    with pytest.raises(InputError, match="process 1 cannot connect to .*Broken pipe"):
        process_group.join_group("cpu")


def test_the_end_of_the_launcher_stops_a_training_as_a_signal_does(monkeypatch):
    monkeypatch.setattr(STOP, "name", "")
    with StopFlag() as stop:
        process_group._watch_launcher(os.getppid())
        process_group.leave_group()
        wait_for(lambda: "skipway-launcher" not in [thread.name for thread in threading.enumerate()])
        assert not stop.requested
        process_group._watch_launcher(-1)
        wait_for(lambda: stop.requested)
        process_group.leave_group()
    assert STOP.name == "the end of its launcher (process -1)"


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


FREEZES = """
import datetime, os, signal
from skipway.distributed import collectives, process_group
from skipway.errors import Interrupted

process_group.PATIENCE = datetime.timedelta(seconds=3)
try:
    with process_group.joined_group("cpu"):
        collectives.all_gather("both are here")
        if collectives.rank() == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        collectives.all_gather("one is frozen")
except Interrupted as error:
    print(error, flush=True)
    os._exit(error.exit_code)
"""


@needs_processes
def test_a_frozen_process_ends_the_others_after_the_timeout():
    port = free_port()
    waiting, frozen = (start(sys.executable, "-c", FREEZES, env=rank_environment(k, 2, port)) for k in (0, 1))
    try:
        ((output, errors),) = outputs_of(waiting)
        assert waiting.returncode == 75, errors
        assert output == "another process does not respond; checkpoints are saved. Resume with --resume RUN\n"
        assert frozen.poll() is None
    finally:
        frozen.kill()
        frozen.communicate()


STUCK = """
import datetime, os, time
from skipway.distributed import process_group
from skipway.utils.stop_signals import StopFlag

process_group.PATIENCE = datetime.timedelta(seconds=1)
with StopFlag():
    process_group._watch_launcher(-1)
    time.sleep(600)  # a call that no signal interrupts: Python resumes it after its handler
"""


def test_a_process_that_is_stuck_ends_after_its_launcher():
    process = start(sys.executable, "-c", STUCK)
    ((output, errors),) = outputs_of(process)
    assert process.returncode == 75 and not output
    assert errors.startswith(
        "skipway: the end of its launcher (process -1) did not stop this process, which was stuck;"
    )


UNEQUAL = """
import datetime, os, signal, sys, time
from skipway.distributed import collectives, process_group, unequal_work
from skipway.errors import Interrupted
from skipway.utils.stop_signals import StopFlag

process_group.PATIENCE = datetime.timedelta(seconds=2)
unequal_work._BEAT = 0.1
how = sys.argv[1]
try:
    with process_group.joined_group("cpu"):
        with unequal_work.unequal_work(StopFlag()):
            if collectives.rank() == 1 and how == "slow":
                time.sleep(5)
            elif collectives.rank() == 1 and how == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif collectives.rank() == 1:
                raise Interrupted("left alone")
        print(collectives.all_gather("done"), flush=True)
except Interrupted as error:
    print(error, flush=True)
    os._exit(error.exit_code)
"""
RESUME = "checkpoints are saved. Resume with --resume RUN"


@needs_processes
@pytest.mark.parametrize(
    "how, expected",
    [
        ("slow", "['done', 'done']"),
        ("failed", f"lost the connection to another process; {RESUME}"),
        ("frozen", f"another process does not respond; {RESUME}"),
    ],
)
def test_a_process_that_works_for_longer_than_the_timeout_is_waited_for(how, expected):
    port = free_port()
    environments = [rank_environment(k, 2, port) for k in (0, 1)]
    waiting, other = (start(sys.executable, "-c", UNEQUAL, how, env=environment) for environment in environments)
    try:
        ((output, errors),) = outputs_of(waiting)
        assert output == f"{expected}\n" and waiting.returncode == (0 if how == "slow" else 75), errors
    finally:
        other.kill()
        other.communicate()


def test_a_stop_ends_the_wait_for_the_others(monkeypatch):
    store = torch.distributed.HashStore()
    stop = StopFlag()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted, match="stopped by SIGTERM before training. Run it again."):
        unequal_work._wait(store, ["unequal-work/1/0"], stop)


def launched_in_vain(monkeypatch, error):
    """What `launch` raises when torch's launcher raises `error`."""

    def fail(*_):
        raise error

    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL", process_group.LAUNCHER):
        monkeypatch.setenv(name, "1")  # which launch sets, too: here until the end of the test
    monkeypatch.setattr(logging.Logger, "setLevel", lambda *_: None)
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: fail)
    with pytest.raises(SkipwayError) as caught:
        launch(2, ["train", "digits"])
    return caught.value


@needs_processes
def test_what_every_process_refuses_ends_all_with_its_exit_code(monkeypatch, tmp_path):
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

    failure = ProcessFailure(local_rank=1, pid=1, exitcode=2, error_file=str(tmp_path / "none"))
    error = launched_in_vain(monkeypatch, ChildFailedError("skipway", {1: failure}))
    assert error.exit_code == 2 and "process 1 of 2 ended with exit code 2. See the error that it printed" in str(error)


@needs_processes
def test_a_signal_to_the_launcher_says_that_the_work_is_saved(monkeypatch):
    from torch.distributed.elastic.multiprocessing.api import SignalException

    error = launched_in_vain(monkeypatch, SignalException("", signal.SIGTERM))
    assert isinstance(error, Interrupted)
    assert str(error) == "stopped by SIGTERM: the processes saved their progress. Resume with --resume RUN."
