"""Samples of a run's own data, for what is measured with them after training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from skipway.models.network import Network
from skipway.runs.datamodule import open_datamodule
from skipway.runs.resume import find_data
from skipway.runs.run_folder import read_recipe
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

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
    """Return (x (N, *) as `network` takes them, y (N,)) by split, of samples spread evenly over a run's own data.

    Args:
        folder: the run's.
        network: the run's.
        counts: how many at most of each split, "train" and "val"; training samples come without augmentation.
        data: their place, if the run's recipe no longer leads to them.
        console: where progress is printed; default: nowhere.
        stop: a flag that ends the reading when it is set.
    """
    recipe = read_recipe(folder)
    source = data if data is not None else find_data(recipe.data, folder)
    spec = network.spec.as_dict() if network.spec is not None else None
    datamodule = open_datamodule(replace(recipe, data=source), new=False, epochs_given=True, earlier_spec=spec)
    datamodule.prepare(console or Console(quiet=True), stop or StopFlag())
    assert network.spec is not None
    datamodule.spec(network.spec.as_dict())
    datamodule.setup(network, _BATCH, "cpu", {"level": "none", "transform": ""})
    return {split: datamodule.batches(split).some(count) for split, count in counts.items()}
