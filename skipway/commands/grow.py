"""Grow the network of a run into a new run that trains on from there."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from skipway.runs.run_folder import new_run_folder, point_last, read_recipe, resolve_run_folder, write_recipe
from skipway.training.checkpoint import Checkpoint, load_weights, save_checkpoint, save_weights
from skipway.utils.atomic_files import make_folder, write_file

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
    """

    path: Path
    network: str
    parameters: int
    difference: float
    largest: float
    epochs: int
    status: str

    def __str__(self) -> str:
        command = f"skipway train --resume {printable(self.path)}"
        if self.status == "finished":
            command += f" --epochs {2 * self.epochs}"
        elif self.status != "running":
            command += f", which needs another --time-limit or --patience: it was {self.status}"
        return (
            f"grown to {self.network}, {self.parameters:,} parameters\n"
            f"largest difference of an output: {self.difference:.3g}, where the largest output is {self.largest:.3g}\n"
            f"run: {printable(self.path)} after {self.epochs} epochs; train on with {command}"
        )


def grow_run(
    run: str | os.PathLike[str],
    to: str | None = None,
    *,
    blocks: Mapping[str | int, int] | None = None,
    factor: float | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> GrownRun:
    """Grow the network of a run, with all that its training keeps, into a run that goes on from there.

    Args:
        run: a run folder; it stays as it is.
        to, blocks, factor: what to grow to: the name of a deeper or wider network, more blocks in some stages (see
            `skipway.grow.deepen`), or how many times as wide. One of them.
        output, name: where the new run goes; by default next to the old one, under the network's name.

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
    network = growth.network
    assert isinstance(network, Network)
    parent = str(folder.parent if output is None else output)
    new_recipe = replace(recipe, model=network.plan["name"], grow=None, output=parent, name=name)
    target = _write_grown_run(folder, new_recipe, checkpoint, growth=growth, tensors=tensors, grow=grow)
    state = checkpoint.state["state"]
    return GrownRun(
        path=target,
        network=network.plan["name"],
        parameters=sum(p.numel() for p in network.parameters()),
        difference=growth.difference,
        largest=growth.largest,
        epochs=state["epoch"],
        status=state["status"],
    )


def _write_grown_run(
    folder: Path, recipe: Recipe, checkpoint: Checkpoint, *, growth: Growth, tensors: dict[str, Tensor], grow: Grow
) -> Path:
    """Write a run with the grown network, the tables of the old one and its growth; return its folder.

    Args:
        folder: the old run's.
        recipe: the new run's.
        checkpoint: the old run's.
        growth, tensors: the grown network, and the tensors of its trainer.
        grow: grows the best weights as well, which may be of an earlier network.
    """
    best = folder / "weights" / "best.safetensors"
    weights: dict[str, Tensor] = {}
    header: dict[str, Any] = {"data": Path(recipe.data or "run").stem}
    if best.is_file():
        weights, header = load_weights(best)
    plan: dict[str, Any] = growth.network.plan  # type: ignore[assignment]
    with new_run_folder(recipe, header["data"], plan["name"]) as target, _remove_if_incomplete(target):
        make_folder(target / "weights")
        for file in ("splits.csv", "skipped.csv"):
            if (folder / file).is_file():
                write_file(target / file, (folder / file).read_bytes())
        state = checkpoint.state
        write_results(target, state["state"]["history"])
        if weights:
            best_network = grow(restore(weights, header, printable(best))).network
            best_header = {**header, "plan": best_network.plan}
            save_weights(target / "weights" / "best.safetensors", best_network.state_dict(), best_header)
        records = [*state.get("grown", []), growth_record(state["state"], state["plan"], growth)]
        new_state = {**state, "plan": plan, **config_facts(recipe), "grown": records}
        save_checkpoint(target / "weights" / "last", checkpoint.step, tensors, new_state)
        write_recipe(target, recipe)  # which makes it a run
    point_last(target)
    return target


@contextmanager
def _remove_if_incomplete(folder: Path) -> Iterator[None]:
    """Remove what was written into `folder` if not all of it could be."""
    try:
        yield
    except BaseException:
        for file in ("config.yaml", "results.csv", "splits.csv", "skipped.csv"):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(folder / "weights", ignore_errors=True)
        raise


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
