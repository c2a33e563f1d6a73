"""How signals flow through the network of a run while it is trained: before the first step, and after every epoch."""

from pathlib import Path
from typing import Any

from torch import nn

from skipway.distributed import collectives
from skipway.errors import InputError, is_out_of_memory
from skipway.probe.signal_flow import flow
from skipway.report import network_plots
from skipway.report.run_reader import Reader, mapping
from skipway.runs.datamodule import DataModule
from skipway.runs.recipe import Recipe
from skipway.utils.atomic_files import make_folder, write_json
from skipway.utils.console import Console

__all__ = ["FlowWatch", "draw_watched", "refuse_watching"]

_FILE = "flow.json"
_SAMPLES = 32  # as many as are cheap beside an epoch of a few hundred pictures


class FlowWatch:
    """Takes the flow of a batch of the run's samples into flow.json of RUN; nothing unless told to.

    The weights become what they would without it, to the last bit. Its time counts as that of training does.
    """

    def __init__(self, recipe: Recipe, folder: Path, datamodule: DataModule, batch_size: int, console: Console):
        self.folder, self.console, self.on = folder, console, recipe.watch and collectives.rank() == 0
        if self.on:
            count = min(_SAMPLES, batch_size)
            split = "val" if datamodule.count("val") >= count else "train"  # norms take the mean of two samples or more
            self.batch, self.known = datamodule.feed(split).some(count), _flows(folder)

    def begin(self, network: nn.Module, fresh: bool) -> None:
        """The flow before the first step, where that is still to come; says what grows and decays."""
        if fresh and self.on:
            for note in self._taken(network, 0):
                self.console.print(f"  flow: {note}")

    def take(self, network: nn.Module, epoch: int) -> None:
        """The flow after so many epochs."""
        if self.on:
            self._taken(network, epoch)

    def _taken(self, network: nn.Module, epoch: int) -> list[str]:
        try:
            found = flow(network, *self.batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.console.print("  flow: memory does not hold what is measured; it is left out from here on")
            self.on = False
            return []
        before = {name: self.known[name] for name in map(_name, range(epoch)) if name in self.known}
        self.known = {**before, _name(epoch): found.as_dict()}
        write_json(self.folder / _FILE, self.known)
        return found.notes


def draw_watched(folder: Path) -> None:
    """Draw what was watched of a run, if anything."""
    if flows := _flows(folder):
        make_folder(folder / "plots")
        network_plots.plot_signal_flow(flows, folder / "plots" / "flow_over_training.png")


def refuse_watching(recipe: Recipe) -> None:
    """Raises InputError where nobody could look at the network while it is trained."""
    if recipe.watch and recipe.fsdp:
        raise InputError("--watch and --fsdp do not go together: no process has all weights; leave one of them out")


def _flows(folder: Path) -> dict[str, Any]:
    """What flow.json holds, as far as it is whole."""
    found = {name: mapping(value) for name, value in Reader(folder).json(_FILE).items()}
    return {name: value for name, value in found.items() if _rows(value.get("blocks")) and _rows(value.get("layers"))}


def _rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and "path" in row for row in value)


def _name(epoch: int) -> str:
    return f"after epoch {epoch}" if epoch else "before training"
