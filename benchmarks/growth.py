"""Growing compared to training from scratch: a deep network, and the same network grown from a shallow one.

    python benchmarks/growth.py CIFAR10 OUT --seeds 0 1 2

Each row of `WAYS` is a `skipway train` per seed, in a separate process and a folder of OUT. Finished runs are not
repeated. Compute is 6 operations per image and multiply-add of the forward pass (2 forward, 4 backward). The seconds
are computed from the highest throughput of each network in any run, because other work on the machine slows runs
unequally. The table has medians over the seeds on the test set. The plots show validation accuracy over compute.
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path

import skipway as sw
from skipway.commands.compare import compare
from skipway.report import network_plots

WAYS = {
    "56 layers from scratch": ["--model", "resnet56", "--epochs", "10"],
    "56 layers, half the epochs": ["--model", "resnet56", "--epochs", "5"],
    "20 layers": ["--model", "resnet20", "--epochs", "15"],
    "grown 20 to 56": ["--grow", "resnet20:8,resnet56:2"],
    "grown 20 to 56, more epochs": ["--grow", "resnet20:12,resnet56:1"],
}
SIZE = 16
COMMON = [
    "--img-size",
    str(SIZE),
    "--augment",
    "shift+flip",
    "--batch-size",
    "128",
    "--optimizer",
    "sgd",
    "--lr",
    "0.2",
]


def run(way, seed, data, out, threads):
    """Train a run unless it is finished, and return its folder."""
    name = f"{way.replace(' ', '-').replace(',', '')}-{seed}"
    folder = out / name
    if not (folder / "metrics.json").is_file():
        words = [data, *WAYS[way], *COMMON, "--seed", str(seed), "-o", str(out), "--name", name, "--save-every", "3600"]
        words = ["--resume", str(folder)] if (folder / "config.yaml").is_file() else words
        words += ["--threads", str(threads)] if threads else []
        subprocess.run([sys.executable, "-m", "skipway", "train", *words], check=True)
    return folder


@cache
def operations(name):
    """Return the operations of a training step per image."""
    return 6 * sw.summary(sw.create_model(name, 10), (1, 3, SIZE, SIZE)).macs


def epochs_of(folder, way):
    """Return (network, row of results.csv) of each epoch."""
    stages = WAYS[way][1].split(",") if WAYS[way][0] == "--grow" else [f"{WAYS[way][1]}:{WAYS[way][3]}"]
    networks = [name for name, _, epochs in (stage.partition(":") for stage in stages) for _ in range(int(epochs))]
    with open(folder / "results.csv", encoding="utf-8", newline="") as file:
        return list(zip(networks, csv.DictReader(file), strict=True))


def course(epochs, images, pace):
    """Return (operations so far, seconds so far, validation accuracy) after each epoch; `pace` is in images/s."""
    points, spent, seconds = [], 0.0, 0.0
    for name, row in epochs:
        spent += operations(name) * images
        seconds += images / pace[name]
        points.append((spent, seconds, float(row["val_accuracy"])))
    return points


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", metavar="CIFAR10")
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    runs = {w: [run(w, seed, args.data, args.out, args.threads) for seed in args.seeds] for w in args.ways}
    epochs = {way: [epochs_of(folder, way) for folder in folders] for way, folders in runs.items()}
    pace = {}
    for name, row in (epoch for seeds in epochs.values() for one in seeds for epoch in one):
        pace[name] = max(pace.get(name, 0.0), float(row["samples_per_second"]))
    figures, courses = {}, {}
    for way, folders in runs.items():
        metrics = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        courses[way] = [course(one, metrics[0]["data"]["counts"]["train"], pace) for one in epochs[way]]
        spent, seconds, _ = courses[way][0][-1]
        figures[way] = {"test": [m["test_accuracy"] for m in metrics], "operations": spent, "seconds": seconds}
    whole = next(iter(figures.values()))["operations"]
    lines = ["| way | compute | share | seconds | test accuracy | seeds |", "| --- | ---: | ---: | ---: | ---: | --- |"]
    for way, f in figures.items():
        seeds = ", ".join(f"{a:.2%}" for a in f["test"])
        lines.append(
            f"| {way} | {f['operations'] / 1e12:.1f} TFLOP | {f['operations'] / whole:.0%} | {f['seconds']:.0f} | "
            f"{statistics.median(f['test']):.2%} | {seeds} |"
        )
    (args.out / "growth.md").write_text("\n".join(lines) + "\n")
    for unit, place in (("FLOPs", 0), ("seconds", 1)):
        drawn = {way: [[(p[place], p[2]) for p in c] for c in seeds] for way, seeds in courses.items()}
        network_plots.plot_accuracy_over_compute(drawn, args.out / f"growth_{unit.lower()}.png", unit)
    first = [folders[0] for folders in runs.values()]
    compare(first, args.out / "compare.png") if len(first) > 1 else None
    print("\n".join(lines))


if __name__ == "__main__":
    main()
