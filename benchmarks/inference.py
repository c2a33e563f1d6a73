"""Predicting, ours against torch as it is commonly used: ResNet-50, 224 px.

    python benchmarks/inference.py --batch 16

Every way runs in a process of its own. "bf16" and "int8" are `skipway.export.fuse` of our network, in the precision of
that name, "openvino-bf16" and "openvino-int8" the engine of that name (extra `openvino`), all with freed memory kept as
the command line does; int8 is calibrated on other random images. `--profile`
adds the operators that take the most time.
"""

import argparse
import json

import torch
from reference import WAYS, prepared
from side_by_side import alternating, over_plain, speed, write

BATCHES = {1: 20, 16: 7}  # images at once: how often
SIZE, CLASSES = 224, 1000


def ours(way):
    import skipway as sw
    from skipway.export.openvino import engine
    from skipway.utils.malloc_settings import keep_freed_memory

    keep_freed_memory()
    network, (name, _, precision) = sw.create_model("resnet50", CLASSES), way.rpartition("-")
    images = torch.randn(16, 3, SIZE, SIZE)
    return (engine if name else sw.export.fuse)(network, precision, images)


def worker(way, batch, profiled):
    torch.manual_seed(0)
    x = torch.randn(batch, 3, SIZE, SIZE)
    if way in WAYS:
        network, layout, context = prepared("resnet50", way, CLASSES)
        network.eval()
        x = x.contiguous(memory_format=layout)
    else:
        network, context = ours(way), torch.no_grad

    def predict():
        with torch.no_grad(), context():
            return network(x)

    print(json.dumps(speed(predict, batch, BATCHES[batch], profiled)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, choices=BATCHES, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", default=["bf16", "int8", "openvino-bf16", "openvino-int8", *WAYS])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return worker(asked.one, asked.batch, asked.profile)
    words = [__file__, "--batch", str(asked.batch), *(["--profile"] if asked.profile else []), "--one"]
    figures = alternating({way: [*words, way] for way in asked.ways}, asked.rounds)
    title = f"Predicting with ResNet-50 at 224 px, batch {asked.batch}, images a second, n = {asked.rounds}"
    write(f"inference-{asked.batch}", title, *over_plain(figures, "images_per_second"))


if __name__ == "__main__":
    main()
