"""Accuracy and time on photographs without pretrained weights, by image size and epochs.

    python benchmarks/from_scratch.py flowers/ clothing/ ants_bees/ --runs 32:64x9 32:64x20 48:96x7 48:96x14 --threads 1

The model is that of `--model auto` for the full size. Each run is a separate process. The seconds are those of `train`,
without the start of Python. `skipway.runs.time_budget` is based on this table.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from side_by_side import write

TRAIN = """
import json, sys, tempfile, time
import skipway as sw
data, size, epochs, threads = sys.argv[1:]
with tempfile.TemporaryDirectory() as out:
    begin = time.monotonic()
    run = sw.train(data, pretrained="none", img_size=size, epochs=int(epochs), threads=int(threads), output=out)
    print(json.dumps({**run.metrics, "seconds": time.monotonic() - begin}))
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="+", help="folders with train/ and val/")
    parser.add_argument("--runs", nargs="+", default=["32:64x9", "32:64x20", "48:96x7", "48:96x14"], help="SIZExEPOCHS")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rows = []
    for data in args.data:
        for size, epochs in (run.rsplit("x", 1) for run in args.runs):
            words = [sys.executable, "-c", TRAIN, data, size, epochs, str(args.threads)]
            done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tempfile.gettempdir())
            metrics = json.loads(done.stdout.splitlines()[-1])
            accuracies = [metrics.get(f"{split}_accuracy") for split in ("val", "test")]
            shown = ["" if value is None else f"{value:.1%}" for value in accuracies]
            rows.append([Path(data).resolve().name, size, epochs, f"{metrics['seconds']:.0f}", *shown])
            print(rows[-1], file=sys.stderr, flush=True)
    title = f"From scratch on photographs, by size and epochs: {args.threads} thread(s), n = 1"
    write("from-scratch", title, ["set", "size, px", "epochs", "seconds", "validation", "test"], rows)


if __name__ == "__main__":
    main()
