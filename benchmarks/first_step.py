"""How long from the command to the first training step: `skipway train` on small images, as parquet or as a folder.

    python benchmarks/first_step.py cifar10/

Every run is a process of its own, timed from its start by the system's clock; it is ended at its first step. The folder
is made of the parquet files, a file for each image, in a temporary place.
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import alternating, spread, write

WAYS = ("parquet", "folder")


def since_start():
    """Seconds since this process was begun."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def worker(data, model):
    from skipway.cli.app import main
    from skipway.training.trainer import Trainer

    def ended(self):
        print(json.dumps({"seconds": since_start()}), flush=True)
        os._exit(0)  # what a run leaves when it ends is not what is measured

    Trainer.update_average = ended  # the line after a step
    with tempfile.TemporaryDirectory() as runs:
        sys.argv = ["skipway", "train", data, "-o", runs, "--quiet", *(["--model", model] if model else [])]
        main()


def unpacked(data, folder):
    """A folder with a sub-folder for each split and class, of the images of parquet files; how many they are."""
    from skipway.data.sources.choose_source import open_source

    source = open_source(data)
    count = 0
    for split in source.keys:
        for label, content in zip(source.labels[split], source.contents(split), strict=True):
            place = Path(folder, split, source.class_names[label])
            place.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, bytes):
                from PIL import Image

                Image.fromarray(content).save(made := io.BytesIO(), "png")
                content = made.getvalue()
            (place / f"{count:06}.png").write_bytes(content)
            count += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="parquet files of small images")
    parser.add_argument("--model", help="the network; the default is that of the command")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    model = ["--model", asked.model] if asked.model else []
    if asked.one:
        return worker(asked.data, asked.model)
    with tempfile.TemporaryDirectory() as folder:
        count = unpacked(asked.data, folder)
        places = {"parquet": asked.data, "folder": folder}
        figures = alternating({way: [__file__, places[way], *model, "--one"] for way in WAYS}, asked.rounds)
    rows = [[way, spread(found, "seconds")] for way, found in figures.items()]
    write(
        "first-step",
        f"Command to first step, {count:,} images, n = {asked.rounds}",
        ["data", "seconds (range)"],
        rows,
    )


if __name__ == "__main__":
    main()
