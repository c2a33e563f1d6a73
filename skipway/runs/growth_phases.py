"""A run that grows: on the way, as its recipe says, or from its folder into a run of its own."""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from skipway.errors import InputError, printable
from skipway.grow.deepening import Growth, deepened, grown_to, widened
from skipway.grow.optimizer_state import states
from skipway.grow.target_plans import reached
from skipway.models import registry
from skipway.models.load_model import restore
from skipway.models.network import Network
from skipway.runs.recipe import Recipe
from skipway.runs.resume import run_folder
from skipway.runs.run_folder import new_folder, point_last, write_results
from skipway.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from skipway.training.trainer import Trainer
from skipway.utils.atomic_files import Lock, check_writable, make_folder, write_file

__all__ = ["Grown", "Phase", "blocks_of", "following", "grow_run", "grow_trainer", "growth_line", "phases"]

Grow = Callable[[Network], Growth]


class Phase(NamedTuple):
    """A network that a run goes through, and the epoch that it is trained to."""

    name: str
    until: int


def phases(recipe: Recipe) -> list[Phase]:
    """The networks that a recipe grows through; nothing where it does not grow.

    Raises:
        InputError: one of them is unknown, or cannot be reached from the one before.
    """
    found: list[Phase] = []
    for part in recipe.grow.split(",") if recipe.grow else ():
        name, _, epochs = part.rpartition(":")
        if found:
            reached(registry.plan_of(found[-1].name), name)
        found.append(Phase(name, (found[-1].until if found else 0) + int(epochs)))
    if found and recipe.fsdp:
        raise InputError("--grow and --fsdp do not go together: split weights cannot grow; leave one of them out")
    return found[:-1] + [Phase(found[-1].name, recipe.epochs)] if found else []


def following(recipe: Recipe, plan: Mapping[str, Any]) -> tuple[int, str]:
    """(the epoch that the network of `plan` is trained to, the name of the one after it or nothing)."""
    along = phases(recipe)
    here = next((i for i, phase in enumerate(along) if phase.name == plan["name"]), len(along))
    if here >= len(along) - 1:
        return recipe.epochs, ""
    return along[here].until, along[here + 1].name


def grow_trainer(trainer: Trainer, network: Network, to: str, seed: int) -> tuple[Trainer, Network, dict[str, Any]]:
    """The trainer of the network called `to`, which goes on where `trainer` is; and what is noted of the growth."""
    before, state = dict(network.plan), asdict(trainer.state)
    header = {"plan": before, "spec": _spec(network)}
    growth, tensors = _grown(trainer.tensors(), header, lambda known: grown_to(known, to, seed))
    assert isinstance(growth.network, Network)
    following = Trainer(growth.network, trainer.settings, trainer.name_of, trainer.task)
    following.restore(tensors, state)
    return following, growth.network, _note(state, before, growth)


def growth_line(network: Network, note: Mapping[str, Any]) -> str:
    """What is said of a growth on the way."""
    count = sum(p.numel() for p in network.parameters())
    return (
        f"grown from {note['from']['name']} to {note['to']['name']}, {count:,} parameters; largest difference of an "
        f"output {note['difference']:.3g}"
    )


@dataclass(frozen=True)
class Grown:
    """What `grow_run` made: a run folder, its network, how far the outputs moved, and what it has done."""

    path: Path
    network: str
    parameters: int
    difference: float
    largest: float
    epochs: int
    status: str

    def __str__(self) -> str:
        more = f"skipway train --resume {printable(self.path)}"
        if self.status == "finished":
            more += f" --epochs {2 * self.epochs}"
        elif self.status != "running":
            more += f", which needs another --time-limit or --patience: it was {self.status}"
        return (
            f"grown to {self.network}, {self.parameters:,} parameters\n"
            f"largest difference of an output: {self.difference:.3g}, where the largest output is {self.largest:.3g}\n"
            f"run: {printable(self.path)} after {self.epochs} epochs; train on with {more}"
        )


