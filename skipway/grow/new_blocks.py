"""Blocks put into a network between those it has, which begin as identities and learn from the first step on.

Shapes: a new block keeps the shape of what reaches it, but for those that append channels.
Sources: a last norm that begins at zero, Goyal et al. 2017, arXiv:1706.02677; a scale that does, Bachlechner et al.
2020, arXiv:2003.04887.
"""

import copy
from collections.abc import Mapping

import torch
from torch import nn

from skipway.errors import InputError, did_you_mean
from skipway.grow.widening import reset_parameters
from skipway.models.network import Network
from skipway.nn.blocks import EfficientChannelAttention, Shift, SqueezeExcite
from skipway.nn.chain import Chain
from skipway.nn.joins import Scale, add, append, concat
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Dense, Skip, named_skips

__all__ = ["appends_channels", "init_as_identity", "insert_repeated_blocks", "insert_planned_blocks"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Layers that may follow zeroed weights: they keep zeros, and let the gradient through.
_HARMLESS = (EfficientChannelAttention, Shift, SqueezeExcite, nn.Identity, nn.modules.dropout._DropoutNd)


def insert_planned_blocks(
    network: nn.Module, target: Network, *, before: Mapping[str, int], after: Mapping[str, int], spread: bool
) -> list[nn.Module]:
    """Put into each stage of `network` the blocks that it lacks of `target`; return them.

    before, after: blocks in each stage, by its path.
    """
    added: list[nn.Module] = []
    for stage, count in after.items():
        if more := count - before[stage]:
            home = _block_container(network.get_submodule(stage))
            target_home = _block_container(target.get_submodule(stage))
            first = before[stage] - len(home)  # blocks in front of the home, since they change the shape
            behind = [j * before[stage] // more - first if spread else len(home) - 1 for j in range(more)]
            blocks = [target_home[place + 1 + j] for j, place in enumerate(behind)]
            _insert(home, behind, blocks)
            added += blocks
    if target.plan.get("drop_path"):  # the chances to leave a body out rise with depth
        for path, skip in named_skips(target):
            twin = network.get_submodule(path)
            if isinstance(twin, Skip):
                twin.drop_path = skip.drop_path
    return _match_network(network, added)


def insert_repeated_blocks(network: nn.Module, homes: Mapping[str, int], spread: bool) -> list[nn.Module]:
    """Put blocks like the last that keeps its input's shape into the Chains at `homes`, so many each; gives them."""
    modules = dict(network.named_modules())
    added: list[nn.Module] = []
    for path, count in homes.items():  # of which none has moved yet
        home = modules.get(path)
        if not isinstance(home, nn.Sequential):
            raise InputError(
                f"there is no Chain at {path!r}{did_you_mean(path, modules)}; give the path of one that holds blocks"
            )
        alike = [i for i, block in enumerate(home) if _can_repeat(block)]
        if not alike:
            raise InputError(
                f"the Chain at {path!r} has no block to make others like: a Skip without a shortcut of its own, or a "
                "Coupling; put one there first"
            )
        behind = [alike[j * len(alike) // count] if spread else alike[-1] for j in range(count)]
        blocks = [reset_parameters(copy.deepcopy(home[place])) for place in behind]
        _insert(home, behind, blocks)
        added += blocks
    return _match_network(network, added)


def appends_channels(block: nn.Module) -> bool:
    """Check that a block appends channels to its input."""
    return isinstance(block, Skip) and block.join in (append, concat)


def init_as_identity(path: str, block: nn.Module) -> None:
    """Initialize `block`, whose weights are fresh, as the identity: what it would add begins at zero.

    Raises:
        InputError: it cannot, or would not learn from there; says why.
    """
    if isinstance(block, Coupling) and block.shortcuts is None:
        _zero_last_weights(path, block.f)
        _zero_last_weights(path, block.g)
    elif not isinstance(block, Skip):
        raise _no_identity(
            path, f"{type(block).__name__} has no shortcut to leave open; choose a network with shortcuts"
        )
    elif block.shortcut is not None or block.open_shortcut is not None:
        raise _no_identity(path, 'its shortcut is not the identity; use shortcut "auto"')
    elif isinstance(block.join, Scale):
        if not _outputs_zeros(block.body):  # else the scale's own gradient would be zero too
            nn.init.zeros_(block.join.scale)
    elif block.join is add:
        _zero_last_weights(path, block.body)
    elif not appends_channels(block):
        raise _no_identity(path, 'no body makes its join the identity; use join "add", "scale" or "layerscale"')


def _zero_last_weights(path: str, body: nn.Module) -> None:
    """Zero the last weights or norm of `body`, behind which nothing may stand that would keep their gradient away."""
    last = _last_layer(body)
    if not isinstance(last, _WEIGHTED) or last.weight is None:
        raise _no_identity(
            path,
            f"its body ends with {type(last).__name__}, and zeros in front of that would never learn; "
            "end bodies with a norm or weights, and put the activation after the join",
        )
    if not last.weight.requires_grad:
        raise _no_identity(path, "the last scale of its body is fixed and would stay at zero; let it learn")
    for tensor in (last.weight, last.bias):
        if tensor is not None:
            nn.init.zeros_(tensor)


def _outputs_zeros(body: nn.Module) -> bool:
    last = _last_layer(body)
    return isinstance(last, _WEIGHTED) and last.weight is not None and not bool(last.weight.any())


def _last_layer(layer: nn.Module) -> nn.Module:
    """What a body ends with, but for what leaves zeros as they are and lets their gradient through."""
    if isinstance(layer, Dense):
        return layer.linear if layer.activation is None else layer.activation
    if isinstance(layer, nn.Sequential):
        ends = (last for last in map(_last_layer, reversed(list(layer))) if not isinstance(last, _HARMLESS))
        return next(ends, layer)
    return layer


def _can_repeat(block: nn.Module) -> bool:
    """Check that another one like it could follow it."""
    if isinstance(block, Coupling):
        return block.shortcuts is None
    return isinstance(block, Skip) and block.shortcut is None and block.open_shortcut is None


def _block_container(stage: nn.Module) -> nn.Sequential:
    """Where the blocks of a planned stage stand that keep its shape: in it, or in its Reversible, which is made."""
    assert isinstance(stage, Chain)
    if not isinstance(next(iter(stage), None), Coupling | Reversible):
        return stage
    if "rest" not in stage._modules:
        rest = Reversible(Coupling(nn.Identity(), nn.Identity()))
        rest._modules.clear()  # blocks are about to be put into it
        stage._modules["rest"] = rest
    return stage.rest  # type: ignore[return-value]


def _insert(home: nn.Sequential, behind: list[int], blocks: list[nn.Module]) -> None:
    """Put each block behind the layer of that number; those without names are numbered anew."""
    layers = list(home._modules.items())
    for j, (place, block) in enumerate(zip(behind, blocks, strict=True)):
        layers.insert(place + 1 + j, ("0", block))
    named = {str(i) if name.isdigit() else name: layer for i, (name, layer) in enumerate(layers)}
    home._modules.clear()
    home._modules.update(named)


def _match_network(network: nn.Module, added: list[nn.Module]) -> list[nn.Module]:
    """The new blocks beside the old layers: on their device, in their precision, in their mode."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return [block.to(like.device, like.dtype).train(network.training) for block in added]


def _no_identity(path: str, why: str) -> InputError:
    return InputError(f"a block at {path} cannot begin as the identity: {why}")
