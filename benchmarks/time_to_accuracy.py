"""Time to a test accuracy: `skipway train` with its defaults, and a common training loop in plain torch.

    python benchmarks/time_to_accuracy.py birds-airplanes/ --target 0.9 --epochs 2

"ours" is the whole command, with its report, for --epochs epochs. A run that misses the target fails. The others train
a ResNet-20 in plain torch for up to --reference-epochs. They use SGD with momentum 0.9, weight decay 5e-4, a one-cycle
schedule with a peak of 0.2, batch 128, and shifts and flips of whole batches in memory. They evaluate the test set
after each epoch, and stop at the target. Each run is a separate process, timed from its start.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from first_step import since_start
from PIL import Image
from reference import prepared
from side_by_side import alternating, median, spread, write
from torch.nn import functional as F


def ours(data, epochs):
    """Return the seconds of the command and the test accuracy."""
    with tempfile.TemporaryDirectory() as runs:
        options = ["--epochs", str(epochs), "-o", runs, "--name", "run", "--quiet"]
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "skipway", "train", data, *options], check=True)
        seconds = time.monotonic() - begin
        return seconds, json.loads(Path(runs, "run", "metrics.json").read_text())["test_accuracy"]


def images(folder):
    """Load images (N, 3, H, W) in [0, 1] and labels (N,) from a folder with a subfolder per class."""
    names = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted(name.iterdir())]
    pixels = np.stack([np.array(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")) for file, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor([label for _, label in files])


def moved(x):
    """Shift each image by up to 4 pixels, and flip it at random."""
    size, padded = x.shape[-1], F.pad(x, (4,) * 4, mode="reflect")
    out = torch.empty_like(x)
    for i, (down, right, mirror) in enumerate(torch.randint(0, 9, (len(x), 3)).tolist()):
        part = padded[i, :, down : down + size, right : right + size]
        out[i] = part.flip(-1) if mirror % 2 else part
    return out


def reference(way, folder, epochs, target):
    torch.manual_seed(0)
    (x, y), (test_x, test_y) = images(Path(folder, "train")), images(Path(folder, "test"))
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    x, test_x = (x - mean) / std, (test_x - mean) / std
    network, layout, context = prepared("resnet20", way, int(y.max()) + 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(x) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * steps)
    accuracy = 0.0
    for _ in range(epochs):
        network.train()
        order = torch.randperm(len(x))
        for step in range(steps):
            ids = order[step * 128 : (step + 1) * 128]
            with context():
                loss = F.cross_entropy(network(moved(x[ids]).contiguous(memory_format=layout)), y[ids])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        network.eval()
        with torch.no_grad(), context():
            right = [
                (network(part.contiguous(memory_format=layout)).argmax(1) == label).sum()
                for part, label in zip(test_x.split(256), test_y.split(256), strict=True)
            ]
        accuracy = float(sum(right)) / len(test_x)
        if accuracy >= target:
            break
    return accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="folder with train/ and test/, each with a subfolder per class")
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True, help="epochs of skipway")
    parser.add_argument("--reference-epochs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=["ours", "plain", "autocast"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        if args.one == "ours":
            seconds, accuracy = ours(args.data, args.epochs)
        else:
            accuracy = reference(args.one, args.data, args.reference_epochs, args.target)
            seconds = since_start()
        if accuracy < args.target:
            sys.exit(f"missed the target: expected an accuracy of {args.target}, got {accuracy:.4f}")
        return print(json.dumps({"seconds": seconds, "accuracy": accuracy}))
    options = ["--target", str(args.target), "--epochs", str(args.epochs)]
    words = [__file__, args.data, *options, "--reference-epochs", str(args.reference_epochs), "--one"]
    metrics = alternating({way: [*words, way] for way in args.ways}, args.rounds)
    ratio = median(metrics["ours"], "seconds")
    rows = [
        [way, spread(results, "seconds"), spread(results, "accuracy"), f"{median(results, 'seconds') / ratio:.2f}"]
        for way, results in metrics.items()
    ]
    title = f"From the command to a test accuracy of {args.target:g}, n = {args.rounds}"
    write("time-to-accuracy", title, ["way", "seconds (range)", "accuracy (range)", "time over ours"], rows)


if __name__ == "__main__":
    main()
