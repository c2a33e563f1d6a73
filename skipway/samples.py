"""A run's own samples, for what is measured with them after training."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from skipway.console import Console
from skipway.job import open_job
from skipway.network import Network
from skipway.recipe import Recipe
from skipway.resume import find_data
from skipway.signals import StopFlag

__all__ = ["samples_of"]

_BATCH = 128


def samples_of(
    folder: Path,
    network: Network,
    split: str,
    count: int,
    *,
    data: str | None = None,
    console: Console | None = None,
    stop: StopFlag | None = None,
) -> tuple[Tensor, Tensor]:
    """(x (N, *) as `network` takes them, y (N,)) of up to `count` samples of a run's split, spread evenly over it.

    Args:
        folder: the run's.
        split: "train" or "val"; training samples come unchanged, without augmentation.
        data: where they are, where the run's recipe no longer leads to them.
    """
    recipe = Recipe.of(Recipe.read(folder / "config.yaml"))
    where = data if data is not None else find_data(recipe.data, folder)
    job = open_job(replace(recipe, data=where), new=False, epochs_told=True)
    job.prepare(console or Console(quiet=True), stop or StopFlag())
    assert network.spec is not None
    job.spec(network.spec.as_dict())
    job.settle(network, _BATCH, "cpu", {"level": "none", "transform": ""})
    total = job.count(split)
    chosen = torch.zeros(total, dtype=torch.bool)
    chosen[torch.arange(min(count, total)) * total // min(count, total)] = True
    parts, at = [], 0
    for x, y, _ in job.feed(split).epoch():
        some = chosen[at : at + len(y)]
        parts.append((x[some], y[some]))
        at += len(y)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
