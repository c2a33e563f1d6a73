"""Kills of trainings at random times. Each resumed run must end with the same bits as an undisturbed one.

Each kind of run has an undisturbed reference run. Other runs receive SIGKILL, SIGTERM or SIGINT at times spread over
the run (start-up, decoding, training, saving, evaluation, report). They are started again, with --resume if there is a
run folder. All tensors of weights/best.safetensors and weights/last are compared.
"""

import csv
import hashlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from faults.counting import Count, Settings, finish, kill_all, run, start
from skipway.training import checkpoint

KILLS = 60  # per kind of run
KILLS_A_RUN = 5
_DIGITS = ["digits", "-m", "resnet20", "--epochs", "2", "--ema", "0.9", "--drop-path", "0.1"]
_TABLE_OF_IMAGES = ["-m", "resnet20", "--epochs", "2", "--save-every", "0"]
KINDS = {
    "images": _DIGITS,
    "images, saved within epochs": [*_DIGITS, "--grad-accum-steps", "2", "--save-every", "0"],
    "tables": ["wine", "--epochs", "12", "--save-every", "0"],
    "growth": ["digits", "--grow", "resnet20:1,resnet32:1", "--save-every", "0"],
    "several labels": ["pictures/table.csv", "--target", "tags", "--label-sep", "|", *_TABLE_OF_IMAGES],
    "numbers, with columns": ["pictures/table.csv", "--target", "x,y", "--features", "size,kind", *_TABLE_OF_IMAGES],
    "two processes": ["digits", "-m", "resnet20", "--epochs", "1", "--save-every", "0", "--nproc", "2"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STOPPED = (0, 75, 130)  # exit codes after a signal that can be handled
TEMPORARIES = (".tmp-*", ".*.tmp-*")


def parts(settings: Settings) -> Iterator[Count]:
    """Kill runs of every kind."""
    for kind, words in KINDS.items():
        count = settings.count(f"kills: {kind}", KILLS)
        with tempfile.TemporaryDirectory(prefix="skipway-kills-") as folder:
            write_pictures(Path(folder) / "pictures")
            kill_runs(count, words, Path(folder))
        yield count


def write_pictures(folder: Path, count: int = 400) -> None:
    """Write a table of images with labels, numbers and columns next to them."""
    generator = np.random.default_rng(0)
    folder.mkdir()
    with open(folder / "table.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "tags", "x", "y", "size", "kind"])
        for i in range(count):
            Image.fromarray(generator.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(folder / f"{i}.png")
            tags = "|".join(tag for tag in ("red", "green", "blue") if generator.random() < 0.4)
            numbers = (f"{value:.4f}" for value in generator.normal(size=3))
            table.writerow([f"{i}.png", tags, *numbers, generator.choice(["a", "b", "c"])])


def kill_runs(count: Count, words: list[str], place: Path) -> None:
    """Kill runs of a kind, each KILLS_A_RUN times."""
    draw = random.Random(count.seed)
    begin = time.monotonic()
    code, errors = run(command(place, "whole", words), place)
    life = time.monotonic() - begin
    if code:
        count.fault("broken", f"the undisturbed run ended with {code}: {errors}")
        return
    expected = digest(place / "runs" / "whole")
    name, spent = "killed-0", 0
    for number in count:
        hit = False
        while not hit:
            hit = killed(count, command(place, name, words), place, draw.uniform(0.05, life), draw)
            if not hit:
                life = max(0.9 * life, 2.0)  # the machine is faster now, or the run was almost complete
                judge(count, place, name, words, expected, max(spent, 1))
                name, spent = f"killed-{number}-{draw.randrange(10**9)}", 0
        spent += 1
        if spent == KILLS_A_RUN:
            judge(count, place, name, words, expected, spent)
            name, spent = f"killed-{number}-{draw.randrange(10**9)}", 0
    if spent:
        judge(count, place, name, words, expected, spent)


def command(place: Path, name: str, words: list[str]) -> list[str]:
    """Return the command that starts a run, or resumes it if its folder exists."""
    if (place / "runs" / name / "config.yaml").exists():
        return ["train", "--resume", f"runs/{name}", *(["--nproc", "2"] if "--nproc" in words else [])]
    return ["train", *words, "--threads", "1", "-o", "runs", "--name", name]


def killed(count: Count, words: list[str], place: Path, moment: float, draw: random.Random) -> bool:
    """Start or resume a run and send it a signal after `moment` seconds; return False if it ended before."""
    process = start(words, place)
    number = draw.choice(SIGNALS)
    deadline = time.monotonic() + moment
    while time.monotonic() < deadline:
        if process.poll() is not None:
            code, errors = finish(process)
            if code:
                count.fault("broken", f"without a signal, the run ended with {code}: {errors}")
            return False
        time.sleep(0.01)
    if number == signal.SIGKILL and draw.random() < 0.5:
        kill_all(process.pid)
    else:
        os.kill(process.pid, number)
    code, errors = finish(process, 60)
    if code != -number and code not in STOPPED:
        count.fault("broken", f"{number.name} after {moment:.1f} s: exit code {code}: {errors[-200:]}")
    return True


def judge(count: Count, place: Path, name: str, words: list[str], expected: str, spent: int) -> None:
    """Finish a run and compare it with the reference. If they differ, each of its kills counts as a fault."""
    code, errors = run(command(place, name, words), place)
    folder = place / "runs" / name
    leftovers = [path.name for pattern in TEMPORARIES for path in folder.rglob(pattern)]
    if code or leftovers:
        for _ in range(spent):
            count.fault("lost", f"{name} ended with {code} and {leftovers}: {errors}")
    elif digest(folder) != expected:
        for _ in range(spent):
            count.fault("wrong", f"{name} differs from the undisturbed run")


def digest(folder: Path) -> str:
    """Compute the SHA-256 of the names, types, shapes and bytes of all tensors of best and last."""
    last = checkpoint.load_checkpoint(folder / "weights" / "last")
    both = {"best": checkpoint.load_weights(folder / "weights" / "best.safetensors")[0], "last": last.tensors}
    whole = hashlib.sha256(str(last.step).encode())
    for kind, tensors in both.items():
        for name, tensor in sorted(tensors.items()):
            whole.update(f"{kind} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()
