"""Memory and time of a training step by depth, without and with activation checkpointing, and for reversible networks.

    python benchmarks/depth.py --models resnet20 resnet110 resnetv2_1001

The peak is the largest resident memory in three SGD steps minus the memory before the first one. Training is in
float32, in which --recompute is equal to the last bit, or in bfloat16 autocast with --bf16.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch
from reference import NETWORKS, network
from side_by_side import alternating, median, write
from torch.nn import functional as F

import skipway as sw
from skipway.utils.malloc_settings import keep_freed_memory, restart_gathering

MODELS = ("resnet20", "resnet56", "resnet110", "resnetv2_164", "resnetv2_1001", "resnet1202")
WAYS = ("stock", "kept", "auto", "stages", "1")  # stock: torch only; kept: skipway; others: values of --recompute


def resident():
    """Return the resident memory of this process in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def worker(model, way, batch, bf16):
    torch.manual_seed(0)
    if way == "stock":
        net = network(model)
    else:
        if way != "kept":
            restart_gathering()  # as the command line does
        keep_freed_memory()
        net = sw.recompute(sw.create_model(model, 10), {"kept": "none", "1": 1}.get(way, way))
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))
    before, seconds = resident(), []
    for _ in range(3):
        begin = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(net(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    print(json.dumps({"seconds": statistics.median(seconds[1:]), "peak": peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*MODELS, "revnet110", "revnet164"])
    parser.add_argument("--ways", nargs="+", default=WAYS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return worker(*args.one, args.batch, args.bf16)
    rows = []
    for model in args.models:
        ways = [w for w in args.ways if (w != "stock" or model in NETWORKS) and (w in ("kept",) or "rev" not in model)]
        words = [__file__, "--batch", str(args.batch), *(["--bf16"] if args.bf16 else []), "--one", model]
        metrics = alternating({way: [*words, way] for way in ways}, args.rounds)
        kept = metrics.get("kept")
        for way, results in metrics.items():
            peak, seconds = median(results, "peak"), median(results, "seconds")
            ratios = [f"{median(kept, 'peak') / peak:.2f}", f"{seconds / median(kept, 'seconds'):.2f}"] if kept else []
            rows.append([f"{model}, {way}", f"{peak:,.0f}", f"{seconds:.3f}", *ratios])
    precision = "bf16" if args.bf16 else "fp32"
    title = f"Training over depth, batch {args.batch}, 32 px, {precision}, n = {args.rounds}"
    header = ["network", "peak increase, MB", "seconds per step", "peak of kept / peak", "time / time of kept"]
    write(f"depth-{precision}", title, header, rows)


if __name__ == "__main__":
    main()
