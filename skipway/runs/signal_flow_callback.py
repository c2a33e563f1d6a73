"""Signal flow through the network during training: before the first step, and after every epoch."""

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
from skipway.utils.run_schema import with_schema

__all__ = ["SignalFlowCallback", "draw_signal_flow", "refuse_unwatchable"]

_FILE = "flow.json"
_NUM_SAMPLES = 32  # cheap compared with an epoch of a few hundred images


class SignalFlowCallback:
    """Callback for --watch that measures the signal flow of one batch and writes it to flow.json.

    It does not change the trained weights. Its time counts as training time.

    Args:
        recipe: options of the run; without `watch` the callback does nothing.
        folder: run folder.
        datamodule: data after `prepare` and `setup`.
        batch_size: training batch size, which limits the measured batch.
        console: console for notes.
    """

    def __init__(self, recipe: Recipe, folder: Path, datamodule: DataModule, *, batch_size: int, console: Console):
        self.folder, self.console = folder, console
        self.enabled = recipe.watch and collectives.rank() == 0
        self.flows = _read_flows(folder)  # always, so that an unknown schema fails before training
        if self.enabled:
            count = min(_NUM_SAMPLES, batch_size)
            # Batch norms need two samples or more.
            split = "val" if datamodule.count("val") >= count else "train"
            self.batch = datamodule.batches(split).some(count)

    def on_start(self, network: nn.Module, fresh: bool) -> None:
        """Measure before the first step of a `fresh` run, and print notes about growing and decaying signals."""
        if fresh and self.enabled:
            for note in self._measure(network, 0):
                self.console.print(f"  signal flow: {note}")

    def on_epoch(self, network: nn.Module, epoch: int) -> None:
        """Measure after `epoch` epochs."""
        if self.enabled:
            self._measure(network, epoch)

    def _measure(self, network: nn.Module, epoch: int) -> list[str]:
        try:
            result = flow(network, *self.batch)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.console.print("  warning: not enough memory to measure signal flow, so --watch is off from here on")
            self.enabled = False
            return []
        earlier = [_name(number) for number in range(epoch)]
        self.flows = {name: self.flows[name] for name in earlier if name in self.flows}
        self.flows[_name(epoch)] = result.as_dict()
        write_json(self.folder / _FILE, with_schema({"flows": self.flows}))
        return result.notes


def draw_signal_flow(folder: Path) -> None:
    """Draw the signal flow over training to plots/flow_over_training.png, if it was measured."""
    if flows := _read_flows(folder):
        make_folder(folder / "plots")
        network_plots.plot_signal_flow(flows, folder / "plots" / "flow_over_training.png")


def refuse_unwatchable(recipe: Recipe) -> None:
    """Raise InputError if no process has the whole network to measure."""
    if recipe.watch and recipe.fsdp:
        raise InputError("cannot combine --watch with --fsdp: no process has all weights. Drop one of them.")


def _read_flows(folder: Path) -> dict[str, Any]:
    """Return the valid flows in flow.json by name."""
    flows = {name: mapping(value) for name, value in mapping(Reader(folder).json(_FILE).get("flows")).items()}
    return {
        name: value
        for name, value in flows.items()
        if _are_rows(value.get("blocks")) and _are_rows(value.get("layers"))
    }


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) and "path" in row for row in value)


def _name(epoch: int) -> str:
    return f"after epoch {epoch}" if epoch else "before training"