def grow_run(
    run: str | os.PathLike[str],
    to: str | None = None,
    *,
    blocks: Mapping[str | int, int] | None = None,
    factor: float | None = None,
    output: str | os.PathLike[str] | None = None,
    name: str | None = None,
) -> Grown:
    """Grow the network of a run, with all that its training keeps, into a run that goes on from there.

    Args:
        run: a run folder; it stays as it is.
        to, blocks, factor: what to grow to: the name of a deeper or wider network, more blocks in some stages (see
            `skipway.grow.deepen`), or how many times as wide. One of them.
        output, name: where the new run goes; by default beside the old one, under the network's name.

    Raises:
        InputError: the run has no checkpoint, or its network cannot grow so. StorageError: the disk.
    """
    folder = run_folder(Path(run))
    last = folder / "weights" / "last"
    if not last.is_dir() or not any(last.glob("step-*")):
        raise InputError(f"{printable(folder)} holds no checkpoint to grow yet; train it first, or give another run")
    if sum(given is not None for given in (to, blocks, factor)) != 1:
        raise InputError("grow takes one of --to NAME, --blocks stage2=4 and --widen 2")
    checkpoint = load_checkpoint(last)
    recipe = Recipe.of(Recipe.read(folder / "config.yaml"))
    if following(recipe, checkpoint.state["plan"])[1]:
        raise InputError(
            f"{printable(folder)} is still to grow as its recipe says ({printable(recipe.grow)}); go on with --resume"
        )

    def grow(network: Network) -> Growth:
        if to is not None:
            return grown_to(network, to, recipe.seed)
        if blocks is not None:
            return deepened(network, blocks=blocks, seed=recipe.seed)
        return widened(network, factor, seed=recipe.seed)

    state = checkpoint.state
    growth, tensors = _grown(checkpoint.tensors, state, grow)
    plan = growth.network.plan
    best = folder / "weights" / "best.safetensors"
    weights, header = load_weights(best) if best.is_file() else ({}, {"data": Path(recipe.data or "run").stem})
    where = str(folder.parent if output is None else output)
    told = replace(recipe, model=plan["name"], grow=None, output=where, name=name)
    target = new_folder(told, header["data"], plan["name"])
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{printable(target)} holds files already; give another --name")
    check_writable(target)
    with Lock(target), _all_or_nothing(target):
        make_folder(target / "weights")
        for file in ("splits.csv", "skipped.csv"):
            if (folder / file).is_file():
                write_file(target / file, (folder / file).read_bytes())
        write_results(target, state["state"]["history"])
        if weights:
            better = grow(restore(weights, header, printable(best))).network
            save_weights(target / "weights" / "best.safetensors", better.state_dict(), {**header, "plan": better.plan})
        noted = [*state.get("grown", []), _note(state["state"], state["plan"], growth)]
        facts = {**state, "plan": plan, "recipe": told.as_dict(), "grown": noted}
        save_checkpoint(target / "weights" / "last", checkpoint.step, tensors, facts)
        write_file(target / "config.yaml", told.as_yaml().encode())  # which makes it a run
    point_last(target)
    done = state["state"]
    return Grown(
        target,
        plan["name"],
        sum(p.numel() for p in growth.network.parameters()),
        growth.difference,
        growth.largest,
        done["epoch"],
        done["status"],
    )


@contextmanager
def _all_or_nothing(folder: Path) -> Iterator[None]:
    """What was written into `folder` goes again where not all of it could be."""
    try:
        yield
    except BaseException:
        for file in ("config.yaml", "results.csv", "splits.csv", "skipped.csv"):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(folder / "weights", ignore_errors=True)
        raise


def blocks_of(text: str) -> dict[str | int, int]:
    """Stages and their new blocks, as the command line has them: stage2=4,stage3=2."""
    found = re.findall(r"([^=,]+)=(\d{1,4})(?:,|$)", text)
    if not found or ",".join(f"{stage}={count}" for stage, count in found) != text or len(dict(found)) != len(found):
        raise InputError(f"--blocks takes stages and numbers, as stage2=4,stage3=2, not {printable(text)}")
    return {stage: int(count) for stage, count in found}


def _grown(tensors: Mapping[str, Tensor], header: Mapping[str, Any], grow: Grow) -> tuple[Any, dict[str, Tensor]]:
    """The growth of the network that a trainer's tensors hold, and its trainer's tensors: average and optimiser too."""

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    growth = grow(restore(under("network."), dict(header), "the checkpoint"))
    grown = {f"network.{name}": value for name, value in growth.network.state_dict().items()}
    if average := under("average.module."):
        followed = grow(restore(average, dict(header), "the checkpoint's average"))
        grown |= {f"average.module.{name}": value for name, value in followed.network.state_dict().items()}
        grown["average.n_averaged"] = tensors["average.n_averaged"]
    known: dict[str, dict[str, Any]] = {}
    for key, value in under("optimizer.").items():
        name, _, leaf = key.rpartition(".")
        known.setdefault(name, {})[leaf] = value
    shapes = {name: value.shape for name, value in under("network.").items()}
    for name, values in states(growth.origins, known, shapes).items():
        grown |= {f"optimizer.{name}.{leaf}": value for leaf, value in values.items()}
    return growth, grown


def _note(state: Mapping[str, Any], before: Mapping[str, Any], growth: Growth) -> dict[str, Any]:
    """What is kept of a growth: where it happened, from which network to which, how far the outputs moved."""
    plan: dict[str, Any] = growth.network.plan  # type: ignore[assignment]
    return {
        "epoch": state["epoch"],
        "step": state["step"],
        "from": {"name": before["name"], "layers": before["layers"]},
        "to": {"name": plan["name"], "layers": plan["layers"]},
        "difference": growth.difference,
    }


def _spec(network: Network) -> dict[str, Any]:
    assert network.spec is not None
    return network.spec.as_dict()
