"""Console lines of a run: its data, model and settings before the first epoch, and its results after the last one."""

from pathlib import Path
from typing import Any

import torch

from skipway.errors import printable
from skipway.models.network import Network
from skipway.models.network_outputs import count_views, describe_views
from skipway.report.headline import baseline_lead, ensemble_note, evaluation_note, kept_epoch
from skipway.runs.datamodule import DataModule
from skipway.runs.head_phase import HEAD_FITS
from skipway.runs.headline import describe_precision, describe_uncertainty, format_metric, offer_folds
from skipway.runs.small_sets import few_steps_line
from skipway.training.epoch_finder import ANNEALED, FoundEpochs
from skipway.training.lr_finder import RangeTest
from skipway.training.trainer import Settings
from skipway.utils.atomic_files import free_bytes
from skipway.utils.console import duration
from skipway.utils.devices import device_kind
from skipway.utils.format_text import count_of, in_sentence

__all__ = ["introduction", "range_test_line", "verdict"]

_EXACT = "a resumed run is exact to the bit; the algorithms are slower"
_EXACT_ANYWAY = "no effect, because runs on the CPU are exact without it"


def introduction(
    datamodule: DataModule,
    network: Network,
    settings: Settings,
    batch_size: int,
    *,
    folder: Path,
    lr_is_open: bool,
    epochs_are_open: bool,
    test_is_due: bool = False,
) -> list[str]:
    """Return the lines about data, model and settings, with a warning if disk space is low.

    Args:
        datamodule: prepared data of the run.
        network: model of the run.
        settings: resolved training settings.
        batch_size: samples per batch.
        folder: run folder, whose file system is checked for free space.
        lr_is_open: an LR range test will set the learning rate.
        epochs_are_open: the time limit will set the number of epochs.
        test_is_due: a test on training rows will set the number of epochs.
    """
    count = sum(p.numel() for p in network.parameters())
    stem = f" ({network.plan['stem']} stem)" if "stem" in network.plan else ""
    assert network.spec is not None
    shape = "x".join(map(str, network.spec.input_shape))
    lines = [
        *datamodule.summary_lines(),
        f"model: {network.plan['name']}{stem}, {count:,} parameters, input {shape}",
        *_training_lines(datamodule, settings, batch_size, lr_is_open, epochs_are_open, test_is_due),
    ]
    if datamodule.noun == "images" and (settings.head != "regression" or settings.epochs > 1):
        lines.append(f"augmentation: {datamodule.describe_augmentation()}")
    lines += describe_views(count_views(network.spec))
    threads = torch.get_num_threads()
    lines.append(f"device: {settings.device}, {settings.precision}, {count_of(threads, 'CPU thread')}")
    if datamodule.recipe.deterministic:
        lines.append(f"deterministic: {_EXACT if device_kind(settings.device) == 'cuda' else _EXACT_ANYWAY}")
    line = few_steps_line(settings.epochs, datamodule.count("train"), batch_size, settings.grad_accum_steps)
    if line and settings.head != "regression":
        lines.append(line)
    copies = 2 + (settings.optimizer == "adamw") + (settings.ema is not None)
    needed = 3 * 4 * count * copies  # the checkpoint being written and the two that are kept
    if (free := free_bytes(folder)) < needed:
        lines.append(f"  warning: checkpoints may need {needed:,} bytes, but only {free:,} are free in {folder}")
    return lines


