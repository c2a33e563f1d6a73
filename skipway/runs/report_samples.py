"""Samples of a run's data, for analyses after training."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
) -> dict[str, tuple[Any, Tensor]]:
    """Return evenly spread samples of a run's data by split, as inputs x (N, *) or ImageRows, and targets y (N,).

    Args:
        folder: run folder.
        network: network of the run.
        counts: maximum number of samples by split, "train" and "val"; training samples are not augmented.
        data: path of the data, if it differs from the run's recipe.
        console: console for progress; default: silent.
        stop: flag that interrupts reading.
    """
    recipe = read_recipe(folder)
    source = data if data is not None else find_data(recipe.data, folder)
    spec = network.spec.as_dict() if network.spec is not None else None
    datamodule = open_datamodule(replace(recipe, data=source), new=False, epochs_given=True, earlier_spec=spec)
    datamodule.prepare(console or Console(quiet=True), stop or StopFlag(), keep_samples=False)
    assert network.spec is not None
    datamodule.spec(network.spec.as_dict())
    datamodule.setup(network, _BATCH, "cpu", {"level": "none", "transform": ""})
    return {split: datamodule.batches(split).some(count) for split, count in counts.items()}
