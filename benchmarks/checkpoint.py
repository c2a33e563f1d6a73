"""Time for which a checkpoint of a ResNet-50 with momentum (205 MB) blocks the training loop, and its CPU time.

    python benchmarks/checkpoint.py [--before CHECKOUT] [--rounds N]

Each variant runs in a separate process, in turn with the others. "in the loop" writes, verifies and rotates before the
loop continues; "in a thread" is what `skipway train` does. --before adds the blocking save of another checkout.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

WARM_UP = 3  # saves until two older steps exist and the memory of the copies is used again
SAVES = 5


def worker(way: str, checkout: str) -> None:
    if way == "before":
        sys.path.insert(0, checkout)
    import torch

    import skipway as sw
    from skipway.training import checkpoint

    network = sw.create_model("resnet50", 1000).to(memory_format=torch.channels_last)
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"optimizer.{name}": torch.randn_like(p.detach()) for name, p in network.named_parameters()}
    saver = None
    if way == "in a thread":
        from skipway.training.background_saver import BackgroundSaver

        saver = BackgroundSaver()
    rows = []
    with tempfile.TemporaryDirectory(prefix="skipway-checkpoint-") as folder:
        for step in range(WARM_UP + SAVES):
            begin, cpu = time.perf_counter(), time.process_time()
            if saver is None:
                checkpoint.save_checkpoint(Path(folder) / "last", step, tensors, {"step": step})
            else:
                saver.save(Path(folder) / "last", step, tensors, {"step": step})
            blocked = time.perf_counter() - begin
            if saver is not None:
                saver.wait()
            rows.append((blocked, time.perf_counter() - begin, time.process_time() - cpu))
    blocked, written, cpu = (statistics.median(values) for values in zip(*rows[WARM_UP:], strict=True))
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 1e6
    print(json.dumps({"blocked": blocked, "written": written, "cpu": cpu, "MB": size}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", default="", help="another checkout of skipway")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return worker(args.one, args.before)
    from side_by_side import alternating, spread, write

    ways = [*(["before"] if args.before else []), "in the loop", "in a thread"]
    figures = alternating({way: [__file__, "--before", args.before, "--one", way] for way in ways}, args.rounds)
    rows = [[way, *(spread(runs, name) for name in ("blocked", "written", "cpu"))] for way, runs in figures.items()]
    size = next(iter(figures.values()))[0]["MB"]
    title = f"Checkpoint of {size:.0f} MB, seconds per save, n = {args.rounds} processes of {SAVES} saves"
    header = ["way", "blocked: median (range)", "until verified", "CPU time"]
    notes = '"before" is the checkout that was passed, with a save in the training loop.' if args.before else ""
    write("checkpoint", title, header, rows, notes)


if __name__ == "__main__":
    main()
