"""Evaluate a trained network on labeled images or on a labeled table."""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from skipway.commands.inference_engine import quickened
from skipway.commands.predict_table import evaluate_table
from skipway.commands.write_predictions import Evaluation, RegressionEvaluation
from skipway.data.images.decoded_cache import DecodeSettings, decode_images
from skipway.data.images.loader import ImageBatches
from skipway.data.sources.choose_source import open_source
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, Interrupted, printable
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.models.prediction import average_views
from skipway.training.losses import Classification
from skipway.training.metrics import ClassScores, compute_metrics, per_class, score
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["evaluate"]

_BATCH = 128


def evaluate(
    run: Network | str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    split: str | None = None,
    tta: bool = False,
    engine: str = "auto",
    precision: str = "auto",
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> Evaluation | RegressionEvaluation:
    """Accuracy, loss and a row per class of a trained network on `data`; classes are matched by name.

    `split` is "train", "val" or "test"; by default test where there is one, else val, else all pictures.
    With `tta` the mean over several views of each picture counts; `engine` and `precision` are those of `predict`.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    network = run if isinstance(run, Network) else load(run)
    if isinstance(network.spec, TableSpec):
        return evaluate_table(network, os.fspath(data), split)
    spec = network.require_image_spec()
    source = open_source(os.fspath(data))
    there = [s for s in ("test", "val", "train") if source.count(s)]
    if split is not None and split not in there:
        raise InputError(f"{printable(data)} has no {printable(split)} split; it has {', '.join(reversed(there))}")
    chosen = split or there[0]
    unknown = [n for n in source.class_names if n not in spec.class_names]
    if unknown:
        raise InputError(
            f"{printable(data)} has classes that the network does not know: {', '.join(map(printable, unknown[:5]))}; "
            f"it knows {', '.join(map(printable, spec.class_names[:8]))}"
        )
    index = np.array([spec.class_names.index(n) for n in source.class_names])
    source = replace(
        source,
        keys={chosen: source.keys[chosen]},
        labels={chosen: index[source.labels[chosen]]},
        class_names=spec.class_names,
    )
    packing = DecodeSettings(spec.size, spec.presize, spec.channels, spec.resize_mode, interpolation=spec.interpolation)
    packed = decode_images(source, packing, 1.0, console, stop, need_every_class=False)
    rows = np.arange(len(packed.labels))
    if not len(rows):
        raise InputError(f"no picture of {printable(data)} can be read; `skipway check` names what is wrong with each")
    feed = ImageBatches(packed, rows, _BATCH, mean=spec.mean, std=spec.std)

    def poll() -> None:
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} while evaluating")

    network = quickened(
        network,
        engine,
        precision,
        inputs=len(rows),
        run=None if isinstance(run, Network) else Path(run),
        console=console,
        stop=stop,
    )
    judging, device = average_views(network, spec) if tta else network, next(network.parameters()).device
    scores: ClassScores = score(judging, feed, Classification(), nullcontext, device, poll)
    return Evaluation(
        chosen,
        len(rows),
        scores.accuracy,
        scores.loss,
        per_class(scores, spec.class_names),
        len(packed.skipped),
        compute_metrics(scores),
    )
