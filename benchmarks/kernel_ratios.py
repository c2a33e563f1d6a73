"""A step of skipway with all kernels, without one of them, and under torch.compile, in one process.

    OMP_NUM_THREADS=1 python benchmarks/kernel_ratios.py [--case resnet20-32]

A training step takes a batch of images from memory, augments it, and trains on it. A step of "features" computes the
outputs of frozen layers, as `skipway train` does with pretrained weights. A step of "table" trains the default network
on 512 rows. The variants take steps in turn, on the same samples. CPU time of one thread is measured, in which other
programs of the machine hardly count.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from unittest import mock

import torch
from gpu import noise
from side_by_side import write
from torch import Tensor
from torch.nn import functional as F

from skipway.data.image_spec import Spec
from skipway.data.images import crop_zoom_flip, loader
from skipway.data.images.loader import Augmentation, ImageBatches
from skipway.export.openvino import engine
from skipway.kernels import batchnorm, layer_dispatch
from skipway.model_factory import create_model
from skipway.models import table_stem
from skipway.models.network import Network
from skipway.models.table_layers import fit_pieces, quantile_edges
from skipway.nn import skip
from skipway.runs.feature_cache import frozen_layers
from skipway.runs.table_defaults import table_network_options
from skipway.training.optimizers import make_optimizer
from skipway.utils.malloc_settings import keep_freed_memory

CASES = {  # name: (model, its options, stored pixels, pixels, augmentation, batch)
    "resnet20-32": ("resnet20", {}, 32, 32, "shift+flip", 128),
    "resnet50-64": ("resnet50", {}, 80, 64, "zoom+flip", 32),
    "resnet50-224": ("resnet50", {}, 256, 224, "zoom+flip", 8),
    "features-224": ("tf_efficientnet_lite0", {}, 256, 224, "zoom+flip", 32),
}
WAYS = {  # name: (module, name in it, replacement) of the kernel that is off
    "all kernels": None,
    "without batch norm": (batchnorm, "_DTYPES", ()),
    "without convolution": (layer_dispatch, "CONV", layer_dispatch.CONV.plain),
    "without zoom": (crop_zoom_flip, "ZOOM", crop_zoom_flip.ZOOM.plain),
    "without normalization": (loader, "NORMALIZE", loader.NORMALIZE.plain),
    "without first layer": (table_stem, "TABLE_STEM", table_stem.TABLE_STEM.plain),
    "without residual block": (skip, "fusable_mlp", lambda body, x: None),
    "torch.compile": None,
}


TABLE = "table"
OF_TABLES = ("without first layer", "without residual block")
WAYS_OF_TABLES = ("all kernels", *OF_TABLES, "torch.compile")
NUMBERS, PIECES, CATEGORIES, ROWS = 10, 100, (8, 60, 200), 512


def batches_of(stored: int, size: int, parts: str, batch: int) -> tuple[ImageBatches, Spec]:
    """Return 32 training batches of random images, and the Spec of a network for them."""
    images = noise(32 * batch, stored, size)
    spec = Spec(channels=3, size=size, presize=stored, mean=(0.5,) * 3, std=(0.3,) * 3, class_names=images.class_names)
    return ImageBatches(images, images.splits["train"], batch, spec=spec, augmentation=Augmentation(parts)), spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=(*CASES, TABLE), nargs="+", default=[*CASES, TABLE])
    parser.add_argument("--steps", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [row for case in args.case for row in measure(case, args.steps)]
    header = ["step and way", "CPU seconds per step", "over all kernels (range)"]
    write("kernel-ratios", f"Kernels in a step, n = {args.steps} steps of each way in one process", header, rows)


def measure(case: str, steps: int) -> list[list[str]]:
    """Return the rows of one case."""
    work = table_steps() if case == TABLE else image_steps(case)
    seconds: dict[str, list[float]] = {way: [] for way in work}
    for step in range(2 + steps):
        for way, run in work.items():
            with ExitStack() as stack:
                if WAYS[way]:
                    stack.enter_context(mock.patch.object(*WAYS[way]))
                begin = time.process_time()
                run()
                if step >= 2:
                    seconds[way].append(time.process_time() - begin)
    rows = []
    for way, values in seconds.items():
        ratios = [value / own for value, own in zip(values, seconds["all kernels"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append([f"{case}, {way}", f"{statistics.median(values):.4f}", spread])
    return rows


def image_steps(case: str) -> dict[str, Callable[[], object]]:
    """Return the steps of a case of images, in each way that concerns them."""
    name, options, stored, size, parts, batch = CASES[case]
    batches, spec = batches_of(stored, size, parts, batch)
    work: dict[str, Callable[[], object]] = {}
    for way in WAYS:
        if way in OF_TABLES:
            continue
        torch.manual_seed(0)
        network = create_model(name, 10, **options)
        if not case.startswith("features"):
            work[way] = training_step(network, batches, is_compiled=way == "torch.compile")
        elif way != "torch.compile":
            network.spec = spec
            work[way] = feature_step(network, batches)
    return work


def table_steps() -> dict[str, Callable[[], object]]:
    """Return the steps of the default network of tables, in each way that concerns it."""
    numbers = torch.randn(ROWS, NUMBERS)
    x = torch.cat([numbers, *(torch.randint(0, n, (ROWS, 1)) for n in CATEGORIES)], dim=1)
    y = numbers[:, :1].sign()
    return {way: table_step(x, y, is_compiled=way == "torch.compile") for way in WAYS_OF_TABLES}


def table_step(x: Tensor, y: Tensor, *, is_compiled: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    options = {
        **table_network_options(10_000, ROWS, "regression"),
        "pieces": (PIECES,) * NUMBERS,
        "categories": CATEGORIES,
        "in_features": x.shape[1],
    }
    network = create_model("resmlp", 1, **options)
    fit_pieces(network, quantile_edges(x[:, :NUMBERS], PIECES), x)
    optimizer = make_optimizer(network, "adamw", lr=0.004, momentum=0.9, weight_decay=0.05)
    trained = torch.compile(network) if is_compiled else network

    def step() -> None:
        F.huber_loss(trained(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def training_step(network: Network, batches: ImageBatches, *, is_compiled: bool) -> Callable[[], None]:
    network = network.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, "sgd", lr=0.01, momentum=0.9, weight_decay=5e-4)
    trained = torch.compile(network) if is_compiled else network
    epoch = batches.epoch()

    def step() -> None:
        x, y, _ = next(epoch)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(trained(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def feature_step(network: Network, batches: ImageBatches) -> Callable[[], None]:
    model = engine(frozen_layers(network.eval()), "bf16")
    epoch = batches.epoch()

    def step() -> None:
        with torch.inference_mode():
            model(next(epoch)[0])

    return step


if __name__ == "__main__":
    main()
