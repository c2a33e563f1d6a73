"""A run that grows on the way: the networks of its recipe, and a trainer's state as that of a grown network."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from torch import Tensor

from skipway.errors import InputError
from skipway.grow.deepening import Growth, grow_to
from skipway.grow.optimizer_state import grow_states
from skipway.grow.target_plans import reachable_plan
from skipway.models import registry
from skipway.models.load_model import restore
from skipway.models.network import Network
from skipway.runs.recipe import Recipe
from skipway.training.trainer import Trainer

__all__ = ["Phase", "grow_tensors", "grow_trainer", "growth_line", "growth_record", "next_phase", "phases"]

Grow = Callable[[Network], Growth]


class Phase(NamedTuple):
    """A network that a run goes through, and the epoch that it is trained to."""

    name: str
    until: int


def phases(recipe: Recipe) -> list[Phase]:
    """Return the networks that a recipe grows through; none if it does not grow.

    Raises:
        InputError: one of them is unknown, or cannot be reached from the one before.
    """
    if not recipe.grow:
        return []
    stages: list[Phase] = []
    until = 0
    for part in recipe.grow.split(","):
        name, _, epochs = part.rpartition(":")
        if stages:
            reachable_plan(registry.plan_of(stages[-1].name), name)
        until += int(epochs)
        stages.append(Phase(name, until))
    if recipe.fsdp:
        raise InputError("--grow and --fsdp do not go together: split weights cannot grow; leave one of them out")
    return [*stages[:-1], Phase(stages[-1].name, recipe.epochs)]  # what is left of the epochs goes to the last one


def next_phase(recipe: Recipe, plan: Mapping[str, Any]) -> tuple[int, str]:
    """Return (the epoch that the network of `plan` is trained to, the name of the one after it or nothing)."""
    stages = phases(recipe)
    names = [phase.name for phase in stages]
    if plan["name"] not in names[:-1]:
        return recipe.epochs, ""
    index = names.index(plan["name"])
    return stages[index].until, names[index + 1]


def grow_trainer(trainer: Trainer, network: Network, to: str, seed: int) -> tuple[Trainer, Network, dict[str, Any]]:
    """Return a trainer of the network called `to` that continues from where `trainer` is.

    Returns:
        The trainer, its network, and the record of the growth.
    """
    before, state = dict(network.plan), asdict(trainer.state)
    assert network.spec is not None
    header = {"plan": before, "spec": network.spec.as_dict()}
    growth, tensors = grow_tensors(trainer.tensors(), header, lambda grown: grow_to(grown, to, seed))
    assert isinstance(growth.network, Network)
    continued = Trainer(growth.network, trainer.settings, trainer.name_of, trainer.task)
    continued.restore(tensors, state)
    return continued, growth.network, growth_record(state, before, growth)


def growth_line(network: Network, record: Mapping[str, Any]) -> str:
    """Return the line that is printed of a growth on the way."""
    count = sum(p.numel() for p in network.parameters())
    return (
        f"grown from {record['from']['name']} to {record['to']['name']}, {count:,} parameters; "
        f"largest difference of an output {record['difference']:.3g}"
    )


def grow_tensors(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], grow: Grow
) -> tuple[Growth, dict[str, Tensor]]:
    """Grow the network that a trainer's tensors hold, and all that the training keeps of it.

    Args:
        tensors: those of `Trainer.tensors`: network, average of the weights, optimizer state.
        header: plan and Spec of the network.
        grow: makes a grown network of one.

    Returns:
        The growth, and the tensors of the grown network's trainer.
    """

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    growth = grow(restore(under("network."), dict(header), "the checkpoint"))
    grown = {f"network.{name}": value for name, value in growth.network.state_dict().items()}
    if average := under("average.module."):
        grown_average = grow(restore(average, dict(header), "the checkpoint's average")).network
        grown |= {f"average.module.{name}": value for name, value in grown_average.state_dict().items()}
        grown["average.n_averaged"] = tensors["average.n_averaged"]
    state_by_parameter: dict[str, dict[str, Any]] = {}
    for key, value in under("optimizer.").items():
        name, _, leaf = key.rpartition(".")
        state_by_parameter.setdefault(name, {})[leaf] = value
    shapes = {name: value.shape for name, value in under("network.").items()}
    for name, values in grow_states(growth.origins, state_by_parameter, shapes).items():
        grown |= {f"optimizer.{name}.{leaf}": value for leaf, value in values.items()}
    return growth, grown


def growth_record(state: Mapping[str, Any], before: Mapping[str, Any], growth: Growth) -> dict[str, Any]:
    """Return what checkpoints and metrics.json keep of a growth.

    Args:
        state: the trainer's state when it grew.
        before: plan of the network before.
        growth: the grown network, and how far its outputs moved.
    """
    plan: dict[str, Any] = growth.network.plan  # type: ignore[assignment]
    return {
        "epoch": state["epoch"],
        "step": state["step"],
        "from": {"name": before["name"], "layers": before["layers"]},
        "to": {"name": plan["name"], "layers": plan["layers"]},
        "difference": growth.difference,
    }
