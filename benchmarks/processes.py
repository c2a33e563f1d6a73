"""What a second process gains, and what more would: whole trainings side by side, and what sharing gradients costs.

    python benchmarks/processes.py [--model resnet20] [--rounds 3] [--batch 128] [--network 10]

Each round trains on the same 2,000 random images of 32 x 32 in every way in turn (A B C D A B C D ...), each for
three epochs, of which the last two count. For more processes the step is worked out: what one process computes for its
own batch of the same size, then a ring of all-reduces that passes 2 (n - 1) / n times the gradients through a network
of that many gigabits a second, nothing of it hidden behind the backward pass.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import skipway as sw
from skipway.runs.environment import processor
from skipway.utils.devices import available_cores

WAYS = {
    "1 process, 1 thread": ["--threads", "1"],
    "1 process, 2 threads": ["--threads", "2"],
    "2 processes, 1 thread each": ["--threads", "1", "--nproc", "2"],
    "2 processes, split (--fsdp)": ["--threads", "1", "--nproc", "2", "--fsdp"],
}


def made_images(folder, count=2000):
    random = np.random.default_rng(0)
    for i in range(count):
        place = folder / "train" / f"kind{i % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{i:05}.png")
    (folder / "val").mkdir()
    for kind in range(4):
        (folder / "val" / f"kind{kind}").mkdir()
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "val" / f"kind{kind}" / "0.png")
    return folder


def trained(data, asked, words):
    """Images a second over the last two epochs."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "skipway", "train", str(data), "-m", asked.model, "--epochs", "3"]
        command += ["--batch-size", str(asked.batch), "-o", output, "--name", "run", *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
        with open(Path(output) / "run" / "results.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[1:]
    return statistics.mean(float(row["samples_per_second"]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", type=float, default=10.0, help="gigabits a second between machines")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = made_images(Path(place))
        speeds = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way, words in WAYS.items():
                speeds[way].append(trained(data, asked, words))
    first = statistics.median(speeds["1 process, 1 thread"])
    print(f"{asked.model}, batch {asked.batch} in all, 32 px; median (range) of {asked.rounds} trainings")
    print(f"{processor()}, {available_cores().count} cores, torch {torch.__version__}")
    for way, found in speeds.items():
        middle = statistics.median(found)
        print(f"{way:>30}  {middle:7.0f} images/s ({min(found):.0f} to {max(found):.0f})  {middle / first:.2f}")
    numbers = sum(p.numel() for p in sw.create_model(asked.model).parameters())
    step, size = asked.batch / first, 4 * numbers
    print(f"worked out: {size / 1e6:.1f} MB of gradients, {step:.3f} s a step of {asked.batch} in each process")
    for count in (2, 4, 8, 16, 64):
        shared = 2 * (count - 1) / count * size / (asked.network * 1e9 / 8)
        print(f"{count:>4} processes: {shared:.4f} s to share, {count * step / (step + shared):.2f} times one")


if __name__ == "__main__":
    main()
