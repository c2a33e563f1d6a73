"""Epochs of a run: the fit of the head, then the epochs of each network that the run grows through."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from skipway.models.network import Network
from skipway.runs.datamodule import DataModule
from skipway.runs.growth_phases import grow_trainer, growth_line, next_phase
from skipway.runs.head_phase import HeadFit
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.run_csv_tables import write_results
from skipway.runs.run_folder import require_run_folder
from skipway.runs.signal_flow_callback import SignalFlowCallback
from skipway.training.best_weights import repeatable_metrics
from skipway.training.checkpoint import save_weights
from skipway.training.compilation import begin_compilation, refuse_late_failure
from skipway.training.loop import fit, record_epoch
from skipway.training.oom_retry import retry_with_microbatches
from skipway.training.trainer import State, Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = ["RunContext", "train_phases"]


@dataclass(frozen=True)
class RunContext:
    """Context of a run: its folder, data, console and stop flag."""

    folder: Path
    datamodule: DataModule
    console: Console
    stop: StopFlag


def train_phases(
    trainer: Trainer,
    network: Network,
    train_batches: Any,
    val_batches: Any,
    *,
    context: RunContext,
    head: HeadFit | None,
    facts: dict[str, Any],
    watch: SignalFlowCallback,
) -> Trainer:
    """Train to the end of the run, with the growth phases of its recipe.

    Args:
        trainer: new or restored trainer.
        network: network of the trainer.
        train_batches: training batches.
        val_batches: validation batches.
        context: context of the run; weights, checkpoints and results are written to its folder.
        head: fit of the head, which counts as epoch 1, or None.
        facts: values about the run for its checkpoints, updated when the network grows.
        watch: callback that measures signal flow after each epoch.

    Returns:
        The trainer of the last network.
    """
    folder, datamodule, console = context.folder, context.datamodule, context.console
    last, recipe = folder / "weights" / "last", datamodule.recipe

    def on_epoch(state: State, weights: dict[str, Tensor] | None) -> None:
        require_run_folder(folder)
        if weights is not None:
            header = {name: facts[name] for name in ("plan", "spec")}
            header |= {"metrics": repeatable_metrics(state.best), "data": datamodule.name}
            save_weights(folder / "weights" / "best.safetensors", weights, header)
        write_results(folder, state.history)
        watch.on_epoch(network, state.epoch)

    next_network = _begin_phase(trainer, network, train_batches, context, facts, first_epoch=int(head is not None))
    context.stop.defer()  # from here on a signal must wait until work is saved
    common: dict[str, Any] = {"on_epoch": on_epoch, "facts": facts, "console": console, "stop": context.stop}
    if head is not None:
        scores = head.record(trainer, cast(ImageDataModule, datamodule))
        record_epoch(trainer, scores, last, **common)
    while True:
        train = partial(fit, trainer, train_batches, val_batches, last, **common)
        with refuse_late_failure(trainer):
            retry_with_microbatches(train, trainer, folder=last, batch_size=facts["batch_size"], console=console)
        if not next_network or trainer.state.status != "running":
            return trainer
        trainer, network, record = grow_trainer(trainer, network, next_network, recipe.seed)
        facts |= {"plan": dict(network.plan), "grown": [*facts["grown"], record], "compile": None}
        console.print(f"  {growth_line(network, record)}")
        next_network = _begin_phase(trainer, network, train_batches, context, facts)


def _begin_phase(
    trainer: Trainer,
    network: Network,
    train_batches: Any,
    context: RunContext,
    facts: dict[str, Any],
    *,
    first_epoch: int = 0,
) -> str:
    """Set the last epoch of a network, decide about torch.compile, and return the name of the next network or "".

    Args:
        trainer, network, train_batches, context, facts: see `train_phases`. The decision becomes `facts["compile"]`.
        first_epoch: first epoch of gradient steps.
    """
    recipe, state = context.datamodule.recipe, trainer.state
    trainer.until, next_network = next_phase(recipe, network.plan)
    growth = context.datamodule.size_growth(recipe.epochs)[max(state.epoch, first_epoch) : trainer.until]
    if not growth or state.status != "running":
        facts["compile"] = facts["compile"] or "off"
        return next_network
    decision = begin_compilation(
        trainer,
        train_batches,
        option=recipe.compile,
        earlier=facts["compile"],
        growth=growth,
        is_table=context.datamodule.noun == "rows",
    )
    facts["compile"] = decision.value
    if decision.reason:
        context.console.print(f"  compile: {decision.value}, {decision.reason}")
    return next_network
