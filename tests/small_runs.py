"""Small runs for tests: sixty tiny images of three kinds, a network of three thousand weights, one thread."""

import csv
import json

import numpy as np
from PIL import Image

from skipway.runs.train_run import train
from skipway.training.checkpoint import load_checkpoint, load_weights
from skipway.utils.console import Console
from skipway.utils.run_schema import SCHEMA
from skipway.utils.stop_signals import StopFlag

QUICK = {"model": "resnet20", "epochs": 2, "batch_size": 16, "threads": 1, "precision": "fp32"}
KINDS = ("ant", "bee", "cow")


def image_folder(root, count=20, splits=("",), side=8, kinds=KINDS):
    """Class folders of grey images whose brightness tells the kind; no two are equal."""
    for s, split in enumerate(splits):
        for k, kind in enumerate(kinds):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for i in range(count):
                noise = np.random.default_rng(1000 * s + 100 * k + i).integers(0, 90, (side, side))
                Image.fromarray((noise + 80 * k).astype(np.uint8)).save(folder / f"{i:02}.png")
    return root


def quick(data, output, console=None, **options):
    """A quick run on `data` into `output`."""
    return train(data, output=output, console=console, **{**QUICK, **options})


class Words(Console):
    """A console that remembers what was said."""

    def __init__(self):
        super().__init__(quiet=True)
        self.lines = []

    def print(self, text):
        self.lines.append(text)

    def __contains__(self, piece):
        return piece in "\n".join(self.lines)


class StopAt(StopFlag):
    """A signal that comes at the n-th time somebody asks."""

    def __init__(self, at):
        super().__init__()
        self.at, self.polls, self.name = at, 0, "SIGTERM"

    @property
    def requested(self):
        self.polls += 1
        return self.polls > self.at


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers(folder):
    """The metrics of a run, without the schema number."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics.pop("schema") == SCHEMA
    return metrics


def best(folder):
    return load_weights(folder / "weights" / "best.safetensors")[0]


def timeless(folder):
    """All that must not depend on a stop: tensors of best and last, and results.csv without its times."""
    times = ("seconds", "samples_per_second", "data_time_fraction")
    rows = [{k: v for k, v in row.items() if k not in times} for row in table(folder / "results.csv")]
    return best(folder), load_checkpoint(folder / "weights" / "last").tensors, rows


def same_tensors(left, right):
    return set(left) == set(right) and all(v.equal(right[k]) for k, v in left.items())


def same_runs(left, right):
    (a, b, c), (d, e, f) = timeless(left), timeless(right)
    return same_tensors(a, d) and same_tensors(b, e) and c == f
