"""Transfer of optimizer state from a network to the grown network."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.grow.channel_map import Origin

__all__ = ["move_optimizer", "grow_states"]


def grow_states(
    origins: Mapping[str, Origin], known: Mapping[str, dict[str, Any]], shapes: Mapping[str, Iterable[int]]
) -> dict[str, dict[str, Any]]:
    """Return the optimizer state of each parameter of the grown network.

    Args:
        origins: Origin of each parameter of the grown network that existed before, by name.
        known: Optimizer state of the old parameters, by name.
        shapes: Shapes of the old parameters, by name.

    Returns:
        Optimizer state by parameter name. New parameters have none.
    """
    return {
        name: origin.transform_state(known[origin.name], tuple(shapes[origin.name]))
        for name, origin in origins.items()
        if origin.name in known
    }


def move_optimizer(
    optimizer: torch.optim.Optimizer | None, network: nn.Module, grown: nn.Module, origins: Mapping[str, Origin]
) -> None:
    """Move `optimizer` from `network` to the grown network, in place.

    Old parameters keep their state. New parameters join the group of the most similar old parameter. The order is
    that of the network, so a new optimizer can load the state dict.

    Args:
        optimizer: Optimizer of `network`, or None.
        network: Network before growth.
        grown: Network after growth.
        origins: Origin of each parameter of `grown` that existed before, by name.

    Raises:
        InputError: The optimizer holds no parameter of `network`, or its state cannot grow.
    """
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("cannot grow an LBFGS optimizer: its history is not per parameter. Create a new one.")
    old, new = dict(network.named_parameters()), dict(grown.named_parameters())
    names: dict[Tensor, str] = {p: name for name, p in old.items()}
    heirs = {origin.name: new[name] for name, origin in origins.items()}
    known = {names[p]: values for p, values in optimizer.state.items() if p in names}
    moved = grow_states(origins, known, {name: p.shape for name, p in old.items()})
    groups: dict[str, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        groups |= {names[p]: group for p in group["params"] if p in names}
    if not groups:
        raise InputError("optimizer: expected parameters of this network, got none. Pass the optimizer that trains it.")
    additions: dict[int, list[Tensor]] = {}
    for name, parameter in new.items():
        if name not in origins:
            model = _most_similar_name(name, parameter, old)
            parameter.requires_grad_(old[model].requires_grad)
            if model in groups:  # otherwise it is not trained, like its model
                additions.setdefault(id(groups[model]), []).append(parameter)
    order: dict[Tensor, int] = {p: i for i, p in enumerate(new.values())}
    new_names: dict[Tensor, str] = {p: name for name, p in new.items()}
    for group in optimizer.param_groups:
        others = [p for p in group["params"] if p not in names]
        members = [heirs[names[p]] for p in group["params"] if p in names] + additions.get(id(group), [])
        members.sort(key=lambda p: order[p])
        if "param_names" in group:
            old_names = dict(zip(group["params"], group["param_names"], strict=True))
            group["param_names"] = [new_names[p] for p in members] + [old_names[p] for p in others]
        group["params"][:] = [*members, *others]
    for p in [p for p in optimizer.state if p in names]:
        del optimizer.state[p]
    for name, values in moved.items():
        optimizer.state[new[name]] = values
    if isinstance(optimizer, torch.optim.SGD) and moved:
        _fill_momentum(optimizer)


def _fill_momentum(optimizer: torch.optim.SGD) -> None:
    """Set the momentum of new parameters to zero, because fused SGD requires a buffer for every parameter."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["fused"] and group["momentum"] else ():
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _most_similar_name(name: str, parameter: Tensor, old: Mapping[str, Tensor]) -> str:
    """Return the old parameter of the same rank whose name is most similar."""

    def likeness(other: str) -> tuple[bool, int, int]:
        parts, others = name.split("."), other.split(".")
        front = next((i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), 0)
        back = next((i for i, (a, b) in enumerate(zip(parts[::-1], others[::-1], strict=False)) if a != b), 0)
        return old[other].dim() == parameter.dim(), front, back

    return max(old, key=likeness)
