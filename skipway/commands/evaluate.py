"""Evaluate a trained model on labeled images or on a labeled table."""

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skipway.commands.evaluation_output import ALL, AnyEvaluation, evaluation_of
from skipway.commands.inference_device import network_on_device
from skipway.commands.inference_engine import ENGINES, needs_cpu, with_fastest_engine
from skipway.data.column_roles import ColumnRoles
from skipway.data.image_spec import Spec
from skipway.data.images.decode_source import Storage
from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodedImages, DecodeSettings
from skipway.data.images.loader import ImageBatches
from skipway.data.sources.decode import REPORTED_NOTES
from skipway.data.sources.image_source import Source
from skipway.data.sources.in_memory import held_data, hold_data
from skipway.data.sources.missing_file import missing_file
from skipway.data.sources.read_table import BUILT_IN_TABLES, read_table
from skipway.data.tables.dataset import encode_labeled
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.row_digests import DIGEST_PREFIX
from skipway.data.tables.table_source import open_table_source
from skipway.data.tables.table_spec import TableSpec
from skipway.errors import InputError, Interrupted, printable
from skipway.models.head import require_classes
from skipway.models.network import Network
from skipway.models.network_outputs import batch_size_for, count_views, describe_views, with_views
from skipway.runs.open_recipe_data import open_recipe_data
from skipway.runs.read_options import recipe_for_reading
from skipway.runs.recipe import Recipe
from skipway.runs.resume import training_digests
from skipway.training.losses import task_of
from skipway.training.metrics import score
from skipway.utils.console import Console
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = ["evaluate"]

_BATCH_SIZE = 128
_TABLE_BATCH_SIZE = 4096


