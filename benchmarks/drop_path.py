"""Time that stochastic depth saves by skipping the dropped rows, compared to masking the computed output.

    python benchmarks/drop_path.py [--model resnet110] [--rounds 7] [--batch 128]

Each round takes four steps of every variant in turn (A B C D A B C D ...) with the same random numbers. The last three
are timed, so that the cache contents of another variant do not count. "masked" computes all rows and multiplies by a
mask, which is the common implementation. "none" has no stochastic depth.
"""

import argparse
import statistics
import time
from unittest.mock import patch

import torch
from torch.nn import functional as F

import skipway as sw
from skipway.nn import skip
from skipway.runs.environment import processor
from skipway.utils.malloc_settings import keep_freed_memory

RATE = 0.5  # rate of the deepest block; rates increase linearly with depth
WAYS = {"none": (0.0, "row"), "masked": (RATE, "row"), "row": (RATE, "row"), "batch": (RATE, "batch")}


def masked(body, x, kept, rate, mode):
    stays = (torch.rand(len(x)) >= rate).view(-1, 1, 1, 1)
    branch = body(x)
    return branch * (stays.to(branch.dtype) / (1 - rate))


def step(network, x, y):
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(x), y)
    loss.backward()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet110")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    torch.manual_seed(0)
    x = torch.randn(args.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (args.batch,))
    networks = {
        way: sw.create_model(args.model, drop_path=rate, drop_mode=mode).to(memory_format=torch.channels_last)
        for way, (rate, mode) in WAYS.items()
    }
    seconds = {way: [] for way in WAYS}
    for turn in range(args.rounds):
        for way, network in networks.items():
            torch.manual_seed(turn)
            with patch.object(skip, "stochastic_depth", masked if way == "masked" else skip.stochastic_depth):
                seconds[way] += [step(network, x, y) for _ in range(4)][1:]
    steps = len(seconds["none"])
    print(f"{args.model}, batch {args.batch}, 32 px, bf16, drop_path {RATE}; median (range) of {steps} steps")
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for way, taken in seconds.items():
        ratio = statistics.median(taken) / statistics.median(seconds["masked"])
        print(
            f"{way:>7}  {statistics.median(taken):.3f} s ({min(taken):.3f} to {max(taken):.3f})  {ratio:.2f} of masked"
        )


if __name__ == "__main__":
    main()
