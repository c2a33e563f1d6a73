"""Inference engines: how a trained network that only predicts is computed, by default by the fastest one installed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.export.export_model import fuse
from skipway.export.openvino import PRECISIONS, fastest
from skipway.export.openvino import engine as openvino_engine
from skipway.models.network import Network, build_meta_network
from skipway.probe.block_stats import batches_accuracy
from skipway.probe.summary import summary
from skipway.runs.report_samples import samples_of
from skipway.training.trainer import has_bf16
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = ["ENGINES", "with_fastest_engine"]

ENGINES = ("auto", "openvino", "torch")
_CALIBRATION = {"train": 128, "val": 500}  # samples: the one chooses the ranges, the other measures what they cost
_FEW_INPUTS = 40  # of which no network makes so much work that another engine would pay; counting it takes a second
_MAX_LOSS = 0.02  # of the accuracy, beyond which int8 is refused


def with_fastest_engine(
    network: Network,
    engine: str = "auto",
    precision: str = "auto",
    *,
    inputs: int | None = None,
    run: Path | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Network:
    """Return `network` as it predicts fastest: fused, and computed by `engine`.

    A network of tables, one elsewhere than on a CPU, and one that is computed in another way already stay as they are.

    Args:
        network: the network.
        engine: "torch", "openvino", or "auto": OpenVINO if it is installed, can take the network, and saves more time
            on so many `inputs` than it takes to begin; else torch.
        precision: "fp32", "bf16", "auto" (bf16 if the hardware has it), or "int8".
        inputs: how many there are, if known.
        run: the folder of the network's run: int8 is calibrated on its training samples, and what it costs is
            measured on its validation samples and printed.
        console: where the choice is printed; default: nowhere.
        stop: a flag that ends the reading of samples when it is set.

    Raises:
        InputError: no such engine or precision; it is not installed; int8 without a run, or at too high a price.
    """
    if engine not in ENGINES:
        raise InputError(
            f"no engine is called {engine!r}{did_you_mean(engine, ENGINES)}; there are {', '.join(ENGINES)}"
        )
    if precision not in PRECISIONS:
        raise InputError(f"the precisions of predicting are {', '.join(PRECISIONS)}, not {precision!r}")
    if not _can_choose(network):
        if engine != "openvino" and precision in ("auto", "fp32"):
            return network
        raise InputError(
            f"engine {engine!r} with precision {precision!r} is for a network of images on a CPU that is computed "
            'plainly; leave both at "auto"'
        )
    console = console or Console(quiet=True)
    kind = _resolve_precision(precision)
    samples = _calibration_samples(network, run, console, stop) if kind == "int8" else {}

    def convert(name: str) -> Network:
        converted = _convert(network, name, kind, samples=samples, console=console)
        console.print(f"computed by {name} in {kind}")
        return converted

    name = engine if engine != "auto" else fastest(_work(network, inputs))[0]
    try:
        return convert(name)
    except InputError as error:
        if engine != "auto" or name == "torch":
            raise
        console.print(f"{error}; computed by torch instead")
        return convert("torch")


def _can_choose(network: Network) -> bool:
    """Whether the network takes images, is on a CPU, and has no engine already."""
    if network.forward_impl is not None or "in_features" in network.plan or not network.plan:
        return False
    return all(p.device.type == "cpu" for p in network.parameters())


def _resolve_precision(precision: str) -> str:
    if precision != "auto":
        return precision
    return "bf16" if has_bf16("cpu") else "fp32"


def _work(network: Network, inputs: int | None) -> float:
    """Return the multiply-adds that so many inputs take, infinity if their number is unknown."""
    if inputs is None:
        return math.inf
    if inputs <= _FEW_INPUTS or len(fastest()) == 1:
        return 0.0
    try:
        return inputs * summary(build_meta_network(network.plan), (1, *network.require_image_spec().input_shape)).macs
    except ShapeError:  # it was changed by hand, and is no longer what its plan says
        return 0.0


def _calibration_samples(
    network: Network, run: Path | None, console: Console, stop: StopFlag | None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the samples of the network's run that int8 is calibrated and measured on."""
    if run is None or not run.is_dir():
        raise InputError(
            "precision int8 is calibrated on a run's own training samples; give the run's folder, not its weights alone"
        )
    return samples_of(run, network, _CALIBRATION, console=console, stop=stop)


def _convert(
    network: Network,
    name: str,
    precision: str,
    *,
    samples: dict[str, tuple[Tensor, Tensor]],
    console: Console,
) -> Network:
    """Return the network computed by the engine called `name`; in int8, refuse it if it loses too much accuracy."""
    make: Callable[..., Any] = openvino_engine if name == "openvino" else fuse
    if precision != "int8":
        return make(network, precision)
    converted: Network = make(network, "int8", samples["train"][0])
    accuracy = batches_accuracy(*samples["val"], batch_size=64)
    before, after = accuracy(network), accuracy(converted)
    console.print(
        f"int8: accuracy {after:.2%} in place of {before:.2%} on {len(samples['val'][1]):,} validation images"
    )
    if before - after > _MAX_LOSS:
        raise InputError(
            f"int8 costs {before - after:.2%} of accuracy here, more than {_MAX_LOSS:.0%}; use --precision bf16"
        )
    return converted
