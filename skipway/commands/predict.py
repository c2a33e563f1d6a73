"""Predict classes, labels or numbers for images and for table rows."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skipway.commands.inference_device import network_on_device
from skipway.commands.inference_engine import needs_cpu, with_fastest_engine
from skipway.commands.prediction_inputs import PredictionInput, prepare_ahead
from skipway.commands.prediction_output import MAX_SHARES, NOT_FINITE, Prediction, Shares
from skipway.commands.table_inputs import list_image_inputs
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.table import Table
from skipway.data.table_layout import TableLayout
from skipway.data.tables.id_columns import IdColumns
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, Interrupted, printable
from skipway.models.head import require_classes
from skipway.models.network import Network
from skipway.models.network_outputs import (
    as_table,
    batch_size_for,
    count_views,
    describe_views,
    pixel_outputs,
    row_outputs,
)
from skipway.utils.console import Console
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = ["predict"]

_BATCH_SIZE = 64


def predict(
    run: Network | str | os.PathLike[str],
    sources: Any,
    *,
    top: int = 3,
    tta: bool | None = None,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    skip_rows: int | None = None,
    header: bool | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> list[Prediction]:
    """Predict classes, labels or numbers with a trained model.

    If an input is unreadable, or the outputs of the model for it are not finite, its prediction has a reason instead of
    an answer. The other inputs are not affected.

    Args:
        run: run folder, weights file or network.
        sources: one or several image paths, folders, archives, arrays (H, W) or (H, W, C), PIL images, or tables that
            name images; for a table model, table files or DataFrames. A folder includes its images at any depth.
        top: number of most likely classes or labels in `Prediction.top`. `Prediction.labels` of a multilabel model has
            all labels whose probability reaches their threshold.
        tta: average the outputs over several views of each image (test-time augmentation). The default is that of the
            model, which its run set.
        engine: inference engine for image models: "torch" (fused, see `skipway.export.fuse`), "openvino", or "auto"
            (the installed engine that is fastest for this many images).
        precision: "fp32", "bf16", "int8" (calibrated on training images of the run), or "auto" (for classes and labels,
            bf16 if the hardware supports it; else fp32). Probabilities differ by about 1e-6 in fp32, and by about 1e-3
            in bf16.
        device: "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps". "auto" leaves a network where it is, and uses an
            accelerator for the images of a run or a file if there is one.
        skip_rows: number of lines above the header of text tables; None to detect them.
        header: False if the first line of text tables is a row, as in training; None to check it.
        console: prints progress and warnings; by default, nothing is printed.
        stop: flag that stops the prediction when it is set.

    Returns:
        One `Prediction` per image or row, in order.

    Raises:
        InputError: an argument is invalid, or no input is an image or a table row.
        Interrupted: `stop` was set.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> from sklearn.datasets import load_wine
    >>> predictions = predict(run.path, load_wine(as_frame=True).frame.head(2))
    >>> [prediction.noun for prediction in predictions], len(predictions[0].top)
    (['row', 'row'], 3)
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    if top < 1:
        raise InputError(f"invalid top: expected an integer of at least 1, got {top}. Pass such a number.")
    layout = TableLayout(skip_rows=skip_rows, header=header)
    network = network_on_device(run, device, needs_cpu=needs_cpu(engine, precision))
    require_classes(network.plan, "predict")
    if isinstance(network.spec, TableSpec):
        return _predict_tables(network, sources, top, console, layout)
    inputs = list_image_inputs(sources, network.require_image_spec(), console, layout)
    views = count_views(network.spec, tta)
    network = with_fastest_engine(
        network,
        engine,
        precision,
        inputs=len(inputs) * views,
        run=None if isinstance(run, Network) else Path(run),
        console=console,
        stop=stop,
    )
    for line in describe_views(views):
        console.print(line)
    predictions: list[Prediction] = []
    notes: dict[str, list[str]] = {}
    bar = console.bar("predicting", len(inputs))
    batch_size = batch_size_for(network.require_image_spec(), _BATCH_SIZE)
    prepared = prepare_ahead(
        inputs,
        network.require_image_spec(),
        2 * batch_size,
        lambda name, note: notes.setdefault(name, []).append(note),
    )
    for start in range(0, len(inputs), batch_size):
        if stop.requested:
            raise Interrupted(
                f"stopped by {stop.name} after {start:,} of {count_of(len(inputs), 'image')}. Run it again."
            )
        predictions += _predict_batch(network, list(islice(prepared, batch_size)), top, tta, notes)
        bar.at(len(predictions))
    bar.done()
    _print_notes(notes, len(inputs), console)
    return predictions


