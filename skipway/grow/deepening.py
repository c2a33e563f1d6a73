"""Growing a trained network without changing what it computes: deeper by blocks that begin as identities, or wider.

    network = deepen(network, to="resnet56", optimizer=optimizer)
    network = widen(network, 2, optimizer=optimizer)

The outputs are compared at the call, and what would change them is refused. What an optimiser keeps of old parameters
goes with them.

Shapes: those of the network; a probe is a batch of its inputs.
Sources: Chen et al. 2015, arXiv:1511.05641 (Net2Net); blocks that begin as identities by a zeroed last scale, Goyal et
al. 2017, arXiv:1706.02677; zeroed outputs in place of ready-made identities, Shen et al. 2022, arXiv:2203.06211.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.export.fused_convolution import Convolution
from skipway.grow.channel_map import Origin
from skipway.grow.new_blocks import appends_channels, init_as_identity, insert_planned_blocks, insert_repeated_blocks
from skipway.grow.optimizer_state import move_optimizer
from skipway.grow.target_plans import (
    blocks_by_stage,
    check_block_count,
    deeper_plan,
    plan_with_blocks,
    reachable_plan,
    wider_plan,
    width_options,
)
from skipway.grow.verify_equal_outputs import choose_probe, record_calls, verify_outputs
from skipway.grow.widening import Widening
from skipway.models.network import Network, build_meta_network, build_network
from skipway.nn.joins import Gate, Scale
from skipway.nn.shortcut_types import Pad
from skipway.nn.skip import Parallel, Skip

__all__ = ["Growth", "deepen", "grow_deeper", "grow_to", "widen", "grow_wider"]


WidthFunction = Callable[[str, int], int]  # (path of a layer, its outputs) -> its outputs in the grown network


@dataclass(frozen=True)
class Growth:
    """A grown network, what its parameters are made of, and how far its outputs are from those of before.

    origins: for every parameter that was there, what it is made of; new ones have none.
    difference: the largest of two outputs on the probe, in the network's own precision.
    largest: the largest output there.
    """

    network: nn.Module
    origins: dict[str, Origin]
    difference: float
    largest: float


def deepen(
    network: nn.Module,
    to: str | None = None,
    *,
    blocks: Mapping[str | int, int] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    probe: Tensor | None = None,
    spread: bool = False,
    seed: int = 0,
) -> Any:
    """A deeper network with the same outputs: its new blocks begin as identities, and learn from the first step on.

    What would be added to the shortcut begins at zero, by the last norm, the last weights or the join's scale of each
    new body; that zero has a gradient at once, and the rest of the body from the next step on. Old norms see what they
    saw, in training too. Layers of a DenseNet add channels instead, which what is behind them does not weigh at first:
    there outputs are equal up to rounding, elsewhere to the last bit. `network` is as it was.

    Args:
        to: the name of a deeper network of the same kind ("resnet56" of a resnet20).
        blocks: or how many blocks each stage gets, {"stage2": 4}, or {2: 4}; of a network without a plan, {path of the
            Chain that its blocks stand in: 4}: they are made like the last that keeps its input's shape.
        optimizer: of `network`; it becomes that of the grown one, in place: old parameters keep their momentum and
            whatever else it knows of them, new ones are in the groups of the blocks that they are like.
        probe: a batch of inputs to compare outputs on; random ones by default, for a network that has a plan.
        spread: put new blocks between the old ones of their stage, not behind them.
        seed: draws the new weights.

    Raises:
        InputError: there is no such network or stage, new blocks cannot begin as identities there, or the outputs
            would not be equal; says why.
    """
    growth = grow_deeper(network, to, blocks=blocks, probe=probe, spread=spread, seed=seed)
    move_optimizer(optimizer, network, growth.network, growth.origins)
    return growth.network


def widen(
    network: nn.Module,
    factor: float | None = None,
    *,
    widths: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    probe: Tensor | None = None,
    seed: int | None = 0,
) -> Any:
    """A wider network with the same outputs, within 1e-5 of the largest: channels are repeated and share their weights.

    Inputs and outputs stay as wide as they are, and so does what layers of unknown ways are given. `network` is as it
    was.

    Args:
        factor: how many times as wide; its plan's widths (of DenseNets the growth), or every layer's.
        widths: or the widths of its plan, such as (32, 64, 128).
        optimizer, probe: see `deepen`.
        seed: draws unequal shares for channels that repeat one. None: equal ones, with which they would also learn
            the same for ever.

    Raises:
        InputError: the widths are not larger, a layer could not be widened without changing the outputs, or nothing
            could; says why.
    """
    growth = grow_wider(network, factor, widths=widths, probe=probe, seed=seed)
    move_optimizer(optimizer, network, growth.network, growth.origins)
    return growth.network


def grow_to(network: Network, to: str, seed: int = 0) -> Growth:
    """Grow `network` to the one called `to`, with the same outputs: wider, deeper, or both."""
    plan = reachable_plan(network.plan, to)
    widths = {key: plan[key] for key in width_options(plan) if plan[key] != network.plan[key]}
    if not widths:
        return grow_deeper(network, to, seed=seed)
    first = _widen_to_plan({**network.plan, **widths}, network, choose_probe(network, None), seed)
    if plan["layers"] == network.plan["layers"]:
        cast(Network, first.network).plan = plan
        return first
    growth = grow_deeper(first.network, to, seed=seed)
    origins = {name: origin.compose(first.origins[origin.name]) for name, origin in growth.origins.items()}
    return Growth(growth.network, origins, max(first.difference, growth.difference), growth.largest)


def grow_deeper(
    network: nn.Module,
    to: str | None = None,
    *,
    blocks: Mapping[str | int, int] | None = None,
    probe: Tensor | None = None,
    spread: bool = False,
    seed: int = 0,
) -> Growth:
    """Grow a network deeper, without its optimizer; see `deepen`."""
    if (to is None) == (blocks is None) or not isinstance(blocks, Mapping | None) or not isinstance(to, str | None):
        raise InputError('deepen takes the name of a network, or blocks={"stage2": 4}; give one of them')
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe, plan = choose_probe(network, probe), _checked_plan(network)
        twin, names = _copy(network)
        calls, target = record_calls(twin, probe), None
        if plan:
            old, plan = plan, deeper_plan(plan, to) if to is not None else plan_with_blocks(plan, blocks or {})
            target = build_network(plan)
            blocks_added = insert_planned_blocks(
                twin, target, before=blocks_by_stage(old), after=blocks_by_stage(plan), spread=spread
            )
        elif blocks is None:
            raise InputError("a network without a plan has no name to grow to; give blocks={path of a Chain: number}")
        else:
            homes = {str(path): check_block_count(path, count) for path, count in blocks.items()}
            blocks_added = insert_repeated_blocks(twin, homes, spread)
        added = {path: module for path, module in twin.named_modules() if any(module is b for b in blocks_added)}
        for path, block in added.items():
            init_as_identity(path, block)
        origins = {new: Origin(names[id(p)]) for new, p in twin.named_parameters() if id(p) in names}
        appending = any(map(appends_channels, blocks_added))
        if appending and spread:
            raise InputError("blocks that add channels go behind the others of their stage; leave spread out")
        if appending:
            state = None if target is None else target.state_dict()
            widening = Widening(calls, _width_function(target, 1.0), new_state=state, added=added)
            origins = _rewrite(twin, widening, probe, origins)
        _set_plan(twin, plan)
        return Growth(twin, origins, *verify_outputs(network, twin, probe, () if appending else tuple(blocks_added)))


def grow_wider(
    network: nn.Module,
    factor: float | None = None,
    *,
    widths: Any = None,
    probe: Tensor | None = None,
    seed: int | None = 0,
) -> Growth:
    """Grow a network wider, without its optimizer; see `widen`."""
    if (factor is None) == (widths is None):
        raise InputError("widen takes a factor such as 2, or widths of the network's plan; give one of them")
    if factor is not None and not (isinstance(factor, int | float) and 1 < factor < 1000):
        raise InputError(f"widen takes a factor above 1, such as 2 or 1.5, not {factor!r}")
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        probe, plan = choose_probe(network, probe), _checked_plan(network)
        if plan:
            return _widen_to_plan(wider_plan(plan, factor, widths), network, probe, seed)
        if factor is None:
            raise InputError("a network without a plan has no widths; give a factor")
        return _widen_layers(network, _width_function(None, factor), probe=probe, seed=seed)


def _widen_to_plan(plan: dict[str, Any], network: nn.Module, probe: Tensor, seed: int | None) -> Growth:
    growth = _widen_layers(network, _width_function(build_meta_network(plan), 1.0), probe=probe, seed=seed)
    _set_plan(growth.network, plan)
    return growth


def _widen_layers(network: nn.Module, width_of: WidthFunction, *, probe: Tensor, seed: int | None) -> Growth:
    twin, names = _copy(network)
    origins = {new: Origin(names[id(p)]) for new, p in twin.named_parameters()}
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    widening = Widening(record_calls(twin, probe), width_of, share_generator=generator)
    origins = _rewrite(twin, widening, probe, origins)
    if not widening.origins:
        raise InputError(
            "nothing in this network could be widened: no layer of a known kind stands between others that could "
            "follow it, or none has channels enough for this factor; build it of Chain, Skip, Parallel and torch's "
            "own layers"
        )
    return Growth(twin, origins, *verify_outputs(network, twin, probe))


# The network before and after


def _checked_plan(network: nn.Module) -> dict[str, Any]:
    """Return the plan of a network that has one, if the network is still as it says."""
    plan: dict[str, Any] = network.plan if isinstance(network, Network) else {}
    if any(isinstance(module, Convolution) for module in network.modules()):
        raise InputError("a fused network only predicts and cannot grow; grow the network that it was made from")
    if plan:
        planned = {name: t.shape for name, t in build_meta_network(plan).state_dict().items()}
        if planned != {name: t.shape for name, t in network.state_dict().items()}:
            raise InputError(
                "the network is no longer what its plan says, since it was changed by hand; grow it before that, or "
                "set its .plan to {} and give blocks={path of a Chain: number}"
            )
    return plan


def _set_plan(network: nn.Module, plan: dict[str, Any] | None) -> None:
    if plan:
        cast(Network, network).plan = plan
        assert _checked_plan(network)


def _copy(network: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """Copy a network, and return the name of each of the copy's parameters by its id."""
    joins = [module.join for module in network.modules() if isinstance(module, Skip | Parallel)]
    unsized = any(isinstance(join, Gate) and join.transform is None for join in joins)
    unsized = unsized or any(isinstance(join, Scale) and join.channels == "each" for join in joins)
    unsized = unsized or any(isinstance(p, nn.UninitializedParameter) for p in network.parameters())
    if unsized or any(isinstance(m, Skip) and m.open_shortcut is not None for m in network.modules()):
        raise InputError(
            "the network has sizes that are open yet; call skipway.output_shape(network, input_shape) once before"
        )
    names = [name for name, _ in network.named_parameters(remove_duplicate=False)]
    if len(names) != len(list(network.parameters())):
        raise InputError(
            "the network uses a layer in several places, so that it cannot grow in one of them; build each anew"
        )
    twin = copy.deepcopy(network)
    return twin, {id(p): name for name, p in twin.named_parameters()}


def _width_function(target: Network | None, factor: float) -> WidthFunction:
    """Return the function that gives each layer's outputs: those of `target`, or `factor` times as many."""

    def new_width(path: str, width: int) -> int:
        if target is None:
            return round(width * factor)
        layer = target.get_submodule(path)
        return layer.out_channels if isinstance(layer, Pad) else len(cast(Tensor, layer.weight))

    return new_width


def _rewrite(twin: nn.Module, widening: Widening, probe: Tensor, origins: Mapping[str, Origin]) -> dict[str, Origin]:
    widening.rewrite(twin, probe.shape[1])
    changed = widening.origins
    return {name: changed[name].compose(origin) if name in changed else origin for name, origin in origins.items()}
