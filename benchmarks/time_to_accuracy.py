"""From the command to a test accuracy: `skipway train` with its defaults against a loop as it is often written.

    python benchmarks/time_to_accuracy.py birds-airplanes/ --target 0.9 --epochs 2

"ours" is the whole command, with its report, for as many epochs as asked; a run that misses the target is no result.
The others train a stock ResNet-20 on torch alone (SGD with momentum 0.9, weight decay 5e-4 and a one-cycle schedule to
0.2, batch 128, shifts and flips on whole batches in memory) for `--reference-epochs`, judge the test set after every
epoch and end at the target. Every run is a process of its own, timed from its start.
"""

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from first_step import since_start
from PIL import Image
from reference import prepared
from side_by_side import alternating, median, spread, write
from torch.nn import functional as F


def ours(data, epochs):
    from skipway.cli.app import main

    with tempfile.TemporaryDirectory() as runs:
        sys.argv = ["skipway", "train", data, "--epochs", str(epochs), "-o", runs, "--name", "run", "--quiet"]
        try:
            main()
        except SystemExit as ended:
            assert not ended.code, f"the command ended with {ended.code}"
        return json.loads(Path(runs, "run", "metrics.json").read_text())["test_accuracy"]


def images(folder):
    """(N, 3, H, W) in 0 to 1 and (N,) of a folder with one sub-folder per class."""
    names = sorted(path for path in Path(folder).iterdir() if path.is_dir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted(name.iterdir())]
    pixels = np.stack([np.array(Image.open(io.BytesIO(file.read_bytes())).convert("RGB")) for file, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, torch.tensor([label for _, label in files])


def moved(x):
    """Each image shifted by up to 4 pixels and mirrored or not."""
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
    parser.add_argument("data", help="a folder with train/ and test/, one sub-folder per class in each")
    parser.add_argument("--target", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True, help="of ours")
    parser.add_argument("--reference-epochs", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=["ours", "plain", "autocast"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        if asked.one == "ours":
            accuracy = ours(asked.data, asked.epochs)
        else:
            accuracy = reference(asked.one, asked.data, asked.reference_epochs, asked.target)
        if accuracy < asked.target:
            sys.exit(f"reached {accuracy:.4f}, not {asked.target}")
        return print(json.dumps({"seconds": since_start(), "accuracy": accuracy}))
    given = ["--target", str(asked.target), "--epochs", str(asked.epochs)]
    words = [__file__, asked.data, *given, "--reference-epochs", str(asked.reference_epochs), "--one"]
    figures = alternating({way: [*words, way] for way in asked.ways}, asked.rounds)
    ratio = median(figures["ours"], "seconds")
    rows = [
        [way, spread(found, "seconds"), spread(found, "accuracy"), f"{median(found, 'seconds') / ratio:.2f}"]
        for way, found in figures.items()
    ]
    title = f"From the command to a test accuracy of {asked.target:g}, n = {asked.rounds}"
    write("time-to-accuracy", title, ["way", "seconds (range)", "accuracy (range)", "time over ours"], rows)


if __name__ == "__main__":
    main()
