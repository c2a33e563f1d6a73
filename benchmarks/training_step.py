"""A training step (forward, backward, SGD with momentum), ours against torch as it is commonly used.

    python benchmarks/training_step.py --case resnet18-32

Every way runs in a process of its own. "ours" is `create_model` as `skipway train` runs it: bfloat16 autocast where the
hardware has it, channels_last, freed memory kept; "own-loop" is the same network in anybody's loop, without the last.
`--profile` adds the operators that take the most time.
"""

import argparse
import json

import torch
from reference import WAYS, prepared
from side_by_side import alternating, over_plain, speed, write
from torch.nn import functional as F

CASES = {  # name: (our network, options, the reference's name, pixels, batch, classes, steps)
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
    asked = parser.parse_args()
    if asked.one:
        return worker(asked.case, asked.one, asked.profile)
    words = [__file__, "--case", asked.case, *(["--profile"] if asked.profile else []), "--one"]
    figures = alternating({way: [*words, way] for way in asked.ways}, asked.rounds)
    title = f"Training step, {asked.case}, images a second, n = {asked.rounds}"
    write(f"training-step-{asked.case}", title, *over_plain(figures, "images_per_second"))


if __name__ == "__main__":
    main()
