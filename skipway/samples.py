"""A run's own samples, for what is measured with them after training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from skipway.console import Console
from skipway.job import Job, open_job
from skipway.network import Network
from skipway.recipe import Recipe
from skipway.resume import find_data
from skipway.signals import StopFlag

__all__ = ["samples_of", "spread"]

_BATCH = 128


def samples_of(
    folder: Path,
    network: Network,
    counts: Mapping[str, int],
    *,
    data: str | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """By split, (x (N, *) as `network` takes them, y (N,)) of samples of a run's own data, spread evenly over it.

    Args:
        folder: the run's.
        counts: how many at most of each split, "train" and "val"; training samples come unchanged, without
            augmentation.
        data: where they are, where the run's recipe no longer leads to them.
    """
    recipe = Recipe.of(Recipe.read(folder / "config.yaml"))
    where = data if data is not None else find_data(recipe.data, folder)
    job = open_job(replace(recipe, data=where), new=False, epochs_told=True)
    job.prepare(console or Console(quiet=True), stop or StopFlag())
    assert network.spec is not None
    job.spec(network.spec.as_dict())
    job.settle(network, _BATCH, "cpu", {"level": "none", "transform": ""})
    return {split: spread(job, split, count) for split, count in counts.items()}


def spread(job: Job, split: str, count: int) -> tuple[Tensor, Tensor]:
    """(x (N, *), y (N,)) of up to `count` samples of a split, evenly over it, of a job that is ready to train."""
    total = job.count(split)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.arange(min(count, total)) * total // min(count, total)] = True
    parts, at = [], 0
    for x, y, _ in job.feed(split).epoch():
        some = chosen[at : at + len(y)]
        parts.append((x[some], y[some]))
        at += len(y)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
