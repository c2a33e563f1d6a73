"""Time per layer and call that the choice of kernels takes, in a network on a CPU and on another device.

    python benchmarks/kernel_overhead.py [--before CHECKOUT] [--rounds N]

Layers compute nothing here, so that only the choice remains. "GPU" is a tensor without memory, which takes the same
path. Variants run in separate processes, in turn.
"""

import argparse
import json
import sys
import timeit

LAYERS = 100


def worker(way: str, checkout: str) -> None:
    if way == "before":
        sys.path.insert(0, checkout)
    import torch
    from torch import nn

    from skipway.kernels.batchnorm import BATCH_NORM
    from skipway.kernels.conv import CONV
    from skipway.kernels.layer_dispatch import run_layers

    nn.Conv2d.forward = nn.BatchNorm2d.forward = lambda self, x: x
    norm, relu = nn.BatchNorm2d(64), nn.ReLU()
    conv = nn.Conv2d(64, 64, 1, bias=False).bfloat16().to(memory_format=torch.channels_last)
    x = torch.randn(1, 64, 2, 2).bfloat16().contiguous(memory_format=torch.channels_last)
    assert BATCH_NORM.fits(norm, x, x, relu) and CONV.fits(conv, x)

    def microseconds(work, count: int) -> float:
        return min(timeit.repeat(work, number=200, repeat=25)) / 200 / count * 1e6

    class Inside(nn.Module):
        def forward(self, x):
            self.norm = microseconds(lambda: BATCH_NORM.fits(norm, x, x, relu), 1)
            self.conv = microseconds(lambda: CONV.fits(conv, x), 1)
            return x

    inside, elsewhere = Inside(), x.to("meta")
    run_layers([inside], x)
    layers = [conv, norm] * (LAYERS // 2)

    def plain() -> None:
        for layer in layers:
            layer(elsewhere)

    gpu = microseconds(lambda: run_layers(layers, elsewhere), LAYERS) - microseconds(plain, LAYERS)
    print(json.dumps({"norm": inside.norm, "conv": inside.conv, "gpu": gpu}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="", help="another checkout of skipway")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return worker(args.one, args.before)
    from side_by_side import alternating, spread, write

    ways = [*(["before"] if args.before else []), "now"]
    figures = alternating({way: [__file__, "--before", args.before, "--one", way] for way in ways}, args.rounds)
    rows = [
        [way, *(spread(runs, name, "{:.2f}".format) for name in ("norm", "conv", "gpu"))]
        for way, runs in figures.items()
    ]
    title = f"Choice of kernels, microseconds per layer and call, n = {args.rounds}"
    notes = '"before" is the checkout that was passed.' if args.before else ""
    write("kernel-overhead", title, ["way", "norm on a CPU", "convolution on a CPU", "layer on a GPU"], rows, notes)


if __name__ == "__main__":
    main()
