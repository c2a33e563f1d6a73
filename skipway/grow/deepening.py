"""Function-preserving growth of a trained network: deeper by identity-initialized blocks, or wider.

    network = deepen(network, to="resnet56", optimizer=optimizer)
    network = widen(network, 2, optimizer=optimizer)

Each call compares the outputs before and after, and raises an error if they differ. The optimizer keeps its state of
old parameters.

Shapes: those of the network; a probe is a batch of its inputs.
Sources: Net2Net, Chen et al. 2015, arXiv:1511.05641. Zero-initialized last norm, Goyal et al. 2017, arXiv:1706.02677.
 Zero-initialized outputs when growing, Shen et al. 2022, arXiv:2203.06211.
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
from skipway.grow.layer_roles import LayerRoles
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
from skipway.grow.verify_equal_outputs import Probe, choose_probe, record_calls, verify_outputs
from skipway.grow.widening import Widening
from skipway.models.network import Network, build_meta_network, build_network
from skipway.models.tree_ensemble import refuse_trees
from skipway.nn.joins import Gate, Scale
from skipway.nn.shortcut_types import Pad
from skipway.nn.skip import Skip
from skipway.utils.format_text import join_names, short_repr

__all__ = ["Growth", "deepen", "grow_deeper", "grow_to", "widen", "grow_wider"]


WidthFunction = Callable[[str, int], int]  # (path of a layer, old width) -> new width


@dataclass(frozen=True)
class Growth:
    """Result of a growth: the network, the origins of its parameters, and the measured difference of outputs.

    Attributes:
        network: The grown network.
        origins: Origin of each parameter that existed before, by name. New parameters have none.
        difference: Largest difference of two outputs on the probe, in the dtype of the network.
        largest: Largest output on the probe.
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
    probe: Probe | None = None,
    spread: bool = False,
    seed: int = 0,
) -> Any:
    """Return a deeper network with the same outputs, by inserting blocks that are initialized as the identity.

    The last norm, the last weights or the join's scale of each new body is zero. This layer gets a gradient in the
    first step, the rest of the body from the second step on. The inputs of old layers do not change, in training mode
    either. New DenseNet layers append channels instead, which later layers weight with zero at first. Their outputs
    are equal up to rounding; those of other networks are bitwise equal.

    Args:
        network: Trained network. It is not changed.
        to: Name of a deeper model of the same family, such as "resnet56" for a resnet20.
        blocks: Number of new blocks by stage, {"stage2": 4} or {2: 4}, instead of `to`. For a network without a plan,
            by the path of a Chain; the new blocks are like the last one that preserves the shape.
        optimizer: Optimizer of `network`. It is moved to the grown network in place and keeps its state. New
            parameters join the group of the most similar old one.
        probe: Batch of inputs on which outputs are compared. Default: random inputs, for a network with a plan.
        spread: Distribute new blocks between the old ones of their stage, instead of appending them.
        seed: Seed of the new weights.

    Returns:
        The grown network, of the type of `network`.

    Raises:
        InputError: The model or stage is unknown, new blocks cannot be identities there, or the outputs differ.

    >>> network = nn.Sequential(nn.Linear(4, 8), Skip(nn.Linear(8, 8)))
    >>> x = torch.ones(2, 4)
    >>> deeper = deepen(network, blocks={"": 2}, probe=x)
    >>> len(deeper), torch.equal(deeper(x), network(x))
    (4, True)
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
    probe: Probe | None = None,
    seed: int | None = 0,
) -> Any:
    """Return a wider network with the same outputs, by duplicating channels and splitting the weights that read them.

    Outputs are equal within 1e-5 of the largest. The inputs and outputs of the network, and the inputs of layers of an
    unknown type, keep their width.

    Args:
        network: Trained network. It is not changed.
        factor: Multiplier above 1, of the widths of the plan (growth rate of a DenseNet), or of every layer.
        widths: Widths of the plan, such as (32, 64, 128), instead of `factor`.
        optimizer: Optimizer of `network`, see `deepen`.
        probe: Batch of inputs, see `deepen`.
        seed: Seed of the unequal shares of duplicated channels. None sets equal shares, with which duplicates stay
            equal during training.

    Returns:
        The grown network, of the type of `network`.

    Raises:
        InputError: The widths are not larger, or a layer cannot be widened without changing the outputs.

    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> x = torch.ones(2, 4)
    >>> wider = widen(network, 2, probe=x)
    >>> wider[0].out_features, torch.allclose(wider(x), network(x), atol=1e-5)
    (16, True)
    """
    growth = grow_wider(network, factor, widths=widths, probe=probe, seed=seed)
    move_optimizer(optimizer, network, growth.network, growth.origins)
    return growth.network


def grow_to(network: Network, to: str, seed: int = 0) -> Growth:
    """Grow `network` to the model named `to`, with the same outputs: wider, deeper, or both.

    Args:
        network: Network with a plan.
        to: Name of a larger model of the same family.
        seed: Seed of the new weights and shares.

    Raises:
        InputError: The network cannot grow to this model.
    """
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
    probe: Probe | None = None,
    spread: bool = False,
    seed: int = 0,
) -> Growth:
    """Deepen a network as `deepen` does, without an optimizer, and return the Growth."""
    if (to is None) == (blocks is None) or not isinstance(blocks, Mapping | None) or not isinstance(to, str | None):
        raise InputError(
            f'deepen: expected an architecture or blocks={{"stage2": 4}}, got to={short_repr(to)} and '
            f"blocks={short_repr(blocks)}. Pass one of them."
        )
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
            raise InputError(
                "deepen: expected a network with a plan for to=, got none. Pass blocks={path of a Chain: number}."
            )
        else:
            homes = {str(path): check_block_count(path, count) for path, count in blocks.items()}
            blocks_added = insert_repeated_blocks(twin, homes, spread)
        added = {path: module for path, module in twin.named_modules() if any(module is b for b in blocks_added)}
        for path, block in added.items():
            init_as_identity(path, block)
        origins = {new: Origin(names[id(p)]) for new, p in twin.named_parameters() if id(p) in names}
        appending = any(map(appends_channels, blocks_added))
        if appending and plan and "columns" in plan:
            raise InputError(
                f"cannot deepen {plan['name']}: expected a network of images alone, got one with feature columns, "
                "which the channels that new blocks append would join. Use an architecture other than a DenseNet."
            )
        if appending and spread:
            raise InputError("spread: expected blocks without appended channels, got a DenseNet. Leave out spread.")
        if appending:
            state = None if target is None else target.state_dict()
            widening = Widening(LayerRoles(calls), _width_function(target, 1.0), new_state=state, added=added)
            origins = _rewrite(twin, widening, probe, origins)
        _set_plan(twin, plan)
        return Growth(twin, origins, *verify_outputs(network, twin, probe, () if appending else tuple(blocks_added)))


def grow_wider(
    network: nn.Module,
    factor: float | None = None,
    *,
    widths: Any = None,
    probe: Probe | None = None,
    seed: int | None = 0,
) -> Growth:
    """Widen a network as `widen` does, without an optimizer, and return the Growth."""
    if (factor is None) == (widths is None):
        raise InputError(
            f"widen: expected a factor such as 2, or widths of the plan, got factor={short_repr(factor)} and "
            f"widths={short_repr(widths)}. Pass one of them."
        )
    if factor is not None and not (isinstance(factor, int | float) and 1 < factor < 1000):
        raise InputError(f"widen: expected a factor above 1 and below 1000, got {factor!r}. Pass one such as 2 or 1.5.")
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        probe, plan = choose_probe(network, probe), _checked_plan(network)
        if plan:
            return _widen_to_plan(wider_plan(plan, factor, widths), network, probe, seed)
        if factor is None:
            raise InputError("widen: expected a network with a plan for widths=, got none. Pass factor=.")
        return _widen_layers(network, None, factor, probe=probe, seed=seed)


def _widen_to_plan(plan: dict[str, Any], network: nn.Module, probe: Probe, seed: int | None) -> Growth:
    growth = _widen_layers(network, build_meta_network(plan), 1.0, probe=probe, seed=seed)
    _set_plan(growth.network, plan)
    return growth


def _widen_layers(
    network: nn.Module, target: Network | None, factor: float, *, probe: Probe, seed: int | None
) -> Growth:
    twin, names = _copy(network)
    origins = {new: Origin(names[id(p)]) for new, p in twin.named_parameters()}
    widening = Widening(
        LayerRoles(record_calls(twin, probe)),
        _width_function(target, factor),
        new_groups=_groups_function(target),
        share_generator=None if seed is None else torch.Generator().manual_seed(seed),
    )
    origins = _rewrite(twin, widening, probe, origins)
    if not widening.origins:
        raise _nothing_widened(widening.blockers, factor)
    maps, axis = widening.maps, widening.roles.axis
    return Growth(twin, origins, *verify_outputs(network, twin, probe, maps=maps, axis=axis))


def _nothing_widened(blockers: Mapping[str, str], factor: float) -> InputError:
    """Return the error for a network whose layers all keep their widths, with the layer that is in the way."""
    if not blockers:
        return InputError(
            f"widen: expected a hidden layer that factor {factor:g} widens, got none: inputs and outputs keep their "
            "width. Add a hidden layer, or pass a larger factor."
        )
    path, reason = next(iter(blockers.items()))
    others = f" The layers at {join_names(list(blockers)[1:], limit=3)} block too." if len(blockers) > 1 else ""
    return InputError(
        f"widen: expected layers that can be widened, got none. The layer at {path or 'the top'} blocks its "
        f"neighbors: {reason}{others}"
    )


# The network before and after growth


def _checked_plan(network: nn.Module) -> dict[str, Any]:
    """Return the plan of a network, or {} if it has none, and check that the network still matches it."""
    plan: dict[str, Any] = network.plan if isinstance(network, Network) else {}
    refuse_trees(plan, "grow")
    fused = [path for path, module in network.named_modules() if isinstance(module, Convolution)]
    if fused:
        raise InputError(
            f"growth: expected the original network, got a fused one, with a fused convolution at {fused[0]}. Grow the "
            "network before fusing it."
        )
    if plan:
        planned = {name: tuple(t.shape) for name, t in build_meta_network(plan).state_dict().items()}
        shapes = {name: tuple(t.shape) for name, t in network.state_dict().items()}
        different = [name for name in planned | shapes if planned.get(name) != shapes.get(name)]
        if different:
            raise InputError(
                f"growth: expected a network that matches its plan, got one that was modified at {different[0]}. Grow "
                "it before modifying it, or set .plan to {} and pass blocks={path of a Chain: number}."
            )
    return plan


def _set_plan(network: nn.Module, plan: dict[str, Any] | None) -> None:
    if plan:
        cast(Network, network).plan = plan
        assert _checked_plan(network)


def _copy(network: nn.Module) -> tuple[nn.Module, dict[int, str]]:
    """Copy a network; return the copy and its parameter names by id."""
    unsized = [path for path, module in network.named_modules() if _is_unsized(module)]
    if unsized:
        raise InputError(
            f"growth: expected inferred sizes, got uninferred ones at {unsized[0] or 'the top'}. Call "
            "skipway.output_shape(network, input_shape) first."
        )
    places: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    shared = [names for names in places.values() if len(names) > 1]
    if shared:
        raise InputError(
            "growth: expected each layer in one place, got a layer that is used more than once, with the parameter "
            f"{' = '.join(shared[0][:2])}. Create a separate layer for each place."
        )
    for path, module in network.named_modules():
        computed = [name for name, value in vars(module).items() if isinstance(value, Tensor) and not value.is_leaf]
        if computed:
            raise InputError(
                f"cannot copy the layer at {path or 'the top'}: its {computed[0]} is computed by a hook (weight_norm "
                "or pruning). Call torch.nn.utils.remove_weight_norm or prune.remove first."
            )
    twin = copy.deepcopy(network)
    return twin, {id(p): name for name, p in twin.named_parameters()}


def _is_unsized(module: nn.Module) -> bool:
    """Return True for a layer with sizes that `output_shape` has not inferred yet."""
    if isinstance(module, Gate):
        return module.transform is None
    if isinstance(module, Scale):
        return module.channels == "each"
    if isinstance(module, Skip) and module.open_shortcut is not None:
        return True
    return any(isinstance(p, nn.UninitializedParameter) for p in module.parameters(recurse=False))


def _width_function(target: Network | None, factor: float) -> WidthFunction:
    """Return a function for the new width of each layer: that of `target`, or `factor` times the old width."""

    def new_width(path: str, width: int) -> int:
        if target is None:
            return round(width * factor)
        layer = target.get_submodule(path)
        return layer.out_channels if isinstance(layer, Pad) else len(cast(Tensor, layer.weight))

    return new_width


def _groups_function(target: Network | None) -> Callable[[str], int] | None:
    """Return a function for the number of groups of each group norm of `target`, or None if it has none."""
    groups = (
        {} if target is None else {p: m.num_groups for p, m in target.named_modules() if isinstance(m, nn.GroupNorm)}
    )
    return groups.__getitem__ if groups else None


def _rewrite(twin: nn.Module, widening: Widening, probe: Probe, origins: Mapping[str, Origin]) -> dict[str, Origin]:
    widening.rewrite(twin, probe.shape[widening.roles.axis])
    changed = widening.origins
    return {name: changed[name].compose(origin) if name in changed else origin for name, origin in origins.items()}
