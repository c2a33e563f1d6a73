"""Run commands in processes of their own; one bound for all ends those that hang, and no busy machine reaches it."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import skipway

HANG = 900  # seconds, less than pytest's own limit so that the output of what hangs is shown


def environment(**variables):
    """Return this process's environment in which the package under test is the one that is imported."""
    return {**os.environ, "PYTHONPATH": str(Path(skipway.__file__).parent.parent), **variables}


def rank_environment(rank, count, port):
    """Return the environment of one of `count` processes that meet at `port`."""
    return environment(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        OMP_NUM_THREADS="1",
    )


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(*command, **options):
    """Run a command to its end and return it with its output as text."""
    defaults = {"capture_output": True, "text": True, "timeout": HANG, "env": environment()}
    return subprocess.run([str(word) for word in command], **{**defaults, **options})


def run_python(code, *arguments, **options):
    """Run `code` in a fresh interpreter."""
    return run(sys.executable, "-c", code, *arguments, **options)


def start(*command, **options):
    """Start a command whose output `outputs_of` reads."""
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    return subprocess.Popen([str(word) for word in command], **{**defaults, **options})


def outputs_of(*processes):
    """Wait for processes that need each other; return (output, errors) of each, and leave none behind."""
    try:
        return [process.communicate(timeout=HANG) for process in processes]
    finally:
        for process in processes:
            process.kill()


def launched(folder, *words, **variables):
    """(exit code, output with errors) of a command that starts processes of its own."""
    process = start(sys.executable, "-m", *words, cwd=folder, env=environment(GLOO_SOCKET_IFNAME="lo", **variables))
    ((output, errors),) = outputs_of(process)
    return process.returncode, output + errors


def wait_until(condition, process):
    """Wait for `condition()` as long as `process` lives."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert process.poll() is None, "the process has ended before what it was to do"
        assert time.monotonic() < deadline, "nothing has happened"
        time.sleep(0.02)
