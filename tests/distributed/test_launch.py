import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import pictures

import skipway

WORDS = ["train", "digits", "--epochs", "3", "--save-every", "0", "--threads", "1", "-m", "resnet20"]
needs_processes = pytest.mark.skipif(
    not torch.distributed.is_available() or not Path("/proc").is_dir(), reason="torch without processes, or no /proc"
)


def start(folder, *words):
    paths = {**os.environ, "PYTHONPATH": str(Path(skipway.__file__).parent.parent), "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=folder,
        env=paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process, seconds=200):
    try:
        return process.communicate(timeout=seconds)[0]
    finally:
        process.kill()


def child_of(parent, rank):
    """The process number of a rank that `parent` has started."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f" {parent} " in (entry / "stat").read_text().partition(")")[2]:
                if f"\0RANK={rank}\0" in (entry / "environ").read_bytes().decode("latin-1"):
                    return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"{parent} has no child of rank {rank}")


@needs_processes
def test_a_killed_process_ends_the_job_at_once_and_is_named_and_the_run_goes_on_to_the_same_bits(tmp_path):
    whole = start(
        tmp_path,
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "skipway",
        *WORDS,
        "--name",
        "whole",
    )
    text = said(whole)
    assert whole.returncode == 0 and text.count("finished: validation accuracy") == 1, text
    broken = start(tmp_path, "skipway", *WORDS, "--name", "broken", "--nproc", "2")
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("runs/broken/weights/last/step-0000000[1-9]*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child_of(broken.pid, 1), 9)
    begun = time.monotonic()
    text = said(broken)
    assert time.monotonic() - begun < 10 and broken.returncode == 75, text
    assert "process 1 of 2 was ended by SIGKILL, and the others with it; what is saved is whole" in text
    assert "Traceback" not in text
    resumed = start(tmp_path, "skipway", "train", "--resume", "runs/broken", "--nproc", "2")
    text = said(resumed)
    assert resumed.returncode == 0 and "going on with" in text, text
    wanted, found = (
        load_file(tmp_path / "runs" / name / "weights" / "best.safetensors") for name in ("whole", "broken")
    )
    assert set(wanted) == set(found) and all(torch.equal(v, found[k]) for k, v in wanted.items())


def rank(folder, number, port, *words, **environment):
    """One process of two, as somebody starts it by hand."""
    paths = {
        **os.environ,
        "PYTHONPATH": str(Path(skipway.__file__).parent.parent),
        "GLOO_SOCKET_IFNAME": "lo",
        "WORLD_SIZE": "2",
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "skipway", *words],
        cwd=folder,
        env=paths,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@needs_processes
def test_processes_that_were_told_different_things_do_not_train(tmp_path):
    port = free_port()
    both = [rank(tmp_path, k, port, *WORDS, "--seed", str(k), "--lr", "0.1") for k in (0, 1)]
    for text, process in [(said(process), process) for process in both]:
        assert process.returncode == 2 and "Traceback" not in text
        assert "training do not agree: seed is 0 in process 0 and 1 in process 1; start all with one command" in text


@needs_processes
def test_processes_that_see_different_data_do_not_train(tmp_path):
    port = free_port()
    for k in (0, 1):
        pictures(tmp_path / str(k) / "kinds", count=4 + k)
    words = ["train", "kinds", *WORDS[2:], "-o", str(tmp_path / "runs")]
    both = [rank(tmp_path / str(k), k, port, *words) for k in (0, 1)]
    for text, process in [(said(process), process) for process in both]:
        assert process.returncode == 2 and "Traceback" not in text
        assert "do not agree: the fingerprint of the pictures is " in text


@needs_processes
def test_a_process_that_cannot_meet_the_others_says_where(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = rank(tmp_path, 0, port, *WORDS)
        text = said(process)
    assert process.returncode == 2 and "Traceback" not in text
    assert f"process 0 cannot meet the others at 127.0.0.1:{port} (" in text and "which choose a free port" in text


@needs_processes
def test_what_every_process_refuses_ends_all_with_its_exit_code(tmp_path):
    refused = start(tmp_path, "skipway", "train", "nowhere", "--nproc", "2")
    text = said(refused)
    assert refused.returncode == 2 and "there is no data at 'nowhere'" in text and "Traceback" not in text
    assert "of 2 has ended with exit code 2, for what it said" in text
