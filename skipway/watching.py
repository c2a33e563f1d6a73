"""How signals flow through the network of a run while it is trained: before the first step, and after every epoch."""

from pathlib import Path

from torch import nn

from skipway import depth_plots
from skipway.console import Console
from skipway.errors import InputError
from skipway.job import Job
from skipway.probe.flow import flow
from skipway.recipe import Recipe
from skipway.run_reader import Reader
from skipway.samples import spread
from skipway.training import ranks
from skipway.training.durable import make_folder, write_json

__all__ = ["FlowWatch", "refuse_watching"]

_SAMPLES = 32  # as many as are cheap beside an epoch of a few hundred pictures


class FlowWatch:
    """Takes the flow of a batch of validation samples into flow.json and a picture of RUN; nothing unless told to.

    The training is as without it, to the last bit.
    """

    def __init__(self, recipe: Recipe, folder: Path, job: Job, console: Console):
        self.folder, self.console, self.on = folder, console, recipe.watch and ranks.here() == 0
        if self.on:
            self.batch = spread(job, "val", _SAMPLES)
            make_folder(folder / "plots")

    def begin(self, network: nn.Module, fresh: bool) -> None:
        """The flow before the first step, where there is one to come; says what grows and decays."""
        if fresh and self.on:
            for note in self._taken(network, 0):
                self.console.say(f"  flow: {note}")

    def take(self, network: nn.Module, epoch: int) -> None:
        """The flow after so many epochs."""
        if self.on:
            self._taken(network, epoch)

    def _taken(self, network: nn.Module, epoch: int) -> list[str]:
        found = flow(network, *self.batch)
        known = Reader(self.folder).json("flow.json")
        before = {name: known[name] for name in map(_name, range(epoch)) if name in known}
        flows = {**before, _name(epoch): found.as_dict()}
        write_json(self.folder / "flow.json", flows)
        depth_plots.flow(flows, self.folder / "plots" / "flow_over_training.png")
        return found.notes


def refuse_watching(recipe: Recipe) -> None:
    """Raises InputError where nobody could look at the network while it is trained."""
    if recipe.watch and recipe.shard:
        raise InputError("--watch and --shard do not go together: no process has all weights; leave one of them out")


def _name(epoch: int) -> str:
    return f"after epoch {epoch}" if epoch else "fresh weights"
