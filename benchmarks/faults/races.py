"""Races: two simultaneous starts or resumes in the same folder. One of them must succeed, without loss."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from faults.counting import Count, Settings
from faults.kills import digest
from skipway.cli import app
from skipway.runs.train_run import train

RACES = 100  # per kind
_FILES = ("config.yaml", "metrics.json", "report.html")
_MODEL = {"epochs": 2, "threads": 1, "save_every": 0}


def parts(settings: Settings) -> Iterator[Count]:
    """Run races of two starts and of two resumes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="skipway-races-") as name:
        place = Path(name)
        os.chdir(place)
        train("wine", output="runs", name="whole", console=None, **_MODEL)
        train("wine", output="runs", name="half", console=None, **{**_MODEL, "epochs": 1})
        shutil.copytree("runs/half", "runs/longer")
        together(["train", "--resume", "runs/longer", "--epochs", "2"], times=1)
        expected = {"start": digest(place / "runs" / "whole"), "resume": digest(place / "runs" / "longer")}
        for kind in expected:
            count = settings.count(f"races: two at once {kind} one run", RACES)
            for number in count:
                folder = Path("runs") / f"{kind}-{number}"
                words = ["train", "wine", "--epochs", "2", "--threads", "1", "--save-every", "0", "--name", folder.name]
                if kind == "resume":
                    shutil.copytree("runs/half", folder)
                    words = ["train", "--resume", str(folder), "--epochs", "2"]
                codes = together(words, times=2)
                if sorted(codes) not in ([0, 2], [0, 0] if kind == "resume" else [0, 2]):
                    count.fault("broken", f"exit codes {codes}")
                missing = [
                    file for file in ("config.yaml", "metrics.json", "report.html") if not (folder / file).exists()
                ]
                if missing:
                    count.fault("lost", f"{missing} after exit codes {codes}")
                elif digest(folder) != expected[kind]:
                    count.fault("wrong", f"other weights after exit codes {codes}")
                shutil.rmtree(folder, ignore_errors=True)
            yield count
        os.chdir("/")


def together(words: list[str], times: int) -> list[int]:
    """Run a command in several forked processes that start simultaneously; return their exit codes."""
    ready, go = os.pipe()
    children = []
    for _ in range(times):
        child = os.fork()
        if child == 0:
            os.close(go)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            os.read(ready, 1)  # returns in all processes when the other end is closed
            code = 70
            try:
                app.main(list(words))
            except SystemExit as error:
                code = int(error.code or 0)
            os._exit(code)
        children.append(child)
    os.close(ready)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
