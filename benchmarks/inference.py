"""Inference throughput of skipway and of plain torch: ResNet-50 at 224 px.

    python benchmarks/inference.py --batch 16

Each variant runs in a separate process. "bf16" and "int8" are networks of `skipway.export.fuse` in that precision.
"openvino-bf16" and "openvino-int8" are OpenVINO engines (extra `openvino`). All of them keep freed memory, like the
command line. int8 is calibrated on other random images. `--profile` adds the slowest operators.
"""

import argparse
import json

import torch
from reference import WAYS, prepared
from side_by_side import alternating, over_plain, speed, write

BATCHES = {1: 20, 16: 7}  # repetitions by batch size
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
    args = parser.parse_args()
    if args.one:
        return worker(args.one, args.batch, args.profile)
    words = [__file__, "--batch", str(args.batch), *(["--profile"] if args.profile else []), "--one"]
    metrics = alternating({way: [*words, way] for way in args.ways}, args.rounds)
    title = f"Inference with ResNet-50 at 224 px, batch {args.batch}, images/s, n = {args.rounds}"
    write(f"inference-{args.batch}", title, *over_plain(metrics, "images_per_second"))


if __name__ == "__main__":
    main()
