"""Widening: rewrite the layers of a network for more channels, with the same outputs.

A ChannelMap describes the input channels of a layer, which its weight columns follow. Its output channels depend on
the layers after it: both inputs of a join have the same map, and the outputs of the network keep their channels.
Copies of a channel share its weights in the next layer. New channels have zero weights there.

Source: Chen et al. 2015, arXiv:1511.05641 (Net2WiderNet).
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from skipway.errors import InputError
from skipway.grow.channel_map import NEW, ChannelMap, Origin, concat_maps, copy_shares, select_channels
from skipway.grow.layer_roles import (
    CONVOLUTIONS,
    FIXED,
    NORMS,
    PASSES,
    LayerRoles,
    children_of,
    is_sequential,
    join_path,
)
from skipway.nn.blocks import Shift, SqueezeExcite
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, append, concat
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling
from skipway.nn.shortcut_types import GROUPS, Pad, Project
from skipway.nn.skip import Skip

__all__ = ["Widening", "reset_parameters"]

Target = ChannelMap | Literal["fixed"] | None  # required output channels: a map, unchanged, or any


@dataclass
class Widening:
    """Rewrite the layers of a network in place, from input to output.

    Attributes:
        roles: Roles of the layers before widening.
        new_width: Returns the output width of the layer at a path, from its old width.
        new_groups: Returns the number of groups of the group norm at a path. None: the numbers stay.
        new_state: State dict with the values of new channels. None: additional channels copy old ones.
        share_generator: Generator of unequal shares for copies of a channel. None: equal shares.
        added: Paths of new blocks, whose appended channels are new.
        origins: Origin of each rewritten parameter, filled by `rewrite`.
        maps: Map of the output channels of each layer by path, filled by `rewrite`.
        blockers: Path of each layer that kept its channels, with the reason, filled by `rewrite`.
    """

    roles: LayerRoles
    new_width: Callable[[str, int], int]
    new_groups: Callable[[str], int] | None = None
    new_state: Mapping[str, Tensor] | None = None
    share_generator: torch.Generator | None = None
    added: Collection[str] = ()
    origins: dict[str, Origin] = field(default_factory=dict)
    maps: dict[str, ChannelMap] = field(default_factory=dict)
    blockers: dict[str, str] = field(default_factory=dict)

    def rewrite(self, network: nn.Module, width: int) -> None:
        """Rewrite `network`, whose input has `width` channels, and keep its outputs."""
        self._visit("", network, ChannelMap.identity(width), FIXED)

    # Rewriting: each method returns the map of the layer's outputs

    def _visit(self, path: str, layer: nn.Module | None, inputs: ChannelMap, target: Target = None) -> ChannelMap:
        if path in self.added:
            outputs = self._visit_added(path, layer, inputs)
        elif layer is None:
            outputs = inputs
        elif is_sequential(layer) and not (isinstance(layer, Project) and self.roles.role(path, layer) == FIXED):
            outputs = self._visit_sequence(path, layer, inputs, target)
        elif isinstance(layer, Dense):
            activation = join_path(path, "activation")
            mixed = self.roles.role(activation, layer.activation) != PASSES
            if mixed:
                self._block(activation, layer.activation)
            outputs = self._visit(join_path(path, "linear"), layer.linear, inputs, FIXED if mixed else target)
            outputs = outputs if mixed else self._visit(activation, layer.activation, outputs)
        elif self.roles.role(path, layer) == FIXED:
            return self._visit_fixed(path, layer, inputs, target)
        elif isinstance(layer, Skip):
            outputs = self._visit_skip(path, layer, inputs, target)
        elif isinstance(layer, Parallel):
            outputs = self._visit_parallel(path, layer, inputs, target)
        elif isinstance(layer, Coupling):
            outputs = self._visit_coupling(path, layer, inputs, target)
        elif self.roles.is_pass_through(path, layer):
            outputs = self._visit_pass_through(path, layer, inputs)
        elif isinstance(layer, Pad):
            outputs = self._visit_pad(path, layer, inputs)
        else:
            outputs = self._widen_weights(path, layer, inputs, target)
        if isinstance(target, ChannelMap):
            fits = outputs.equals(target)
        else:
            fits = target is None or outputs.is_identity
        self.maps[path] = outputs
        if not fits:
            raise _cannot_widen(path, "its output channels cannot match those of its join. Widen by another factor.")
        return outputs

    def _visit_sequence(self, path: str, layer: nn.Module, inputs: ChannelMap, target: Target) -> ChannelMap:
        layers, outputs = children_of(layer), inputs
        for i, (name, child) in enumerate(layers):
            next_role = self.roles.role_of_next(path, layers[i + 1 :])
            child_target = target
            if next_role is not None:
                child_target = FIXED if next_role == FIXED else None
            outputs = self._visit(join_path(path, name), child, outputs, child_target)
        if isinstance(layer, Project):
            layer.out_channels, layer.in_channels = (layer.conv if layer.dims else layer.linear).weight.shape[:2]
        return outputs

    def _visit_fixed(self, path: str, layer: nn.Module, inputs: ChannelMap, target: Target) -> ChannelMap:
        """Check that the inputs and outputs of a layer that cannot be widened do not change."""
        blocker, reason = self._block(path, layer)
        if not inputs.is_identity or (isinstance(target, ChannelMap) and not target.is_identity):
            raise _cannot_widen(blocker, reason)
        return ChannelMap.identity(self.roles.output_width(layer) or inputs.old_width)

    def _block(self, path: str, layer: nn.Module | None) -> tuple[str, str]:
        """Record the layer inside `layer` that cannot be widened, and return its path and the reason."""
        blocker, reason = self.roles.blocker(path, layer)
        self.blockers[blocker] = reason
        return blocker, reason

    def _visit_skip(self, path: str, skip: Skip, inputs: ChannelMap, target: Target) -> ChannelMap:
        body, shortcut = join_path(path, "body"), join_path(path, "shortcut")
        if skip.join in (append, concat):
            part_target = _if_fixed(target)
            around = self._visit(shortcut, skip.shortcut, inputs, part_target)
            branch = self._visit(body, skip.body, inputs, part_target)
            joined = concat_maps(around, branch) if skip.join is append else concat_maps(branch, around)
            return self._visit(join_path(path, "after"), skip.after, joined)
        outputs = self._visit(shortcut, skip.shortcut, inputs, target)
        self._visit(body, skip.body, inputs, outputs)
        join = join_path(path, "join")
        if isinstance(skip.join, Scale) and skip.join.channels is not None:
            skip.join.channels = len(outputs.source)
            self._replace_tensor(join, skip.join, "scale", outputs)
        elif isinstance(skip.join, Gate):
            assert skip.join.transform is not None
            self._widen_weights(join_path(join, "transform"), skip.join.transform, outputs, outputs)
        return self._visit(join_path(path, "after"), skip.after, outputs)

    def _visit_parallel(self, path: str, layer: Parallel, inputs: ChannelMap, target: Target) -> ChannelMap:
        branches = [(join_path(path, f"branches.{name}"), branch) for name, branch in children_of(layer.branches)]
        if layer.join in (append, concat):
            maps = [self._visit(name, branch, inputs, _if_fixed(target)) for name, branch in branches]
            return concat_maps(*(maps[::-1] if layer.join is append else maps))
        passing = [item for item in branches if self.roles.role(*item) == PASSES]
        first, *others = passing + [item for item in branches if item not in passing]
        outputs = self._visit(*first, inputs, target)
        for item in others:
            self._visit(*item, inputs, outputs)
        return outputs

    def _visit_coupling(self, path: str, layer: Coupling, inputs: ChannelMap, target: Target) -> ChannelMap:
        half, middle = inputs.old_width // 2, len(inputs.source) // 2
        x1, x2 = ChannelMap(inputs.source[:middle], half), ChannelMap(inputs.source[middle:] - half, half)
        if len(inputs.source) % 2 or not (x1.keeps_all and x2.keeps_all) or bool((x1.source >= half).any()):
            raise _cannot_widen(path, "the halves of its channels would mix. Widen it by an integer factor.")
        shortcuts = [None, None] if layer.shortcuts is None else list(layer.shortcuts)
        y1 = self._visit(join_path(path, "shortcuts.0"), shortcuts[0], x1, _if_fixed(target))
        y2 = self._visit(join_path(path, "shortcuts.1"), shortcuts[1], x2, _if_fixed(target))
        self._visit(join_path(path, "f"), layer.f, x2, y1)
        self._visit(join_path(path, "g"), layer.g, y1, y2)
        return concat_maps(y1, y2)

    def _visit_added(self, path: str, block: nn.Module | None, inputs: ChannelMap) -> ChannelMap:
        """Return the map of the outputs of a new block: its inputs, and the new channels that it appends."""
        if not isinstance(block, Skip) or block.join not in (append, concat):
            return inputs
        if self.new_state is None:
            unknown = ChannelMap(torch.full_like(inputs.source, NEW), 0)
            outputs = self._visit(join_path(path, "body"), block.body, unknown)
            reset_parameters(path, block)
            width = len(outputs.source)
        else:  # the block already has the right width
            width = next(p for p in reversed(list(block.body.parameters())) if p.dim() > 1).shape[0]
        new = ChannelMap(torch.full((width,), NEW), 0)
        return concat_maps(inputs, new) if block.join is append else concat_maps(new, inputs)

    def _visit_pad(self, path: str, pad: Pad, inputs: ChannelMap) -> ChannelMap:
        """Extend the zero channels of a `Pad`, in its channel order."""
        width, size = len(inputs.source), self.new_width(path, pad.out_channels)
        old_front, front = (pad.out_channels - pad.in_channels) // 2, (size - width) // 2
        old_back, back = pad.out_channels - pad.in_channels - old_front, size - width - front
        if front < old_front or back < old_back:
            raise _cannot_widen(path, f"{size} channels leave too few zeros around {width}. Widen it more.")
        block = self._block_size(pad.out_channels, size)
        first, last = self._widened(old_front, front, block), self._widened(old_back, back, block)
        pad.in_channels, pad.out_channels = width, size
        return concat_maps(first, inputs, last)

    def _widened(self, width: int, size: int, block: int) -> ChannelMap:
        """Return a map to `size` channels; copies come in blocks of `block` channels if these fit."""
        repeat = self.new_state is None and width > 0
        fits = width > 0 and size % width == 0 and width % block == 0
        return ChannelMap.widened(width, size, repeat=repeat, block=block if fits else 1)

    def _block_size(self, width: int, size: int) -> int:
        """Return how many adjacent channels must be copied together, because group norms get more groups."""
        groups = math.gcd(GROUPS, width)
        return width // groups if self.new_groups is not None and math.gcd(GROUPS, size) != groups else 1

    def _visit_pass_through(self, path: str, layer: nn.Module, inputs: ChannelMap) -> ChannelMap:
        if isinstance(layer, nn.Flatten):
            return inputs.flattened(math.prod(self.roles.spatial_sizes(layer)))
        if isinstance(layer, SqueezeExcite):
            squeezed = self._widen_weights(join_path(path, "squeeze"), layer.squeeze, inputs, None)
            self._widen_weights(join_path(path, "excite"), layer.excite, squeezed, inputs)
        elif isinstance(layer, nn.PReLU) and layer.num_parameters > 1:
            layer.num_parameters = len(inputs.source)
            self._replace_tensor(path, layer, "weight", inputs)
        elif isinstance(layer, NORMS):
            self._widen_norm(path, layer, inputs)
        elif isinstance(layer, CONVOLUTIONS):
            layer.in_channels = layer.out_channels = layer.groups = len(inputs.source)
            for name in ("weight", *(() if layer.bias is None else ("bias",))):
                self._replace_tensor(path, layer, name, inputs)
        return inputs

    def _widen_norm(self, path: str, layer: Any, inputs: ChannelMap) -> None:
        size = len(inputs.source)
        if isinstance(layer, nn.GroupNorm):
            groups = layer.num_groups if self.new_groups is None else self.new_groups(path)
            factor = "an integer factor" if size % inputs.old_width else "3 or another odd factor"
            if size % groups or not inputs.keeps_group_means(layer.num_groups, groups):
                raise _cannot_widen(
                    path,
                    f"its groups would average other channels ({inputs.old_width} channels become {size}, and "
                    f"{layer.num_groups} groups {groups}). Widen it by {factor}.",
                )
            layer.num_groups, layer.num_channels = groups, size
        elif isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            if not inputs.keeps_group_means(1, 1):
                raise _cannot_widen(path, "its mean would weight channels differently. Widen it by an integer factor.")
            layer.normalized_shape = (size,)
        else:
            layer.num_features = size
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, name, None) is not None:
                self._replace_tensor(path, layer, name, inputs)

    def _widen_weights(self, path: str, layer: Any, inputs: ChannelMap, target: Target) -> ChannelMap:
        """Rewrite the weights of a convolution or linear layer: columns for `inputs`, rows for `target`."""
        old, groups = layer.weight, getattr(layer, "groups", 1)
        if isinstance(target, ChannelMap):
            outputs = target
        elif target == FIXED:
            outputs = ChannelMap.identity(len(old))
        else:
            size = self.new_width(path, len(old))
            outputs = self._widened(len(old), size, self._block_size(len(old), size))
        columns = inputs if groups == 1 else _group_columns(path, inputs, outputs, groups)
        with torch.no_grad():
            weight = select_channels(select_channels(old, outputs, 0), columns, 1)
            if bool((columns.copy_counts() > 1).any()):
                shares = copy_shares(columns, len(outputs.source), self.share_generator).to(weight)
                weight = weight * shares.view(*shares.shape, *[1] * (weight.dim() - 2))
        self._replace_tensor(path, layer, "weight", outputs, columns=columns, value=weight)
        if layer.bias is not None:
            self._replace_tensor(path, layer, "bias", outputs)
        names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
        for name, size in zip(names, (len(inputs.source), len(outputs.source)), strict=True):
            setattr(layer, name, size)
        return outputs

    def _replace_tensor(
        self,
        path: str,
        layer: nn.Module,
        name: str,
        rows: ChannelMap,
        *,
        columns: ChannelMap | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Replace a parameter or buffer by the rewritten tensor, and initialize its new rows."""
        old = getattr(layer, name)
        changed_rows = None if rows.is_identity else rows
        changed_columns = None if columns is None or columns.is_identity else columns
        if changed_rows is None and changed_columns is None:
            return
        with torch.no_grad():
            value = select_channels(old, rows, 0) if value is None else value
            new = rows.source < 0
            if bool(new.any()):
                value[new] = self._new_values(f"{path}.{name}", value)[new].to(value)
        key = join_path(path, name)
        if isinstance(old, nn.Parameter):
            layer._parameters[name] = nn.Parameter(value, old.requires_grad)
            self.origins[key] = Origin(key, changed_rows, changed_columns)
        else:
            layer._buffers[name] = value

    def _new_values(self, key: str, like: Tensor) -> Tensor:
        """Return the values of new channels, from `new_state` or an initializer."""
        if self.new_state is not None and key in self.new_state:
            return self.new_state[key]
        if like.dim() > 1:
            return nn.init.kaiming_normal_(torch.empty_like(like), nonlinearity="relu")
        return torch.full_like(like, float(key.endswith(("weight", "running_var"))))


