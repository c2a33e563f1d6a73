"""Grow the network of a run into a new run that trains on from there."""

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
from skipway.utils.stop_signals import StopFlag

__all__ = ["GrownRun", "grow_run", "parse_blocks"]


@dataclass(frozen=True)
class GrownRun:
    """The run that `grow_run` made; prints what to do next.

    Attributes:
        path: its folder.
        network: name of its network.
        parameters: how many it has.
        difference: largest difference of an output before and after.
        largest: largest output.
        epochs, status: how far its training is.
        is_found: whether an earlier call with the same name had made it; nothing was written then.
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
            command += f", which needs another --time-limit or --patience: it was {self.status}"
        found = ", complete since an earlier start" if self.is_found else ""
        return (
            f"grown to {self.network}, {self.parameters:,} parameters\n"
            f"largest difference of an output: {self.difference:.3g}, where the largest output is {self.largest:.3g}\n"
            f"run: {printable(self.path)} after {self.epochs} epochs{found}; train on with {command}"
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
    """Grow the network of a run, with all that its training keeps, into a run that goes on from there.

    Args:
        run: a run folder; it stays as it is.
        to, blocks, factor: what to grow to: the name of a deeper or wider network, more blocks in some stages (see
            `skipway.grow.deepen`), or how many times as wide. One of them.
        output, name: where the new run goes; by default next to the old one, under the network's name. A run of this
            name that is exactly what would be written is returned as it is.
        stop: a flag that is deferred once the new run is written.

    Raises:
        InputError: the run has no checkpoint, or its network cannot grow so. StorageError: the disk.
    """
    folder = resolve_run_folder(Path(run))
    last = folder / "weights" / "last"
    if not last.is_dir() or not any(last.glob("step-*")):
        raise InputError(f"{printable(folder)} holds no checkpoint to grow yet; train it first, or give another run")
    if sum(option is not None for option in (to, blocks, factor)) != 1:
        raise InputError("grow takes one of --to NAME, --blocks stage2=4 and --widen 2")
    checkpoint = read_checkpoint(last)
    recipe = read_recipe(folder)
    if next_phase(recipe, checkpoint.state["plan"])[1]:
        raise InputError(
            f"{printable(folder)} is still to grow as its recipe says ({printable(recipe.grow)}); go on with --resume"
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
    """Return whether the run in `folder` is where this checkpoint is: grown alike, and not trained since."""
    try:
        existing = read_checkpoint(folder / "weights" / "last")
    except InputError:
        return False
    names = ("plan", "grown", "fingerprint", "state")
    expected = from_json(to_json([checkpoint.state[name] for name in names], "the state"))
    return existing.step == checkpoint.step and [existing.state[name] for name in names] == expected


def _write_grown_run(folder: Path, recipe: Recipe, checkpoint: Checkpoint, *, grow: Grow, stop: StopFlag) -> Path:
    """Write a run with a grown network and the tables of the old one, whole or not at all; return its folder.

    Args:
        folder: the old run's.
        recipe, checkpoint: the new run's.
        grow: grows the best weights as well, which may be of an earlier network.
        stop: is deferred once the run is written.
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
        stop.defer()  # a signal that comes now is too late
        return place_run_folder(aside, recipe, header["data"])


def parse_blocks(text: str) -> dict[str | int, int]:
    """Return stages and their new blocks from the form of the command line: stage2=4,stage3=2.

    Raises:
        InputError: the text has another form, or names a stage twice.
    """
    pairs = re.findall(r"([^=,]+)=(\d{1,4})(?:,|$)", text)
    is_whole = ",".join(f"{stage}={count}" for stage, count in pairs) == text
    if not pairs or not is_whole or len(dict(pairs)) != len(pairs):
        raise InputError(f"--blocks takes stages and numbers, as stage2=4,stage3=2, not {printable(text)}")
    return {stage: int(count) for stage, count in pairs}
