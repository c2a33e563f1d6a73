"""Time from the command to the first training step of `skipway train`, on small images in parquet files or a folder.

    python benchmarks/first_step.py cifar10/

Each run is a separate process, timed from its start by the system clock and ended at its first step. The images of
the parquet files are unpacked to a temporary folder.
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
    """Return the seconds since the start of this process."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def worker(data, model):
    from skipway.cli.app import main
    from skipway.training.trainer import Trainer

    def ended(self):
        print(json.dumps({"seconds": since_start()}), flush=True)
        os._exit(0)  # the end of the run is not measured

    Trainer.update_average = ended  # called after each optimizer step
    with tempfile.TemporaryDirectory() as runs:
        sys.argv = ["skipway", "train", data, "-o", runs, "--quiet", *(["--model", model] if model else [])]
        main()


def unpacked(data, folder):
    """Unpack the images of parquet files to a subfolder per split and class, and return their number."""
    from skipway.data.sources.choose_source import open_source
    from skipway.data.sources.image_source import read_content

    source = open_source(data)
    count = 0
    for split in source.keys:
        for label, content in zip(source.targets[split], map(read_content, source.contents(split)), strict=True):
            place = Path(folder, split, source.class_names[label])
            place.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, bytes):
                from PIL import Image

                Image.fromarray(content).save(buffer := io.BytesIO(), "png")
                content = buffer.getvalue()
            (place / f"{count:06}.png").write_bytes(content)
            count += 1
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help="parquet files of small images")
    parser.add_argument("--model", help="model name; default: that of `skipway train`")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = ["--model", args.model] if args.model else []
    if args.one:
        return worker(args.data, args.model)
    with tempfile.TemporaryDirectory() as folder:
        count = unpacked(args.data, folder)
        places = {"parquet": args.data, "folder": folder}
        metrics = alternating({way: [__file__, places[way], *model, "--one"] for way in WAYS}, args.rounds)
    rows = [[way, spread(results, "seconds")] for way, results in metrics.items()]
    write(
        "first-step",
        f"Command to first step, {count:,} images, n = {args.rounds}",
        ["data", "seconds (range)"],
        rows,
    )


if __name__ == "__main__":
    main()