def _training_lines(
    datamodule: DataModule,
    settings: Settings,
    batch_size: int,
    lr_is_open: bool,
    epochs_are_open: bool,
    test_is_due: bool,
) -> list[str]:
    """Return the lines about the training method, the number of epochs and the optimizer."""
    count = settings.epochs - (settings.head == "regression")  # the fit of the head counts as epoch 1
    epochs = count_of(count, "epoch")
    if epochs_are_open and settings.time_limit is not None and datamodule.time_sets_epochs:
        epochs = f"epochs that fit into {duration(settings.time_limit)}"
    if test_is_due:
        epochs = "epochs by a test on a fifth of the training rows"
    peak = "peak lr from an LR range test" if lr_is_open else f"peak lr {settings.lr:.3g}"
    steps = f"{epochs}, batch size {batch_size}, {settings.optimizer}, {peak}, {settings.schedule} schedule"
    if settings.head != "regression":
        return [f"training: {steps}"]
    head = f"head by {HEAD_FITS[datamodule.target_counts().task]} on frozen features"
    if settings.epochs > 1:
        layers = "all layers"
        if settings.freeze_until is not None:
            views = datamodule.recipe.views
            layers = f"the layers after {settings.freeze_until} on {count_of(views, 'view')} of each image"
        return [f"training: {head} (epoch 1), then fine-tuning of {layers}", f"fine-tuning: {steps}"]
    if epochs_are_open and settings.time_limit is not None:
        return [f"training: {head}, then fine-tuning of all layers if the time limit allows it"]
    return [f"training: {head}, no fine-tuning (to fine-tune, add --time-limit 600 or --epochs 5)"]


def epochs_line(found: FoundEpochs, seconds: float) -> str:
    """Return the line about the number of epochs that a test on training rows found."""
    best = count_of(found.best, "epoch")
    lowest = f"{ANNEALED} of those with the lowest loss on a fifth of the training rows, or more if it still fell,"
    return f"  {best}: {lowest} in a test of {found.tried} ({duration(seconds)})"


def range_test_line(result: RangeTest) -> str:
    """Return the line about the learning rate that an LR range test suggests."""
    return (
        f"  LR range test: peak lr {result.suggestion:.3g}, between the valley at {result.valley:.3g} and the steepest "
        f"descent at {result.steepest:.3g}"
    )


def verdict(metrics: dict[str, Any], metric: str, datamodule: DataModule, *, folder: Path, report: Path) -> str:
    """Return the last lines of a run: time, the primary metric of each split, and the files to open.

    Args:
        metrics: values of metrics.json.
        metric: "accuracy", "map" or "r2".
        datamodule: data of the run.
        folder: run folder.
        report: HTML report of the run.
    """
    noun = datamodule.noun
    evaluated = metrics["evaluated_by"]
    offer = "" if datamodule.recipe.fold is not None else offer_folds(metrics["data"], noun)
    splits = [split for split in ("val", "test") if f"{split}_{metric}" in metrics]
    lines = [
        f"{metrics['status']} after {duration(metrics['seconds'])}, {metrics['samples_per_second']:,.0f} {noun}/s, "
        f"{kept_epoch(metrics)} epoch {metrics['best_epoch']} of {metrics['epochs']}",
        *(_split_line(metrics, metric, datamodule, split) for split in splits),
        f"ensemble: {in_sentence(blend)}" if (blend := ensemble_note(metrics, metric)) else "",
        f"{lead.kind}: {in_sentence(lead.text)}" if (lead := baseline_lead(metrics, metric)) else "",
        f"note: {in_sentence(note)}" if (note := evaluation_note(metrics)) else "",
        describe_precision(
            metrics["resolved"]["precision"],
            evaluated["precision"],
            views=evaluated["views"],
            epoch=kept_epoch(metrics),
        ),
        f"report: {report}",
        f"weights: {folder}/weights/best.safetensors",
        offer,
    ]
    return "\n".join(line for line in lines if line)


def _split_line(metrics: dict[str, Any], metric: str, datamodule: DataModule, split: str) -> str:
    count, name = datamodule.count(split), f"{split}_{metric}"
    uncertainty = printable(describe_uncertainty(metrics, metric, split, count))
    value = format_metric(metrics[name], metric)
    line = f"final {split} {metric}: {value} on {count_of(count, datamodule.noun[:-1])}{uncertainty}"
    baseline = metrics.get("baseline", {})
    if name in baseline:
        line += f"\nbaseline {split} {metric}: {format_metric(baseline[name], metric)} ({baseline['name']})"
    return line