def evaluate(
    run: Network | str | os.PathLike[str],
    data: Any,
    y: Any = None,
    *,
    split: str | None = None,
    tta: bool | None = None,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    console: Console | None = None,
    stop: StopFlag | None = None,
    **options: Any,
) -> AnyEvaluation:
    """Evaluate a trained model on a labeled dataset. Classes, labels and targets are matched by name.

    By default, the engine and the precision are those that evaluated the run when it ended, so that its metrics are
    reproduced: torch in float32, unless metrics.json names others.

    Args:
        run: run folder, weights file or network.
        data: labeled images or a labeled table, also as objects: see `skipway.train`.
        y: targets of objects, one per sample; None if they are part of `data`.
        split: "train", "val" or "test". The default is test if it exists, else val, else train. All samples of a
            dataset without splits are evaluated as "all".
        tta: average the outputs over several views of each image (test-time augmentation). The default is that of the
            model, which its run set.
        engine: inference engine: "auto", "torch" or "openvino".
        precision: "auto", "fp32", "bf16" or "int8".
        device: "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps". "auto" leaves a network where it is, and uses an
            accelerator for the images of a run or a file if there is one.
        console: prints progress and warnings; by default, nothing is printed.
        stop: flag that stops the evaluation when it is set.
        options: options of `train` on how the data are read, such as target, image_root and follow_links.

    Returns:
        An `Evaluation` with one row per class, a `LabelEvaluation` with one row per label, or a `RegressionEvaluation`
        with R2 and errors.

    Raises:
        InputError: an argument is invalid, the data cannot be read, or its classes, labels or targets are not those of
            the model.
        Interrupted: `stop` was set.

    >>> import tempfile, skipway as sw
    >>> run = sw.train("wine", epochs=1, output=tempfile.mkdtemp())
    >>> evaluation = evaluate(run.path, "wine")
    >>> evaluation.split, evaluation.count, 0 <= evaluation.accuracy <= 1
    ('all', 178, True)
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    with hold_data(data, y) as name:
        reading = recipe_for_reading("evaluate", name, options)
        method = _Method(device=device, engine=engine, precision=precision, tta=tta)
        return _evaluate(run, reading, split, method=method, console=console, stop=stop)


def _evaluate(
    run: Network | str | os.PathLike[str],
    reading: Recipe,
    split: str | None,
    *,
    method: "_Method",
    console: Console,
    stop: StopFlag,
) -> AnyEvaluation:
    """Evaluate a trained model on the data of a recipe; the other arguments are those of `evaluate`."""
    data = str(reading.data)
    run_path = None if isinstance(run, Network) else Path(run)
    is_open = (method.engine, method.precision) == ("auto", "auto")
    chosen = _evaluated_by(run_path) if is_open else (method.engine, method.precision)
    network = network_on_device(run, method.device, needs_cpu=chosen is not None and needs_cpu(*chosen))
    require_classes(network.plan, "evaluate")
    if isinstance(network.spec, TableSpec):
        return _evaluate_table(network, reading, split, run=run_path, console=console)
    spec = network.require_image_spec()
    source = open_recipe_data(reading, known=spec)
    if not isinstance(source, Source):
        raise InputError(
            f"cannot evaluate {printable(data)}: expected images, because the model was trained on images, got a table "
            "of rows. Pass a folder of class folders, or a table that names images."
        )
    is_asked = split is not None
    splits = [name for name in ("test", "val", "train") if source.count(name)]
    split = _chosen_split(data, split, splits)
    images = _decoded_split(source, spec, reading, split, console=console, stop=stop)
    for warning in source.warnings:
        console.print(f"warning: {warning}")
    for note in REPORTED_NOTES:
        if images.notes[note]:
            console.print(f"warning: {images.notes[note]:,} of {count_of(len(images.keys), 'image')}: {note}")
    rows = np.arange(len(images.keys))
    if not len(rows):
        raise InputError(
            f"cannot evaluate {printable(data)}: expected readable images, got none. Run `skipway check` to list the "
            "reasons."
        )
    device = next(network.parameters()).device
    batches = ImageBatches(images, rows, batch_size_for(spec, _BATCH_SIZE), spec=spec, device=device)
    for line in batches.column_remarks:
        console.print(f"{printable(images.name)}: {line}")

    def poll() -> None:
        if stop.requested:
            raise Interrupted(f"stopped by {stop.name} while evaluating. Run it again.")

    views = count_views(spec, method.tta)
    for line in describe_views(views):
        console.print(line)
    if chosen is not None and (device.type == "cpu" or not is_open):
        inputs = len(rows) * views
        network = with_fastest_engine(network, *chosen, inputs=inputs, run=run_path, console=console, stop=stop)
    model = with_views(network, spec, method.tta)
    scores = score(model, batches, task_of(spec), autocast=nullcontext, device=device, poll=poll)
    trained = _trained_digests(run_path)
    return evaluation_of(
        spec,
        scores,
        split=_name_of_split(split, splits, is_asked=is_asked),
        count=len(rows),
        skipped=len(images.skipped),
        noun="images",
        trained_on=sum(digest in trained for digest in images.digests),
        is_asked=is_asked,
    )


@dataclass(frozen=True)
class _Method:
    """Method of computing the outputs of a model; see the arguments of `evaluate`."""

    device: str
    engine: str
    precision: str
    tta: bool | None


def _run_folder(run: Path) -> Path:
    """Return the folder of a run, or of RUN/weights/best.safetensors."""
    return run if run.is_dir() else run.absolute().parent.parent


def _trained_digests(run: Path | None) -> set[str]:
    """Return the digests of the run's training set, according to its splits.csv if it exists."""
    return set() if run is None else training_digests(_run_folder(run))


def _warn_of_older_digests(trained: set[str], console: Console) -> None:
    """Warn if the rows of a run cannot be compared with others, because an earlier version stored their digests."""
    if trained and not any(digest.startswith(DIGEST_PREFIX) for digest in trained):
        console.print(
            "warning: an earlier version of skipway trained this model, so rows of its training set are not recognized"
        )


