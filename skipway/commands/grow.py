"""Grow the network of a run into a new run, which continues its training."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from skipway.errors import InputError, printable
from skipway.grow.deepening import Growth, grow_deeper, grow_to, grow_wider
from skipway.models.load_model import restore
from skipway.models.network import Network
from skipway.runs.checkpoint_state import config_facts, read_checkpoint
from skipway.runs.growth_phases import Grow, grow_tensors, growth_record, next_phase
from skipway.runs.recipe import Recipe
from skipway.runs.run_csv_tables import write_results
from skipway.runs.run_folder import (
    is_run_folder,
    place_run_folder,
    point_last,
    read_recipe,
    resolve_run_folder,
    run_folder_aside,
    write_recipe,
)
from skipway.training.best_weights import refuse_other_weights
from skipway.training.checkpoint import Checkpoint, load_weights, save_checkpoint, save_weights
from skipway.utils.atomic_files import from_json, make_folder, to_json, write_file
from skipway.utils.format_text import count_of
from skipway.utils.stop_signals import StopFlag

__all__ = ["GrownRun", "grow_run", "parse_blocks"]


@dataclass(frozen=True)
class GrownRun:
    """Run created by `grow_run`; prints the command that continues it.

    Attributes:
        path: folder of the run.
        network: name of the grown architecture.
        parameters: number of parameters.
        difference: largest change of an output caused by growing.
        largest: largest output, for comparison.
        epochs: epochs trained so far.
        status: status of the original run.
        is_found: True if an earlier call had created the same run, so that nothing was written.
    """

    path: Path
    network: str
    parameters: int
    difference: float
    largest: float
    epochs: int
    status: str
    is_found: bool = False

    def __str__(self) -> str:
        command = f"skipway train --resume {printable(self.path)}"
        if self.status == "finished":
            command += f" --epochs {2 * self.epochs}"
        elif self.status != "running":
            command += f" (set another --time-limit or --patience: the run was {self.status})"
        note = ", already created by an earlier call" if self.is_found else ""
        return (
            f"grown to {self.network}, {self.parameters:,} parameters\n"
            f"largest change of an output: {self.difference:.3g} (largest output: {self.largest:.3g})\n"
            f"run: {printable(self.path)} after {count_of(self.epochs, 'epoch')}{note}; continue with {command}"
        )


def grow_run(
    run: str | os.PathLike[str],
    to: str | None = None,
    *,
    blocks: Mapping[str | int, int] | None = None,
    factor: float | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
    stop: StopFlag | None = None,
) -> GrownRun:
    """Grow the network of a run, with its optimizer state, into a new run.

    Args:
        run: run folder, which is not changed.
        to: name of a deeper or wider architecture. Pass exactly one of `to`, `blocks` and `factor`.
        blocks: new blocks by stage (see `skipway.grow.deepen`).
        factor: factor by which all widths grow.
        output: parent folder of the new run; by default, that of the old run.
        name: name of the new run; by default, made from the data and the architecture. If an identical run of this name
            exists, it is returned.
        stop: flag whose signals are deferred when the new run is written.

    Returns:
        The new run, which prints the command that continues it.

    Raises:
        InputError: the run has no checkpoint, or its network cannot grow in this way.
        StorageError: the new run cannot be written.
    """
    folder = resolve_run_folder(Path(run))
    last = folder / "weights" / "last"
    if not last.is_dir() or not any(last.glob("step-*")):
        raise InputError(
            f"cannot grow {printable(folder)}: expected a checkpoint in weights/last, got none. Train the run first, "
            "or pass another run."
        )
    num_options = sum(option is not None for option in (to, blocks, factor))
    if num_options != 1:
        raise InputError(
            f"cannot grow: expected exactly one of --to NAME, --blocks stage2=4 and --widen 2, got {num_options}. "
            "Pass one of them."
        )
    checkpoint = read_checkpoint(last)
    recipe = read_recipe(folder)
    if recipe.ensemble_with is not None:
        raise InputError(
            f"cannot grow {printable(folder)}: expected a network alone, got one that is blended with boosting, whose "
            "weight depends on the network. Train a run without --ensemble-with, and grow it."
        )
    if next_phase(recipe, checkpoint.state["plan"])[1]:
        raise InputError(
            f"cannot grow {printable(folder)}: its growth plan ({printable(recipe.grow)}) is not finished. Resume "
            f"it with `skipway train --resume {printable(folder)}`."
        )

    def grow(network: Network) -> Growth:
        if to is not None:
            return grow_to(network, to, recipe.seed)
        if blocks is not None:
            return grow_deeper(network, blocks=blocks, seed=recipe.seed)
        return grow_wider(network, factor, seed=recipe.seed)

    growth, tensors = grow_tensors(checkpoint.tensors, checkpoint.state, grow)
    network, state = growth.network, checkpoint.state["state"]
    assert isinstance(network, Network)
    parent = folder.parent if output is None else Path(output)
    new_recipe = replace(recipe, model=network.plan["name"], grow=None, output=str(parent), name=name)
    records = [*checkpoint.state["grown"], growth_record(state, checkpoint.state["plan"], growth)]
    changes = {"plan": network.plan, **config_facts(new_recipe), "grown": records}
    grown = replace(checkpoint, tensors=tensors, state={**checkpoint.state, **changes})
    is_found = name is not None and is_run_folder(parent / name) and _is_same_run(parent / name, grown)
    if is_found:
        target = parent / str(name)
    else:
        target = _write_grown_run(folder, new_recipe, grown, grow=grow, stop=stop or StopFlag())
    point_last(target)
    return GrownRun(
        path=target,
        network=network.plan["name"],
        parameters=sum(p.numel() for p in network.parameters()),
        difference=growth.difference,
        largest=growth.largest,
        epochs=state["epoch"],
        status=state["status"],
        is_found=is_found,
    )


def _is_same_run(folder: Path, checkpoint: Checkpoint) -> bool:
    """Return True if the run in `folder` equals this checkpoint: grown in the same way, and not trained since."""
    try:
        existing = read_checkpoint(folder / "weights" / "last")
    except InputError:
        return False
    names = ("plan", "grown", "fingerprint", "state")
    expected = from_json(to_json([checkpoint.state[name] for name in names], "the state"))
    return existing.step == checkpoint.step and [existing.state[name] for name in names] == expected


def _write_grown_run(folder: Path, recipe: Recipe, checkpoint: Checkpoint, *, grow: Grow, stop: StopFlag) -> Path:
    """Write a run with a grown network and the tables of the old run atomically, and return its folder.

    Args:
        folder: folder of the old run.
        recipe, checkpoint: recipe and checkpoint of the new run.
        grow: function that grows the best weights, which may belong to an earlier network.
        stop: flag whose signals are deferred when the run is written.
    """
    best = folder / "weights" / "best.safetensors"
    weights: dict[str, Tensor] = {}
    header: dict[str, Any] = {"data": Path(recipe.data or "run").stem}
    if best.is_file():
        weights, header = load_weights(best)
        refuse_other_weights(best, header, checkpoint.state["state"])
    with run_folder_aside(Path(recipe.output)) as aside:
        make_folder(aside / "weights")
        for file in ("splits.csv", "skipped.csv"):
            if (folder / file).is_file():
                write_file(aside / file, (folder / file).read_bytes())
        write_results(aside, checkpoint.state["state"]["history"])
        if weights:
            best_network = grow(restore(weights, header, printable(best))).network
            best_header = {**header, "plan": best_network.plan}
            save_weights(aside / "weights" / "best.safetensors", best_network.state_dict(), best_header)
        save_checkpoint(aside / "weights" / "last", checkpoint.step, checkpoint.tensors, checkpoint.state)
        write_recipe(aside, recipe)
        stop.defer()  # the run is complete, so a later signal must not stop the command
        return place_run_folder(aside, recipe, header["data"])


def parse_blocks(text: str) -> dict[str | int, int]:
    """Parse the number of new blocks per stage from `stage2=4,stage3=2`, the form of the command line.

    Raises:
        InputError: the text has another form, or names a stage twice.
    """
    pairs = re.findall(r"([^=,]+)=(\d{1,4})(?:,|$)", text)
    is_whole = ",".join(f"{stage}={count}" for stage, count in pairs) == text
    if not pairs or not is_whole or len(dict(pairs)) != len(pairs):
        raise InputError(
            f"invalid --blocks: expected each stage once with a number, such as stage2=4,stage3=2, got "
            f"{printable(text)}. Correct the list."
        )
    return {stage: int(count) for stage, count in pairs}
