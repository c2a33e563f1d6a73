"""Growing during a run: the networks of its recipe, and the transfer of a trainer's state to a grown network."""

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
    """Network of a growing run, and the epoch after which it grows."""

    name: str
    until: int


def phases(recipe: Recipe) -> list[Phase]:
    """Return the networks that a recipe grows through; empty without --grow.

    Args:
        recipe: options of the run.

    Raises:
        InputError: a network is unknown, or the previous one cannot grow to it.
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
        raise InputError("cannot combine --grow with --fsdp: sharded weights cannot grow. Drop one of them.")
    return [*stages[:-1], Phase(stages[-1].name, recipe.epochs)]  # the last network gets the remaining epochs


def next_phase(recipe: Recipe, plan: Mapping[str, Any]) -> tuple[int, str]:
    """Return the last epoch of the current network, and the name of the next one or an empty text.

    Args:
        recipe: options of the run.
        plan: plan of the current network.
    """
    stages = phases(recipe)
    names = [phase.name for phase in stages]
    if plan["name"] not in names[:-1]:
        return recipe.epochs, ""
    index = names.index(plan["name"])
    return stages[index].until, names[index + 1]


def grow_trainer(trainer: Trainer, network: Network, to: str, seed: int) -> tuple[Trainer, Network, dict[str, Any]]:
    """Grow the network of a trainer, and return a trainer that continues with the grown network.

    Args:
        trainer: trainer of the network before the growth.
        network: network to grow.
        to: name of the grown network.
        seed: seed of the new weights.

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
    """Return the console line about a growth.

    Args:
        network: grown network.
        record: result of `growth_record`.
    """
    count = sum(p.numel() for p in network.parameters())
    return (
        f"grown from {record['from']['name']} to {record['to']['name']}: {count:,} parameters, largest output "
        f"difference {record['difference']:.3g}"
    )


def grow_tensors(
    tensors: Mapping[str, Tensor], header: Mapping[str, Any], grow: Grow
) -> tuple[Growth, dict[str, Tensor]]:
    """Grow the network in a trainer's tensors, with its EMA and its optimizer state.

    Args:
        tensors: result of `Trainer.tensors`: network, EMA of the weights, optimizer state.
        header: plan and Spec of the network.
        grow: function that grows a network.

    Returns:
        The growth, and the tensors of a trainer of the grown network.
    """

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    growth = grow(restore(under("network."), dict(header), "the checkpoint"))
    grown = {f"network.{name}": value for name, value in growth.network.state_dict().items()}
    if average := under("average.module."):
        grown_average = grow(restore(average, dict(header), "the EMA of the checkpoint")).network
        grown |= {f"average.module.{name}": value for name, value in grown_average.state_dict().items()}
        grown["average.n_averaged"] = tensors["average.n_averaged"]
    grown |= {name: value for name, value in tensors.items() if name.startswith("scaler.")}
    state_by_parameter: dict[str, dict[str, Any]] = {}
    for key, value in under("optimizer.").items():
        name, _, leaf = key.rpartition(".")
        state_by_parameter.setdefault(name, {})[leaf] = value
    shapes = {name: value.shape for name, value in under("network.").items()}
    for name, values in grow_states(growth.origins, state_by_parameter, shapes).items():
        grown |= {f"optimizer.{name}.{leaf}": value for leaf, value in values.items()}
    return growth, grown


def growth_record(state: Mapping[str, Any], before: Mapping[str, Any], growth: Growth) -> dict[str, Any]:
    """Return the record of a growth for checkpoints and metrics.json.

    Args:
        state: state of the trainer at the growth.
        before: plan of the network before the growth.
        growth: grown network with its output difference.
    """
    plan: dict[str, Any] = growth.network.plan  # type: ignore[assignment]
    return {
        "epoch": state["epoch"],
        "step": state["step"],
        "from": {"name": before["name"], "layers": before["layers"]},
        "to": {"name": plan["name"], "layers": plan["layers"]},
        "difference": growth.difference,
    }
