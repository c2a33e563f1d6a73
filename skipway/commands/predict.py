"""Predict classes or numbers for images and for rows of tables."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from skipway.commands.inference_engine import quickened
from skipway.commands.predict_table import predict_tables
from skipway.commands.write_predictions import Prediction
from skipway.data.image_spec import Spec
from skipway.data.sources.image_folder import picture_files
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, Interrupted, printable
from skipway.models.load_model import load
from skipway.models.network import Network
from skipway.models.prediction import prepare_image
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["predict"]

_BATCH = 64


def predict(
    run: Network | str | os.PathLike[str],
    sources: Any,
    *,
    top: int = 3,
    tta: bool = False,
    engine: str = "auto",
    precision: str = "auto",
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> list[Prediction]:
    """One Prediction per picture or row, in order: `sources` are paths or uint8 arrays, one or several.

    For a network of tables they are table files or DataFrames.

    A folder stands for its pictures at any depth. What cannot be used has a reason in place of classes, and the others
    still get theirs. With `tta` the mean over several views of each picture counts.

    Networks of pictures are computed by `engine`: "torch" (fused: see `skipway.export.fuse`), "openvino", or "auto",
    whichever of those that are installed is done first with so many pictures. `precision` is "bf16"
    where the hardware has it, else "fp32"; "int8" is calibrated on the run's own training pictures. Probabilities
    differ by about 1e-6 in fp32, and by some 1e-3 in bf16.
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    if top < 1:
        raise InputError(f"top must be at least 1, not {top}")
    network = run if isinstance(run, Network) else load(run)
    if isinstance(network.spec, TableSpec):
        return predict_tables(network, sources, top, console)
    spec = network.require_image_spec()
    if isinstance(sources, str | os.PathLike | np.ndarray):
        sources = [sources]
    inputs = [path for source in sources for path in _expanded(source)]
    if not inputs:
        raise InputError("predict needs at least one picture or a folder that holds some")
    network = quickened(
        network,
        engine,
        precision,
        inputs=len(inputs),
        run=None if isinstance(run, Network) else Path(run),
        console=console,
        stop=stop,
    )
    rows: list[Prediction] = []
    bar = console.bar("predicting", len(inputs))
    for begin in range(0, len(inputs), _BATCH):
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} after {begin:,} of {len(inputs):,} pictures")
        chunk = inputs[begin : begin + _BATCH]
        prepared = [_prepared(item, spec) for item in chunk]
        usable = [p for p in prepared if isinstance(p, np.ndarray)]
        probabilities = iter(network.probabilities(usable, tta) if usable else ())
        for item, outcome in zip(chunk, prepared, strict=True):
            name = "array" if isinstance(item, np.ndarray) else str(item)
            if isinstance(outcome, InputError):
                rows.append(Prediction(name, (), printable(outcome)))
                continue
            shares = next(probabilities)
            order = np.argsort(-shares, kind="stable")[:top]
            rows.append(Prediction(name, tuple((spec.class_names[i], float(shares[i])) for i in order)))
        bar.at(len(rows))
    bar.done()
    return rows


def _expanded(source: Any) -> list[Any]:
    if isinstance(source, np.ndarray):
        return [source]
    path = Path(source)
    return (picture_files(path) or [path]) if path.is_dir() else [path]


def _prepared(item: Any, spec: Spec) -> np.ndarray | InputError:
    """The pixels of one input, or why there are none."""
    try:
        if not isinstance(item, np.ndarray) and item.is_dir():
            raise InputError(f"{printable(item)} holds no picture; give pictures, or a folder that has some")
        return prepare_image(item, spec)
    except InputError as error:
        return error
