"""What stochastic depth saves: a training step of ResNet-110 that computes what it leaves out, and one that does not.

    python benchmarks/drop_path.py [--rounds 7] [--batch 128]

Each round times one step of every way in turn (A B C D A B C D ...); the table gives medians and their ratio to the
masked way, in which all rows are computed and a mask is applied, as DropPath is commonly written.
"""

import argparse
import platform
import statistics
import time
from unittest.mock import patch

import torch
from torch.nn import functional as F

import skipway as sw
from skipway import drop_path, skip

WAYS = {
    "none": (0.0, "row", False),
    "masked": (0.5, "row", True),
    "row": (0.5, "row", False),
    "batch": (0.5, "batch", False),
}


def masked(body, x, kept, rate, mode, where):
    stays = torch.rand(len(x)) >= rate
    return drop_path._masked(body(x), kept, stays, rate, where)


def step(network, x, y):
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.cross_entropy(network(x), y)
    loss.backward()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    torch.manual_seed(0)
    x = torch.randn(given.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    y = torch.randint(10, (given.batch,))
    networks = {
        way: sw.create_model("resnet110", drop_path=rate, drop_mode=mode).to(memory_format=torch.channels_last)
        for way, (rate, mode, _) in WAYS.items()
    }
    seconds = {way: [] for way in WAYS}
    for turn in range(given.rounds + 1):
        for way, network in networks.items():
            torch.manual_seed(turn)
            with patch.object(skip, "thinned", masked if WAYS[way][2] else drop_path.thinned):
                taken = step(network, x, y)
            if turn:  # the first round warms up
                seconds[way].append(taken)
    print(f"ResNet-110, batch {given.batch}, 32 px, bf16, drop_path 0.5 at the deepest block; median of {given.rounds}")
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    reference = statistics.median(seconds["masked"])
    for way, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{way:>7}  {middle:.3f} s  {middle / reference:.2f} of masked  ({min(taken):.3f} to {max(taken):.3f})")


if __name__ == "__main__":
    main()