def _evaluated_by(run: Path | None) -> tuple[str, str] | None:
    """Return the engine and the precision that evaluated a run when it ended; None for plain torch, or if unknown."""
    if run is None:
        return None
    folder = _run_folder(run)
    try:
        values = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["evaluated_by"]
        chosen = values["engine"], values["precision"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    is_known = chosen[0] in ENGINES and chosen[1] in ("fp32", "bf16")
    return chosen if is_known and chosen != ("torch", "fp32") else None


def _chosen_split(data: object, split: str | None, available: Sequence[str]) -> str:
    """Return `split`, or the first available split if it is None."""
    if split is not None and split not in available:
        raise InputError(
            f"cannot evaluate {printable(data)}: expected the split {' or '.join(reversed(available))}, got "
            f"{printable(split)!r}. Choose another --split."
        )
    return split or available[0]


def _name_of_split(split: str, available: Sequence[str], *, is_asked: bool) -> str:
    """Return the split in words: data without splits is no training set, unless the caller names it so."""
    return ALL if list(available) == ["train"] and not is_asked else split


def _decoded_split(
    source: Source, spec: Spec, reading: Recipe, split: str, *, console: Console, stop: StopFlag
) -> DecodedImages:
    """Decode the images of one split for the network, with targets in the order of its outputs."""
    source = replace(
        source,
        keys={split: source.keys[split]},
        targets={split: _targets_of_model(source, spec, split, data=str(reading.data))},
        class_names=spec.class_names,
        target_names=spec.target_names,
    )
    decode_settings = DecodeSettings.of(spec, reading.max_pixels)
    return decode_images(
        source,
        decode_settings,
        1.0,
        console=console,
        stop=stop,
        need_every_class=False,
        storage=Storage(cache_size=reading.cache_size),
    )


def _targets_of_model(source: Source, spec: Spec, split: str, *, data: str) -> np.ndarray:
    """Return the targets of a split with the classes, labels or numbers of the model, matched by name.

    A label that does not occur in the data is absent from all images.
    """
    if source.task != spec.task:
        raise InputError(
            f"cannot evaluate {printable(data)}: expected targets for {spec.task}, the task of the model, got "
            f"{source.task}. Set --target and --label-sep as in training, or evaluate another model."
        )
    noun = {"classification": "classes", "multilabel": "labels", "regression": "targets"}[spec.task]
    expected, names = (of.class_names or of.target_names for of in (spec, source))
    unknown = [name for name in names if name not in expected]
    lacking = [name for name in expected if name not in names] if spec.task == "regression" else []
    if unknown or lacking:
        raise InputError(
            f"cannot evaluate {printable(data)}: expected the {noun} of the model "
            f"({', '.join(map(printable, expected[:8]))}), got {', '.join(map(printable, (unknown or names)[:5]))}. "
            f"Rename the {noun}, or evaluate another model."
        )
    places = np.array([expected.index(name) for name in names])
    targets = source.targets[split]
    if spec.task == "classification":
        return places[targets]
    matched = np.zeros((len(targets), len(expected)), targets.dtype)
    matched[:, places] = targets
    return matched


def _evaluate_table(
    network: Network, reading: Recipe, split: str | None, *, run: Path | None, console: Console
) -> AnyEvaluation:
    """Return the metrics of `network` on a split of a table: by default test if it exists, else val, else train."""
    spec, data = network.require_table_spec(), str(reading.data)
    if held_data(data) is not None or data in BUILT_IN_TABLES:
        reading.layout.refuse_unused("this data", "no file")
    read = partial(read_table, layout=reading.layout)
    tables = open_table_source(data, ColumnRoles(target=spec.target_names), read)
    if tables is None and held_data(data) is None and not Path(data).expanduser().exists():
        raise missing_file(Path(data))
    if tables is None:
        raise InputError(
            f"cannot evaluate {printable(data)}: expected a table, because the model was trained on one. Pass a .csv "
            "or .parquet file."
        )
    is_asked = split is not None
    splits = [name for name in ("test", "val", "train") if name in tables.splits]
    split = _chosen_split(data, split, splits)
    table = tables.splits[split]
    rows = encode_labeled(table, spec)
    for line in [*table.notes, *rows.encoded.remarks()]:
        console.print(f"{printable(table.name)}: {line}")
    trained = _trained_digests(run)
    _warn_of_older_digests(trained, console)
    task = task_of(spec, samples="rows")
    batches = RowBatches(rows.x, rows.y, np.arange(len(rows.y)), _TABLE_BATCH_SIZE)
    scores = score(network, batches, task, autocast=nullcontext, device=next(network.parameters()).device)
    return evaluation_of(
        spec,
        scores,
        split=_name_of_split(split, splits, is_asked=is_asked),
        count=len(rows.y),
        skipped=rows.skipped,
        noun="rows",
        trained_on=sum(digest in trained for digest in rows.digests),
        is_asked=is_asked,
    )
