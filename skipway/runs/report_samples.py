"""A run's own samples, for what is measured with them after training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from skipway.models.network import Network
from skipway.runs.datamodule import open_datamodule
from skipway.runs.recipe import Recipe
from skipway.runs.resume import find_data
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["samples_of"]

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
    datamodule = open_datamodule(replace(recipe, data=where), new=False, epochs_told=True)
    datamodule.prepare(console or Console(quiet=True), stop or StopFlag())
    assert network.spec is not None
    datamodule.spec(network.spec.as_dict())
    datamodule.setup(network, _BATCH, "cpu", {"level": "none", "transform": ""})
    return {split: datamodule.feed(split).some(count) for split, count in counts.items()}
