"""Speedup by a second process on this machine, measured, and by more processes, estimated.

    python benchmarks/processes.py [--model resnet20] [--rounds 3] [--batch 128] [--network 10]

Each round trains every variant in turn (A B C D A B C D ...) on the same 2,000 random images of 32 x 32. The last two
of three epochs count. The estimate for more processes adds a ring all-reduce to the measured step of a process with the
same batch size. It transfers 2 (n - 1) / n times the size of the gradients with the bandwidth of --network. It does not
overlap with the backward pass.
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


def trained(data, args, words):
    """Train a run, and return the images/s of the last two epochs."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "skipway", "train", str(data), "-m", args.model, "--epochs", "3"]
        command += ["--batch-size", str(args.batch), "-o", output, "--name", "run", *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})
        with open(Path(output) / "run" / "results.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))[1:]
    return statistics.mean(float(row["samples_per_second"]) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", type=float, default=10.0, help="bandwidth between machines, in Gbit/s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        data = made_images(Path(place))
        speeds = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way, words in WAYS.items():
                speeds[way].append(trained(data, args, words))
    first = statistics.median(speeds["1 process, 1 thread"])
    print(f"{args.model}, total batch {args.batch}, 32 px; median (range) of {args.rounds} trainings")
    print(f"{processor()}, {available_cores().count} cores, torch {torch.__version__}")
    for way, values in speeds.items():
        middle = statistics.median(values)
        print(f"{way:>30}  {middle:7.0f} images/s ({min(values):.0f} to {max(values):.0f})  {middle / first:.2f}")
    numbers = sum(p.numel() for p in sw.create_model(args.model).parameters())
    step, size = args.batch / first, 4 * numbers
    print(f"estimate: {size / 1e6:.1f} MB of gradients, {step:.3f} s per step with batch {args.batch} per process")
    for count in (2, 4, 8, 16, 64):
        shared = 2 * (count - 1) / count * size / (args.network * 1e9 / 8)
        print(f"{count:>4} processes: {shared:.4f} s of all-reduce, speedup {count * step / (step + shared):.2f}")


if __name__ == "__main__":
    main()
