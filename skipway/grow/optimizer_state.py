"""What an optimiser keeps of a network, as what it would keep of the grown one."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.grow.channel_map import Origin

__all__ = ["move", "states"]


def states(
    origins: Mapping[str, Origin], known: Mapping[str, dict[str, Any]], shapes: Mapping[str, Iterable[int]]
) -> dict[str, dict[str, Any]]:
    """What it keeps of each parameter of the grown network by name, `known` of the old ones with their `shapes`."""
    return {
        name: origin.moved(known[origin.name], tuple(shapes[origin.name]))
        for name, origin in origins.items()
        if origin.name in known
    }


def move(
    optimizer: torch.optim.Optimizer | None, network: nn.Module, grown: nn.Module, origins: Mapping[str, Origin]
) -> None:
    """Let `optimizer`, of `network`, be that of the grown one in place.

    Old parameters keep what it knows of them; new ones are in the groups of those they are like, all in the order of
    the network, so that its state fits an optimizer made anew.

    Raises:
        InputError: it is not the network's, or keeps what cannot grow.
    """
    if optimizer is None:
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError("LBFGS keeps one memory for all parameters, which cannot grow; make a new one afterwards")
    old, new = dict(network.named_parameters()), dict(grown.named_parameters())
    names: dict[Tensor, str] = {p: name for name, p in old.items()}
    heirs = {origin.name: new[name] for name, origin in origins.items()}
    known = {names[p]: values for p, values in optimizer.state.items() if p in names}
    moved = states(origins, known, {name: p.shape for name, p in old.items()})
    groups = {names[p]: group for group in optimizer.param_groups for p in group["params"] if p in names}
    if not groups:
        raise InputError("the optimizer holds no parameter of this network; give the one that trains it")
    joined: dict[int, list[Tensor]] = {}
    for name, parameter in new.items():
        if name not in origins:
            like = _most_alike(name, parameter, old)
            parameter.requires_grad_(old[like].requires_grad)
            if like in groups:  # else it is left out of training, as the one that it is like
                joined.setdefault(id(groups[like]), []).append(parameter)
    order: dict[Tensor, int] = {p: i for i, p in enumerate(new.values())}
    told: dict[Tensor, str] = {p: name for name, p in new.items()}
    for group in optimizer.param_groups:
        others = [p for p in group["params"] if p not in names]
        mine = [heirs[names[p]] for p in group["params"] if p in names] + joined.get(id(group), [])
        mine.sort(key=lambda p: order[p])
        if "param_names" in group:
            said = dict(zip(group["params"], group["param_names"], strict=True))
            group["param_names"] = [told[p] for p in mine] + [said[p] for p in others]
        group["params"][:] = [*mine, *others]
    for p in [p for p in optimizer.state if p in names]:
        del optimizer.state[p]
    for name, values in moved.items():
        optimizer.state[new[name]] = values
    if isinstance(optimizer, torch.optim.SGD) and moved:
        _with_momentum_of_all(optimizer)


def _with_momentum_of_all(optimizer: torch.optim.SGD) -> None:
    """Zeros as the momentum of new parameters, where torch takes a step with all of them at once, and needs all."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["fused"] and group["momentum"] else ():
            if optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def _most_alike(name: str, parameter: Tensor, old: Mapping[str, Tensor]) -> str:
    """The old parameter with as many axes that shares most of its name with a new one."""

    def likeness(other: str) -> tuple[bool, int, int]:
        parts, others = name.split("."), other.split(".")
        front = next((i for i, (a, b) in enumerate(zip(parts, others, strict=False)) if a != b), 0)
        back = next((i for i, (a, b) in enumerate(zip(parts[::-1], others[::-1], strict=False)) if a != b), 0)
        return old[other].dim() == parameter.dim(), front, back

    return max(old, key=likeness)