def _print_notes(notes: dict[str, list[str]], total: int, console: Console) -> None:
    """Print each note once, with the number of its images, from the notes of each image."""
    names_of: dict[str, list[str]] = {}
    for name, texts in notes.items():
        for note in texts:
            names_of.setdefault(note, []).append(name)
    for note, names in names_of.items():
        console.print(f"warning: {len(names):,} of {count_of(total, 'image')}, first {printable(names[0])}: {note}")


def _predict_batch(
    network: Network,
    batch: list[tuple[PredictionInput, np.ndarray | InputError]],
    top: int,
    tta: bool | None,
    notes: dict[str, list[str]],
) -> Iterator[Prediction]:
    """Yield the predictions for a batch of images with their pixels, in order; `notes` are those of each image."""
    spec = network.require_image_spec()
    usable = [pixels for _, pixels in batch if isinstance(pixels, np.ndarray)]
    columns = [image.row for image, pixels in batch if isinstance(pixels, np.ndarray) and image.row is not None]
    rows = np.stack(columns) if columns else None
    outputs = iter(pixel_outputs(network, spec, usable, rows=rows, tta=tta) if usable else ())
    for image, pixels in batch:
        remark = "; ".join(dict.fromkeys([text for text in (image.remark, *notes.get(image.name, ())) if text]))
        if isinstance(pixels, InputError):
            yield Prediction(image.name, (), printable(pixels), remark=remark)
            continue
        yield replace(_prediction(spec, image.name, next(outputs), top, "image"), remark=remark)


def _prediction(spec: OutputSpec, name: str, values: np.ndarray, top: int, noun: Literal["image", "row"]) -> Prediction:
    """Return the Prediction for the values (K,) of one input, see `OutputSpec.values`."""
    if not np.isfinite(values).all():
        return Prediction(name, (), NOT_FINITE, noun=noun)
    if spec.task == "regression":
        numbers = (float(f"{value:.7g}") for value in values)  # about the precision of float32
        return Prediction(name, (), values=tuple(zip(spec.target_names, numbers, strict=True)), noun=noun)

    def with_shares(indices: Iterable[int]) -> tuple[tuple[str, float], ...]:
        return tuple((spec.class_names[i], float(values[i])) for i in indices)

    most_likely = with_shares(np.argsort(-values, kind="stable")[:top])
    shares = Shares(spec.class_names, values) if len(values) <= MAX_SHARES else None
    if spec.task == "classification":
        return Prediction(name, most_likely, noun=noun, shares=shares)
    labels = with_shares(spec.labels_over_threshold(values))
    return Prediction(name, most_likely, labels=labels, separator=spec.separator, noun=noun, shares=shares)


def _predict_tables(
    network: Network, sources: Any, top: int, console: Console, layout: TableLayout
) -> list[Prediction]:
    """Return one Prediction per table row, in order; a row with an invalid cell gets a reason that names the cell.

    Columns are matched by name. The target is not needed, and additional columns are ignored. A table that cannot
    be used, one of several, has one Prediction with the reason.
    """
    if isinstance(sources, str | os.PathLike) or hasattr(sources, "shape") or not isinstance(sources, Iterable):
        sources = [sources]
    tables, predictions = list(sources), list[Prediction]()
    for source in tables:
        try:
            predictions += _predict_rows(network, as_table(source, layout), top, console)
        except InputError as error:
            if len(tables) == 1:
                raise
            name = str(source) if isinstance(source, str | os.PathLike) else "table"
            predictions.append(Prediction(name, (), printable(error), noun="row"))
    if not predictions:
        raise InputError(
            "cannot predict: expected at least one table with rows, got none. Pass a .csv, .tsv or .parquet file, or a "
            "DataFrame."
        )
    return predictions


def _predict_rows(network: Network, table: Table, top: int, console: Console) -> Iterator[Prediction]:
    """Yield the predictions for the rows of one table, and print remarks on its values."""
    spec = network.require_table_spec()
    encoded = spec.encode(table)
    ids = IdColumns(table, spec.id_names)
    for line in [*table.notes, *encoded.remarks(), *ids.warnings]:
        console.print(f"{printable(table.name)}: {line}")
    errors, remarks = encoded.errors(), encoded.row_remarks()
    for i, output in enumerate(row_outputs(network, spec, encoded.x)):
        if i in errors:
            prediction = Prediction(table.row_name(i), (), errors[i], noun="row")
        else:
            prediction = _prediction(spec, table.row_name(i), output, top, "row")
        yield replace(prediction, ids=ids.of_row(i), remark=remarks.get(i, ""))
