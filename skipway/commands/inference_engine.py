"""Engines: what computes a trained network where it only predicts, the fastest that is installed unless told."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.export.export_model import fuse
from skipway.export.openvino import engine, fastest
from skipway.export.quantization import PRECISIONS
from skipway.models.network import Network, build_meta_network
from skipway.probe.block_stats import batches_accuracy
from skipway.probe.summary import summary
from skipway.runs.report_samples import samples_of
from skipway.training.trainer import has_bf16
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["ENGINES", "quickened"]

ENGINES = ("auto", "openvino", "torch")
_CALIBRATION = {"train": 128, "val": 500}  # samples: ranges are chosen by the one, what they cost is told on the other
_FEW = 40  # inputs, of which no network makes so much work that another engine would pay; counting it takes a second
_MOST_LOST = 0.02  # of the accuracy, beyond which int8 is refused


def quickened(
    network: Network,
    name: str = "auto",
    precision: str = "auto",
    *,
    inputs: int | None = None,
    run: Path | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Network:
    """`network` as it predicts fastest: fused, and computed by the engine called `name`.

    A network of tables, one elsewhere than on a CPU, and one that is computed in another way already stay as they are.

    Args:
        name: "torch", "openvino", or "auto": OpenVINO where it is installed, can take the network, and saves more time
            on so many `inputs` than it takes to begin; else torch.
        precision: "fp32", "bf16", "auto" (bf16 where the hardware has it), or "int8".
        run: the folder of the network's run: int8 is calibrated on its training samples, and what it costs is
            measured on its validation samples and said.

    Raises:
        InputError: no such engine or precision; it is not installed; int8 without a run, or at too high a price.
    """
    if name not in ENGINES:
        raise InputError(f"no engine is called {name!r}{did_you_mean(name, ENGINES)}; there are {', '.join(ENGINES)}")
    if precision not in PRECISIONS:
        raise InputError(f"the precisions of predicting are {', '.join(PRECISIONS)}, not {precision!r}")
    if _settled(network):
        if name != "openvino" and precision in ("auto", "fp32"):
            return network
        raise InputError(
            f"engine {name!r} with precision {precision!r} is for a network of pictures on a CPU that is computed "
            'plainly; leave both at "auto"'
        )
    console = console or Console(quiet=True)
    kind = precision if precision != "auto" else "bf16" if has_bf16("cpu") else "fp32"
    if kind == "int8" and (run is None or not run.is_dir()):
        raise InputError(
            "precision int8 is calibrated on a run's own training samples; give the run's folder, not its weights alone"
        )

    def made_by(chosen: str) -> Network:
        made: Callable[..., Any] = engine if chosen == "openvino" else fuse
        if kind == "int8":
            assert run is not None
            quick = _in_int8(network, made, run, console, stop)
        else:
            quick = made(network, kind)
        console.print(f"computed by {chosen} in {kind}")
        return quick

    chosen = name if name != "auto" else fastest(_work(network, inputs))[0]
    try:
        return made_by(chosen)
    except InputError as error:
        if name != "auto" or chosen == "torch":
            raise
        console.print(f"{error}; computed by torch instead")
        return made_by("torch")


def _work(network: Network, inputs: int | None) -> float:
    """Multiply-adds that so many inputs take, as many as can be where nobody knows how many there are."""
    if inputs is None:
        return math.inf
    if inputs <= _FEW or len(fastest()) == 1:
        return 0.0
    try:
        return inputs * summary(build_meta_network(network.plan), (1, *network.require_image_spec().input_shape)).macs
    except ShapeError:  # it was changed by hand, and is no longer what its plan says
        return 0.0


def _settled(network: Network) -> bool:
    """Whether there is nothing to choose: no pictures, no CPU, or an engine at work already."""
    elsewhere = any(p.device.type != "cpu" for p in network.parameters())
    return elsewhere or network.forward_impl is not None or "in_features" in network.plan or not network.plan


def _in_int8(network: Network, made: Callable[..., Any], run: Path, console: Console, stop: StopFlag | None) -> Network:
    samples = samples_of(run, network, _CALIBRATION, console=console, stop=stop)
    quick: Network = made(network, "int8", samples["train"][0])
    accuracy = batches_accuracy(*samples["val"], batch_size=64)
    before, after = accuracy(network), accuracy(quick)
    console.print(
        f"int8: accuracy {after:.2%} in place of {before:.2%} on {len(samples['val'][1]):,} validation pictures"
    )
    if before - after > _MOST_LOST:
        raise InputError(
            f"int8 costs {before - after:.2%} of accuracy here, more than {_MOST_LOST:.0%}; use --precision bf16"
        )
    return quick
