"""Data loading throughput from a folder of photographs: random resized crop, flip and normalization at 224 px.

    python benchmarks/loader.py photos/

"ours" decodes each photograph once into the decode cache, whose seconds are reported separately. "pillow" is the common
pipeline: a Dataset that opens, crops and resizes a file with Pillow, and a DataLoader with a worker per core. All
epochs but the first are timed.
"""

import argparse
import json
import statistics
import time

import torch
from reference import Photographs
from side_by_side import alternating, median, spread, write

SIZE, BATCH, EPOCHS = 224, 64, 4
WAYS = ("ours", "pillow")


def ours(folder):
    from skipway.data.image_spec import Spec
    from skipway.data.images.augment_policy import resolve_policy
    from skipway.data.images.choose_decode_settings import choose_decode_settings
    from skipway.data.images.decoded_cache import decode_images
    from skipway.data.images.loader import Augmentation, ImageBatches, mean_and_std
    from skipway.data.sources.choose_source import open_source
    from skipway.utils.malloc_settings import keep_freed_memory

    keep_freed_memory()  # as the command line does
    source = open_source(folder)
    packed = decode_images(source, choose_decode_settings(source, SIZE, "auto", 50_000_000))
    rows = packed.splits["train"]
    parts = resolve_policy("light", stored_size=packed.settings.stored_size, size=SIZE, mirrored=True)
    assert parts == "zoom+flip", f"the photographs are too small for random crops: {packed.sizes}"
    mean, std = mean_and_std(packed, rows)
    spec = Spec(
        channels=len(mean),
        size=SIZE,
        presize=packed.settings.stored_size,
        mean=mean,
        std=std,
        class_names=packed.class_names,
    )
    batches = ImageBatches(packed, rows, BATCH, spec=spec, augmentation=Augmentation(parts))
    return batches.epoch, len(rows)


def pillow(folder):
    from skipway.utils.devices import available_cores

    photographs = Photographs(folder, SIZE)
    workers = available_cores().count
    loader = torch.utils.data.DataLoader(photographs, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    return lambda epoch: iter(loader), len(photographs)


def worker(way, folder):
    begin = time.perf_counter()
    epoch, count = {"ours": ours, "pillow": pillow}[way](folder)
    prepared = time.perf_counter() - begin
    seconds = []
    for number in range(EPOCHS + 1):
        begin = time.perf_counter()
        seen = sum(len(batch[0]) for batch in epoch(number))
        seconds.append(time.perf_counter() - begin)
        assert seen == count
    speed = count / statistics.median(seconds[1:])
    print(json.dumps({"photographs_per_second": speed, "seconds_before": prepared, "photographs": count}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="folder with train/, which has a subfolder per class")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return worker(args.one, args.folder)
    metrics = alternating({way: [__file__, args.folder, "--one", way] for way in WAYS}, args.rounds)
    best = median(metrics["pillow"], "photographs_per_second")
    rows = [
        [
            way,
            spread(results, "photographs_per_second"),
            f"{median(results, 'photographs_per_second') / best:.2f}",
            spread(results, "seconds_before"),
        ]
        for way, results in metrics.items()
    ]
    count = metrics["ours"][0]["photographs"]
    title = f"Loading {count} photographs to augmented batches of {BATCH} at {SIZE} px, n = {args.rounds}"
    write("loader", title, ["way", "photographs/s (range)", "over pillow", "seconds before the first batch"], rows)


if __name__ == "__main__":
    main()
