"""New residual blocks for a trained network, initialized as the identity so that they learn from the first step.

Shapes: a new block keeps the shape of its input, except for blocks that append channels.
Sources: zero-initialized last norm, Goyal et al. 2017, arXiv:1706.02677. Zero-initialized scale, Bachlechner et al.
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
from skipway.nn.dense import Dense
from skipway.nn.joins import Scale, add, append, concat
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Skip, named_skips
from skipway.utils.format_text import join_names

__all__ = ["appends_channels", "init_as_identity", "insert_repeated_blocks", "insert_planned_blocks"]

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
# Layers that may follow zeroed weights: they map zeros to zeros and pass the gradient.
_HARMLESS = (EfficientChannelAttention, Shift, SqueezeExcite, nn.Identity, nn.modules.dropout._DropoutNd)


def insert_planned_blocks(
    network: nn.Module, target: Network, *, before: Mapping[str, int], after: Mapping[str, int], spread: bool
) -> list[nn.Module]:
    """Insert the blocks of `target` that `network` lacks into each stage.

    Args:
        network: Network to change in place.
        target: Deeper network with new weights.
        before: Number of blocks of `network` by stage path.
        after: Number of blocks of `target` by stage path.
        spread: Distribute the new blocks between the old ones instead of appending them.

    Returns:
        The inserted blocks.
    """
    added: list[nn.Module] = []
    for stage, count in after.items():
        if more := count - before[stage]:
            home = _block_container(network.get_submodule(stage))
            target_home = _block_container(target.get_submodule(stage))
            first = before[stage] - len(home)  # leading blocks change the shape and are outside the container
            behind = [j * before[stage] // more - first if spread else len(home) - 1 for j in range(more)]
            blocks = [target_home[place + 1 + j] for j, place in enumerate(behind)]
            _insert(home, behind, blocks)
            added += blocks
    if target.plan.get("drop_path"):  # the stochastic-depth rate depends on the depth
        for path, skip in named_skips(target):
            twin = network.get_submodule(path)
            if isinstance(twin, Skip):
                twin.drop_path = skip.drop_path
    return _match_network(network, added)


def insert_repeated_blocks(network: nn.Module, homes: Mapping[str, int], spread: bool) -> list[nn.Module]:
    """Insert copies, with new weights, of the last shape-preserving block of each Chain.

    Args:
        network: Network to change in place.
        homes: Number of new blocks by the path of a Chain.
        spread: Distribute the new blocks between the old ones instead of appending them.

    Returns:
        The inserted blocks.

    Raises:
        InputError: A path is not a Chain, or the Chain has no block that can be repeated.
    """
    modules = dict(network.named_modules())
    added: list[nn.Module] = []
    for path, count in homes.items():  # paths refer to the network before any insertion
        home = modules.get(path)
        if not isinstance(home, nn.Sequential):
            raise InputError(
                f"blocks: expected the path of a Chain, got {path!r}{did_you_mean(path, modules)}. "
                "Pass the path of a Chain of blocks."
            )
        alike = [i for i, block in enumerate(home) if _can_repeat(block)]
        if not alike:
            kinds = join_names(dict.fromkeys(_kind_of(block) for block in home), limit=3) or "no layers"
            raise InputError(
                f"blocks: expected a Skip with an identity shortcut or a Coupling in the Chain at {path!r}, got "
                f"{kinds}. Add such a block first, or pass the path of another Chain."
            )
        behind = [alike[j * len(alike) // count] if spread else alike[-1] for j in range(count)]
        names = list(home._modules)
        blocks = [reset_parameters(f"{path}.{names[i]}".lstrip("."), copy.deepcopy(home[i])) for i in behind]
        _insert(home, behind, blocks)
        added += blocks
    return _match_network(network, added)


def appends_channels(block: nn.Module) -> bool:
    """Return True if a block appends channels to its input."""
    return isinstance(block, Skip) and block.join in (append, concat)


def init_as_identity(path: str, block: nn.Module) -> None:
    """Initialize a new block as the identity, by setting its last weights, last norm or scale to zero.

    Args:
        path: Path of the block, for errors.
        block: Skip or Coupling with new weights.

    Raises:
        InputError: The block cannot be an identity, or would not learn from this initialization.
    """
    if isinstance(block, Coupling) and block.shortcuts is None:
        _zero_last_weights(path, f"{path}.f", block.f)
        _zero_last_weights(path, f"{path}.g", block.g)
    elif not isinstance(block, Skip):
        raise _no_identity(path, f"{type(block).__name__} has no shortcut. Use a network with shortcuts.")
    elif block.shortcut is not None or block.open_shortcut is not None:
        raise _no_identity(path, 'its shortcut is not the identity. Set shortcut="auto".')
    elif isinstance(block.join, Scale):
        if not _outputs_zeros(block.body):  # otherwise the gradient of the scale would be zero
            nn.init.zeros_(block.join.scale)
    elif block.join is add:
        _zero_last_weights(path, f"{path}.body", block.body)
    elif not appends_channels(block):
        raise _no_identity(path, 'its join is never the identity. Set join="add", "scale" or "layerscale".')


def _zero_last_weights(path: str, body_path: str, body: nn.Module) -> None:
    """Zero the last weights or norm of `body`; refuse a body whose last layer would block their gradient."""
    place, last = _last_layer(body_path, body)
    name = f"{type(last).__name__} at {place}"
    if not isinstance(last, _WEIGHTED) or last.weight is None:
        raise _no_identity(
            path,
            f"its body ends with {name}, and zero weights before it would get no gradient. "
            'End bodies with a norm or a weight layer, apply the activation after the join, or use join="scale".',
        )
    if not last.weight.requires_grad:
        raise _no_identity(
            path, f"the last weight of its body, of {name}, is frozen and would stay at zero. Unfreeze it."
        )
    for tensor in (last.weight, last.bias):
        if tensor is not None:
            nn.init.zeros_(tensor)


def _outputs_zeros(body: nn.Module) -> bool:
    _, last = _last_layer("", body)
    return isinstance(last, _WEIGHTED) and last.weight is not None and not bool(last.weight.any())


def _last_layer(path: str, layer: nn.Module) -> tuple[str, nn.Module]:
    """Return the path and the last layer of a body, ignoring layers that keep zeros and pass the gradient."""
    if isinstance(layer, Dense):
        part = "linear" if layer.activation is None else "activation"
        return f"{path}.{part}", getattr(layer, part)
    if isinstance(layer, nn.Sequential):
        for name, child in reversed(layer._modules.items()):
            place, last = _last_layer(f"{path}.{name}", child)
            if not isinstance(last, _HARMLESS):
                return place, last
    return path, layer


def _kind_of(block: nn.Module) -> str:
    has_shortcut = isinstance(block, Skip) and (block.shortcut is not None or block.open_shortcut is not None)
    return f"{type(block).__name__} with a shortcut" if has_shortcut else type(block).__name__


def _can_repeat(block: nn.Module) -> bool:
    """Return True if a copy of the block can follow it."""
    if isinstance(block, Coupling):
        return block.shortcuts is None
    return isinstance(block, Skip) and block.shortcut is None and block.open_shortcut is None


def _block_container(stage: nn.Module) -> nn.Sequential:
    """Return the container of the shape-preserving blocks of a stage; create the Reversible of a reversible stage."""
    assert isinstance(stage, Chain)
    if not isinstance(next(iter(stage), None), Coupling | Reversible):
        return stage
    if "rest" not in stage._modules:
        rest = Reversible(Coupling(nn.Identity(), nn.Identity()))
        rest._modules.clear()  # the caller inserts the blocks
        stage._modules["rest"] = rest
    return stage.rest  # type: ignore[return-value]


def _insert(home: nn.Sequential, behind: list[int], blocks: list[nn.Module]) -> None:
    """Insert each block after the layer at that index, and renumber layers without names."""
    layers = list(home._modules.items())
    for j, (place, block) in enumerate(zip(behind, blocks, strict=True)):
        layers.insert(place + 1 + j, ("0", block))
    named = {str(i) if name.isdigit() else name: layer for i, (name, layer) in enumerate(layers)}
    home._modules.clear()
    home._modules.update(named)


def _match_network(network: nn.Module, added: list[nn.Module]) -> list[nn.Module]:
    """Move new blocks to the device, dtype and training mode of the network."""
    like = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    return [block.to(like.device, like.dtype).train(network.training) for block in added]


def _no_identity(path: str, why: str) -> InputError:
    return InputError(f"cannot initialize the block at {path} as the identity: {why}")
