"""Throughput of a training step (forward, backward, SGD with momentum) of skipway and of plain torch.

    python benchmarks/training_step.py --case resnet18-32

Each variant runs in a separate process. "ours" is `create_model` with the settings of `skipway train`: bfloat16
autocast if the hardware supports it, channels_last, and freed memory kept. "own-loop" is the same without the last, as
in a custom training loop. `--profile` adds the slowest operators.
"""

import argparse
import json

import torch
from reference import WAYS, prepared
from side_by_side import alternating, over_plain, speed, write
from torch.nn import functional as F

CASES = {  # name: (model of skipway, its options, reference model, pixels, batch, classes, steps)
    "resnet18-32": ("resnet18", {"stem": "small"}, "resnet18 (small stem)", 32, 128, 10, 6),
    "resnet50-224-16": ("resnet50", {}, "resnet50", 224, 16, 1000, 4),
    "resnet50-224-32": ("resnet50", {}, "resnet50", 224, 32, 1000, 3),
    "resnet20-32": ("resnet20", {}, "resnet20", 32, 128, 10, 15),
}


def ours(case, way):
    import skipway as sw
    from skipway.training.optimizers import make_optimizer
    from skipway.training.trainer import has_bf16
    from skipway.utils.malloc_settings import keep_freed_memory

    if way == "ours":
        keep_freed_memory()
    name, options, _, _, _, classes, _ = CASES[case]
    network = sw.create_model(name, classes, **options).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    bf16 = has_bf16("cpu")
    return network, torch.channels_last, lambda: torch.autocast("cpu", torch.bfloat16, enabled=bf16), optimizer


def reference(case, way):
    _, _, name, _, _, classes, _ = CASES[case]
    network, layout, context = prepared(name, way, classes)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return network, layout, context, optimizer


def worker(case, way, profiled):
    _, _, _, size, batch, classes, steps = CASES[case]
    torch.manual_seed(0)
    network, layout, context, optimizer = reference(case, way) if way in WAYS else ours(case, way)
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    y = torch.randint(classes, (batch,))

    def step():
        with context():
            loss = F.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    print(json.dumps(speed(step, batch, steps, profiled)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, default="resnet18-32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", default=["ours", "own-loop", *WAYS])
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return worker(args.case, args.one, args.profile)
    words = [__file__, "--case", args.case, *(["--profile"] if args.profile else []), "--one"]
    metrics = alternating({way: [*words, way] for way in args.ways}, args.rounds)
    title = f"Training step, {args.case}, images/s, n = {args.rounds}"
    write(f"training-step-{args.case}", title, *over_plain(metrics, "images_per_second"))


if __name__ == "__main__":
    main()
