"""Synthetic set of many JPEG files in class folders: memory and pace of training on a set larger than memory.

    python benchmarks/data/large_set.py make /data/large --images 200000
    python benchmarks/data/large_set.py measure /data/large --rounds 3

`make` writes files of about 10 kB (smooth noise of 200 x 200 pixels, colored by class) in 100 class folders. `measure`
trains a small network on one thread per core, in processes that alternate: with all pixels in memory, with pixels read
from the cache on the disk, and with pixels decoded for each batch. It compares the seconds of the epochs from the
second on, and the peak memory of the process (VmHWM).
"""

import argparse
import json
import os
import re
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
SIDE, CLASSES, QUALITY, MODEL = 200, 100, 75, "resnet20"
SIZE = 32  # input size of the network; its decoded images have 37 px
WAYS = ("memory", "disk", "decoded for each batch")
_FILES = 500  # per task


def make_part(folder: Path, first: int, count: int) -> int:
    """Write `count` files, beginning with number `first`, and return their bytes."""
    from PIL import Image

    written = 0
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        label = number % CLASSES
        grid = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        grid[..., label % 3] //= 1 + label // 34
        image = Image.fromarray(grid).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        path = folder / f"class{label:03d}" / f"{number:07d}.jpg"
        image.save(path, quality=QUALITY)
        written += path.stat().st_size
    return written


def make(folder: Path, images: int) -> None:
    """Write the set, by one process per core."""
    for label in range(CLASSES):
        (folder / f"class{label:03d}").mkdir(parents=True, exist_ok=True)
    starts = range(0, images, _FILES)
    with ProcessPoolExecutor() as pool:
        sizes = pool.map(make_part, [folder] * len(starts), starts, [min(_FILES, images - start) for start in starts])
        print(f"{images:,} files, {sum(sizes) / 1e9:.2f} GB in {folder}")


def peak_memory() -> float:
    """Return the peak resident memory of this process in GB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024 / 1e9


def worker(folder: Path, way: str, size: int, epochs: int) -> None:
    """Train a run, and print its metrics as JSON."""
    import skipway as sw
    from skipway.data.images import decode_source
    from skipway.utils.malloc_settings import keep_freed_memory

    keep_freed_memory()  # as the command line does
    decode_source.RAM_LIMIT = 1 << 40 if way == "memory" else 0
    begin = time.perf_counter()
    run = sw.train(
        folder,
        model=MODEL,
        img_size=size,
        epochs=epochs,
        batch_size=256,
        lr=0.05,
        augment="light",
        cache_size=0 if way == WAYS[2] else 1000,
        output=folder.with_name(f"{folder.name}-runs"),
    )
    total = time.perf_counter() - begin
    seconds = [epoch["seconds"] for epoch in run.history]
    print(
        json.dumps(
            {
                "before": total - sum(seconds),
                "epoch": statistics.mean(seconds[1:]),
                "peak": peak_memory(),
            }
        )
    )


def measure(folder: Path, ways: list[str], *, rounds: int, size: int, epochs: int) -> None:
    """Alternate the ways, and write the table."""
    from side_by_side import alternating, median, spread, write

    options = ["--size", str(size), "--epochs", str(epochs)]
    words = {way: [__file__, "worker", str(folder), "--way", way, *options] for way in ways}
    figures = alternating(words, rounds)
    images = sum(len(files) for _, _, files in os.walk(folder))
    base = median(figures["memory"], "epoch")
    rows = [
        [
            way,
            spread(results, "epoch"),
            f"{base / median(results, 'epoch'):.2f}",
            spread(results, "before"),
            spread(results, "peak"),
        ]
        for way, results in figures.items()
    ]
    header = [
        "way",
        "seconds per epoch from the second on (range)",
        "pace over memory",
        "seconds before and after",
        "peak GB",
    ]
    write("large-set", f"{MODEL} at {size} px on {images:,} JPEG files, {epochs} epochs, n = {rounds}", header, rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("make", "measure", "worker"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--way", choices=WAYS, default="disk")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to measure, memory first")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    if args.action == "make":
        make(args.folder, args.images)
    elif args.action == "worker":
        worker(args.folder, args.way, args.size, args.epochs)
    else:
        measure(args.folder, args.ways, rounds=args.rounds, size=args.size, epochs=args.epochs)
