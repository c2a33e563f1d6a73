"""Lines that a run prints: what it trains on and how before the first epoch, and how it went after the last."""

from pathlib import Path
from typing import Any

import torch

from skipway.errors import printable
from skipway.models.network import Network
from skipway.runs.datamodule import DataModule
from skipway.runs.headline import describe_precision, describe_uncertainty, offer_folds
from skipway.runs.small_sets import few_steps_line
from skipway.training.lr_finder import RangeTest
from skipway.training.trainer import Settings
from skipway.utils.atomic_files import free_bytes
from skipway.utils.console import duration

_HEAD = "the head by regression on the outputs of the frozen layers"

__all__ = ["introduction", "range_test_line", "verdict"]


def introduction(
    datamodule: DataModule,
    network: Network,
    settings: Settings,
    batch_size: int,
    *,
    folder: Path,
    lr_is_open: bool,
    epochs_are_open: bool,
) -> list[str]:
    """Return lines about the data, the network and the settings, and a warning if the disk is nearly full.

    Args:
        datamodule, network, settings, batch_size: those of the run.
        folder: the run's, for the space that is free there.
        lr_is_open: whether a range test is still to find the learning rate.
        epochs_are_open: whether the time is still to set the epochs.
    """
    count = sum(p.numel() for p in network.parameters())
    stem = f" ({network.plan['stem']} stem)" if "stem" in network.plan else ""
    assert network.spec is not None
    shape = "x".join(map(str, network.spec.input_shape))
    highest_lr = "what a range test will find" if lr_is_open else f"{settings.lr:.4g}"
    lines = [
        *datamodule.summary_lines(),
        f"network: {network.plan['name']}{stem}, {count:,} parameters, input {shape}",
    ]
    where = f"{settings.precision} on {settings.device} with {torch.get_num_threads()} threads"
    steps = (
        f"{settings.epochs} epochs, batch {batch_size}, {settings.optimizer} up to {highest_lr} "
        f"({settings.schedule}), augmentation: {datamodule.describe_augmentation()}, {where}"
    )
    if settings.head != "regression":
        lines.append(f"training: {steps}")
    elif settings.epochs > 1:
        learning = "all layers learn"
        if settings.freeze_until is not None:
            views = datamodule.recipe.views
            learning = f"the layers after {settings.freeze_until} learn from {views} views of each image"
        lines.append(f"training: {_HEAD} in place of the first epoch, after it {learning}; {steps}")
    elif epochs_are_open and settings.time_limit is not None:
        lines.append(f"training: {_HEAD}, then all layers if the time limit leaves room for it, {where}")
    else:
        lines.append(f"training: {_HEAD} alone, {where}; more layers learn with --time-limit 600 or --epochs 5")
    line = few_steps_line(settings.epochs, datamodule.count("train"), batch_size, settings.grad_accum_steps)
    if line and settings.head != "regression":
        lines.append(line)
    copies = 2 + (settings.optimizer == "adamw") + (settings.ema is not None)
    needed = 3 * 4 * count * copies  # the checkpoint being written and the two that are kept
    if (free := free_bytes(folder)) < needed:
        lines.append(f"  mind: {free:,} bytes are free in {folder}, checkpoints may need {needed:,}")
    return lines


def range_test_line(result: RangeTest) -> str:
    """Return the line about a learning rate that a range test found."""
    return (
        f"  learning rate: {result.suggestion:.3g} by the range test, between its valley at {result.valley:.3g} and "
        f"its steepest fall at {result.steepest:.3g}"
    )


def verdict(metrics: dict[str, Any], metric: str, datamodule: DataModule, *, folder: Path, report: Path) -> str:
    """Return the last lines of a run: its primary metric on each split, its speed, where its report is."""
    test = f", test {_split_result(metrics, metric, datamodule, 'test')}" if f"test_{metric}" in metrics else ""
    baseline = metrics.get("baseline", {})
    compared = f" ({baseline['name']}: {baseline[f'val_{metric}']:.4g})" if f"val_{metric}" in baseline else ""
    evaluated = metrics["evaluated_by"]["precision"]
    differences = describe_precision(metrics["resolved"]["precision"], evaluated, views=datamodule.recipe.tta)
    is_fold, noun = datamodule.recipe.fold is not None, "rows" if datamodule.noun == "rows" else "images"
    offer = "" if is_fold else offer_folds(metrics["data"], noun)
    return (
        f"{metrics['status']}: validation {_split_result(metrics, metric, datamodule, 'val')}{compared} "
        f"(epoch {metrics['best_epoch']}){test}, {duration(metrics['seconds'])}, "
        f"{metrics['samples_per_second']:,.0f} {datamodule.noun}/s\n"
        f"{differences}report: {report}\nweights: {folder}/weights/best.safetensors{offer}"
    )


def _split_result(metrics: dict[str, Any], metric: str, datamodule: DataModule, split: str) -> str:
    value = metrics[f"{split}_{metric}"]
    number = f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}"
    count = datamodule.count(split)
    return f"{metric} {number} of {count:,}{printable(describe_uncertainty(metrics, metric, split, count))}"