def reset_parameters(path: str, block: nn.Module) -> nn.Module:
    """Reset the weights of all layers of a block at `path`, and return it.

    Raises:
        InputError: A layer is parametrized, or has parameters and no `reset_parameters`.
    """
    for name, layer in block.named_modules():
        if parametrize.is_parametrized(layer):
            raise InputError(
                f"cannot repeat the block at {path}: the weight of {type(layer).__name__} at {join_path(path, name)} "
                "is computed by a parametrization. Remove the parametrization first."
            )
        if isinstance(layer, Scale):
            nn.init.constant_(layer.scale, layer.init)
        elif isinstance(layer, Shift):
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.MultiheadAttention):
            layer._reset_parameters()
        elif any(p is not None for p in layer._parameters.values()):
            if not callable(getattr(layer, "reset_parameters", None)):
                kind = type(layer).__name__
                raise InputError(
                    f"cannot repeat the block at {path}: {kind} at {join_path(path, name)} has no reset_parameters(). "
                    "Add it."
                )
            layer.reset_parameters()
    return block


def _group_columns(path: str, inputs: ChannelMap, outputs: ChannelMap, groups: int) -> ChannelMap:
    """Return the map of the columns of a grouped convolution, which are those of one group."""
    columns, rows = inputs.within_group(groups), outputs.within_group(groups)
    if columns is None or rows is None:
        raise _cannot_widen(path, f"its {groups} groups would mix. Widen it by an integer factor.")
    return columns


def _if_fixed(target: Target) -> Target:
    """Return the target of one input of a concatenation: fixed or free."""
    return target if target == FIXED else None


def _cannot_widen(path: str, why: str) -> InputError:
    return InputError(f"cannot widen the layer at {path or 'the top'}: {why}")
