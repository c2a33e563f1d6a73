"""Inference engines: choose the fastest installed engine and precision for a trained network."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skipway.data.images.image_rows import ImageRows
from skipway.errors import InputError, ShapeError, did_you_mean
from skipway.export.export_model import fuse
from skipway.export.openvino import PRECISIONS, fastest
from skipway.export.openvino import engine as openvino_engine
from skipway.model_factory import row_shapes
from skipway.models.network import Network, build_meta_network
from skipway.nn.shape_inference import evaluation
from skipway.probe.summary import summary
from skipway.runs.report_samples import samples_of
from skipway.training.losses import Task, task_of
from skipway.utils.console import Console
from skipway.utils.devices import has_bf16
from skipway.utils.stop_signals import StopFlag

__all__ = ["ENGINES", "needs_cpu", "with_fastest_engine"]

ENGINES = ("auto", "openvino", "torch")
_CALIBRATION = {"train": 128, "val": 500}  # train samples set the int8 ranges, val samples measure the accuracy loss
_FEW_INPUTS = 40  # for fewer inputs another engine never pays off; counting the work takes a second
_MAX_LOSS = 0.02  # largest accepted loss of the metric in int8
_BATCH_SIZE = 64  # samples per step of the metric
_METRICS = {"classification": "accuracy", "multilabel": "mean average precision", "regression": "R2"}


def needs_cpu(engine: str, precision: str) -> bool:
    """Return True if an engine or a precision exists only for models on a CPU."""
    return engine == "openvino" or precision not in ("auto", "fp32")


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
    """Return `network` fused and compiled for the fastest inference engine.

    Table models, networks on other devices than a CPU, and networks that already have an engine are returned unchanged.

    Args:
        network: trained network.
        engine: "torch", "openvino" or "auto". "auto" uses OpenVINO if it is installed, supports the network, and saves
            more time on this many `inputs` than it needs to start; else torch.
        precision: "fp32", "bf16", "int8", or "auto" (bf16 for classes and labels if the hardware supports it; otherwise
            fp32, because a number in bf16 has two or three digits).
        inputs: number of inputs, if known.
        run: folder of the network's run. int8 is calibrated on its training samples, and the accuracy loss on its
            validation samples is printed.
        console: prints the choice; by default, nothing is printed.
        stop: flag that stops the reading of samples when it is set.

    Raises:
        InputError: the engine or precision is unknown, not installed or not supported; int8 has no run, or loses too
            much accuracy.
    """
    if engine not in ENGINES:
        raise InputError(
            f"invalid engine: expected one of {', '.join(ENGINES)}, got {engine!r}{did_you_mean(engine, ENGINES)}. "
            "Choose another --engine."
        )
    if precision not in PRECISIONS:
        raise InputError(
            f"invalid precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}. Choose another "
            "--precision."
        )
    if not _can_choose(network):
        if not needs_cpu(engine, precision):
            return network
        raise InputError(
            f"cannot use engine {engine!r} with precision {precision!r}: only an image model on a CPU, without another "
            'engine, supports them. Leave both at "auto".'
        )
    console = console or Console(quiet=True)
    kind = _resolve_precision(precision, network)
    samples = _calibration_samples(network, run, console, stop) if kind == "int8" else {}

    def convert(name: str) -> Network:
        converted = _convert(network, name, kind, samples=samples, console=console)
        console.print(f"engine: {name} ({kind})")
        return converted

    name = engine if engine != "auto" else fastest(_work(network, inputs))[0]
    try:
        return convert(name)
    except InputError as error:
        if engine != "auto" or name == "torch":
            raise
        console.print(f"warning: falling back to torch: {error}")
        return convert("torch")


def _can_choose(network: Network) -> bool:
    """Return True for an image model on a CPU that has no engine yet."""
    plan = network.plan
    if network.forward_impl is not None or not plan or "in_features" in plan:
        return False
    return all(p.device.type == "cpu" for p in network.parameters())


def _resolve_precision(precision: str, network: Network) -> str:
    if precision != "auto":
        return precision
    has_numbers = network.spec is not None and network.spec.task == "regression"
    return "bf16" if has_bf16("cpu") and not has_numbers else "fp32"


def _work(network: Network, inputs: int | None) -> float:
    """Return the multiply-adds for this many inputs, or infinity if their number is unknown."""
    if inputs is None:
        return math.inf
    if inputs <= _FEW_INPUTS or len(fastest()) == 1:
        return 0.0
    try:
        meta, shape = build_meta_network(network.plan), (1, *network.require_image_spec().input_shape)
        return inputs * summary(meta, shape, **row_shapes(network.plan)).macs
    except ShapeError:  # the network was changed by hand and no longer matches its plan
        return 0.0


def _calibration_samples(
    network: Network, run: Path | None, console: Console, stop: StopFlag | None
) -> dict[str, tuple[Any, Tensor]]:
    """Return the samples of the run that calibrate and evaluate int8."""
    if run is None or not run.is_dir():
        raise InputError(
            "cannot calibrate int8: expected a run folder, whose training samples set the ranges, got only a network. "
            "Pass the run folder, or use --precision bf16."
        )
    return samples_of(run, network, _CALIBRATION, console=console, stop=stop)


def _convert(
    network: Network,
    name: str,
    precision: str,
    *,
    samples: dict[str, tuple[Any, Tensor]],
    console: Console,
) -> Network:
    """Convert the network to the engine `name`; raise an error if int8 loses too much accuracy."""
    make: Callable[..., Any] = openvino_engine if name == "openvino" else fuse
    if precision != "int8":
        return make(network, precision)
    inputs = samples["train"][0]
    converted: Network = make(network, "int8", inputs.images if isinstance(inputs, ImageRows) else inputs)
    assert network.spec is not None
    task = network.spec.task
    before, after = (_primary_metric(model, task_of(network.spec), *samples["val"]) for model in (network, converted))
    name, count = _METRICS[task], len(samples["val"][1])
    form = ".4f" if task == "regression" else ".2%"  # R2 is no share of the samples
    console.print(f"int8: {name} {after:{form}} (unquantized: {before:{form}}) on {count:,} validation images")
    if not before - after <= _MAX_LOSS:
        raise InputError(
            f"cannot use int8: expected a loss of {name} of at most {_MAX_LOSS:{form}}, got {before - after:{form}}. "
            f"Use --precision {'fp32' if task == 'regression' else 'bf16'}."
        )
    return converted


def _primary_metric(network: Network, task: Task, x: Any, y: Tensor) -> float:
    """Compute the metric of the task on samples x (N, C, H, W), also with feature columns, and their targets y."""
    parts = (x[start : start + _BATCH_SIZE] for start in range(0, len(y), _BATCH_SIZE))
    with evaluation(network), torch.inference_mode():
        outputs = torch.cat([network(part).float() for part in parts])
    return float(task.scores(outputs, y, np.arange(len(y))).primary_metric)
