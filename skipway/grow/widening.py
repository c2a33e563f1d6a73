"""Widening: rewrite the layers of a network for more channels, with the same outputs.

A ChannelMap describes the input channels of a layer, which its weight columns follow. Its output channels depend on
the layers after it: both inputs of a join have the same map, and the outputs of the network keep their channels.
Copies of a channel share its weights in the next layer. New channels have zero weights there.

Source: Chen et al. 2015, arXiv:1511.05641 (Net2WiderNet).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.grow.channel_map import NEW, ChannelMap, Origin, concat_maps, copy_shares, select_channels
from skipway.models.head import Scaled
from skipway.nn.blocks import LayerNorm2d, SameConv2d, SameMaxPool2d, Shift, SqueezeExcite
from skipway.nn.chain import Function, is_plain_sequence
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, add, append, concat, multiply
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import Call
from skipway.nn.shortcut_types import Pad, Project
from skipway.nn.skip import Skip

__all__ = ["Widening", "reset_parameters"]

Role = Literal["passes", "mixes", "fixed"]  # keeps its channels, mixes them, or cannot be widened
PASSES: Final = "passes"
MIXES: Final = "mixes"
FIXED: Final = "fixed"
Target = ChannelMap | Literal["fixed"] | None  # required output channels: a map, unchanged, or any
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SameConv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
_OWN = (Shift, Scaled, SqueezeExcite, SameMaxPool2d, nn.Identity)
_ELEMENTWISE = {
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.mish),
    *(F.softplus, F.tanh, F.sigmoid),
}
_PLACES = ("activation", "dropout", "pooling", "padding", "upsampling")  # torch modules that keep channels, except:
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention, nn.PReLU)
_JOINS = (add, multiply, append, concat)


@dataclass
class Widening:
    """Rewrite the layers of a network in place, from input to output.

    Attributes:
        calls: Input and output shapes of each layer before widening.
        new_width: Returns the output width of the layer at a path, from its old width.
        new_state: State dict with the values of new channels. None: additional channels copy old ones.
        share_generator: Generator of unequal shares for copies of a channel. None: equal shares.
        added: Paths of new blocks, whose appended channels are new.
        origins: Origin of each rewritten parameter, filled by `rewrite`.
    """

    calls: Mapping[nn.Module, Call]
    new_width: Callable[[str, int], int]
    new_state: Mapping[str, Tensor] | None = None
    share_generator: torch.Generator | None = None
    added: Collection[str] = ()
    origins: dict[str, Origin] = field(default_factory=dict)

    def rewrite(self, network: nn.Module, width: int) -> None:
        """Rewrite `network`, whose input has `width` channels, and keep its outputs."""
        self._visit("", network, ChannelMap.identity(width), FIXED)

    # Roles: the effect of a layer on its input channels

    def _role(self, path: str, layer: nn.Module | None) -> Role:
        if layer is None or self._is_pass_through(path, layer):
            return PASSES
        if _is_sequential(layer):
            return self._role_of_next(path, _children(layer)) or PASSES
        if isinstance(layer, Dense):
            return self._role(_join_path(path, "linear"), layer.linear)
        if type(layer) is nn.Linear:
            return MIXES if len(self._input_shape(layer)) == 2 else FIXED
        if type(layer) in (*_CONVOLUTIONS, Pad):
            return MIXES
        if isinstance(layer, Coupling):
            inner = [self._role(_join_path(path, name), part) for name, part in (("f", layer.f), ("g", layer.g))]
            if FIXED in inner:
                return FIXED
            return PASSES if layer.shortcuts is None else MIXES
        if isinstance(layer, Parallel):
            inner = [self._role(_join_path(path, f"branches.{name}"), part) for name, part in _children(layer.branches)]
            strange = layer.join not in _JOINS or len(self._input_shapes(layer)) != 1
            if strange or FIXED in inner:
                return FIXED
            return PASSES if PASSES in inner else MIXES
        if isinstance(layer, Skip) and (layer.join in _JOINS or isinstance(layer.join, Scale | Gate)):
            inner = [self._role(_join_path(path, name), getattr(layer, name)) for name in ("body", "shortcut", "after")]
            return FIXED if FIXED in inner or inner[2] != PASSES else inner[1]
        return FIXED

    def _role_of_next(self, path: str, layers: Sequence[tuple[str, nn.Module]]) -> Role | None:
        """Return the role of the first of `layers` that does not just pass its channels."""
        roles = (self._role(_join_path(path, name), layer) for name, layer in layers)
        return next((role for role in roles if role != PASSES), None)

    def _is_pass_through(self, path: str, layer: nn.Module) -> bool:
        if isinstance(layer, nn.Flatten):
            return layer.start_dim == 1 and layer.end_dim == -1
        if isinstance(layer, nn.LayerNorm):
            dims = 4 if isinstance(layer, LayerNorm2d) else 2
            return len(layer.normalized_shape) == 1 and len(self._input_shape(layer)) == dims
        if isinstance(layer, Function):
            return layer.function in _ELEMENTWISE
        if type(layer) in (*_NORMS, *_OWN) or _is_depthwise(path, layer):
            return True
        if type(layer).__module__.removeprefix("torch.nn.modules.") not in _PLACES or isinstance(layer, _MIXING):
            return False
        axes = re.search(r"([123])d$", type(layer).__name__)  # without a batch axis, channels are a spatial axis
        return axes is None or layer not in self.calls or len(self._input_shape(layer)) == 2 + int(axes[1])

    def _input_shapes(self, layer: nn.Module) -> tuple[Any, ...]:
        """Return the input shapes of a layer; for a layer in a new block, the shape of a table row."""
        return self.calls[layer].inputs if layer in self.calls else ((1, 1),)

    def _input_shape(self, layer: nn.Module) -> tuple[int, ...]:
        return next(iter(self._input_shapes(layer)), ())

    # Rewriting: each method returns the map of the layer's outputs

    def _visit(self, path: str, layer: nn.Module | None, inputs: ChannelMap, target: Target = None) -> ChannelMap:
        if path in self.added:
            outputs = self._visit_added(path, layer, inputs)
        elif layer is None:
            outputs = inputs
        elif _is_sequential(layer):
            outputs = self._visit_sequence(path, layer, inputs, target)
        elif isinstance(layer, Dense):
            mixed = self._role(_join_path(path, "activation"), layer.activation) != PASSES
            outputs = self._visit(_join_path(path, "linear"), layer.linear, inputs, FIXED if mixed else target)
            outputs = outputs if mixed else self._visit(_join_path(path, "activation"), layer.activation, outputs)
        elif self._role(path, layer) == FIXED:
            return self._visit_fixed(path, layer, inputs, target)
        elif isinstance(layer, Skip):
            outputs = self._visit_skip(path, layer, inputs, target)
        elif isinstance(layer, Parallel):
            outputs = self._visit_parallel(path, layer, inputs, target)
        elif isinstance(layer, Coupling):
            outputs = self._visit_coupling(path, layer, inputs, target)
        elif self._is_pass_through(path, layer):
            outputs = self._visit_pass_through(path, layer, inputs)
        elif isinstance(layer, Pad):
            outputs = self._visit_pad(path, layer, inputs)
        else:
            outputs = self._widen_weights(path, layer, inputs, target)
        if isinstance(target, ChannelMap):
            fits = outputs.equals(target)
        else:
            fits = target is None or outputs.is_identity
        if not fits:
            raise _cannot_widen(path, "its output channels cannot match those of its join. Widen by another factor.")
        return outputs

    def _visit_sequence(self, path: str, layer: nn.Module, inputs: ChannelMap, target: Target) -> ChannelMap:
        layers, outputs = _children(layer), inputs
        for i, (name, child) in enumerate(layers):
            next_role = self._role_of_next(path, layers[i + 1 :])
            child_target = target
            if next_role is not None:
                child_target = FIXED if next_role == FIXED else None
            outputs = self._visit(_join_path(path, name), child, outputs, child_target)
        if isinstance(layer, Project):
            layer.out_channels, layer.in_channels = (layer.conv if layer.dims else layer.linear).weight.shape[:2]
        return outputs

    def _visit_fixed(self, path: str, layer: nn.Module, inputs: ChannelMap, target: Target) -> ChannelMap:
        """Check that the inputs and outputs of a layer of an unknown type do not change."""
        if not inputs.is_identity or (isinstance(target, ChannelMap) and not target.is_identity):
            raise _cannot_widen(path, f"{type(layer).__name__} uses channels in an unknown way. Replace it.")
        shape = self.calls[layer].output if layer in self.calls else ()
        return ChannelMap.identity(shape[1] if len(shape) > 1 and isinstance(shape[1], int) else inputs.old_width)

    def _visit_skip(self, path: str, skip: Skip, inputs: ChannelMap, target: Target) -> ChannelMap:
        body, shortcut = _join_path(path, "body"), _join_path(path, "shortcut")
        if skip.join in (append, concat):
            part_target = _if_fixed(target)
            around = self._visit(shortcut, skip.shortcut, inputs, part_target)
            branch = self._visit(body, skip.body, inputs, part_target)
            joined = concat_maps(around, branch) if skip.join is append else concat_maps(branch, around)
            return self._visit(_join_path(path, "after"), skip.after, joined)
        outputs = self._visit(shortcut, skip.shortcut, inputs, target)
        self._visit(body, skip.body, inputs, outputs)
        join = _join_path(path, "join")
        if isinstance(skip.join, Scale) and skip.join.channels is not None:
            skip.join.channels = len(outputs.source)
            self._replace_tensor(join, skip.join, "scale", outputs)
        elif isinstance(skip.join, Gate):
            assert skip.join.transform is not None
            self._widen_weights(_join_path(join, "transform"), skip.join.transform, outputs, outputs)
        return self._visit(_join_path(path, "after"), skip.after, outputs)

    def _visit_parallel(self, path: str, layer: Parallel, inputs: ChannelMap, target: Target) -> ChannelMap:
        branches = [(_join_path(path, f"branches.{name}"), branch) for name, branch in _children(layer.branches)]
        if layer.join in (append, concat):
            maps = [self._visit(name, branch, inputs, _if_fixed(target)) for name, branch in branches]
            return concat_maps(*(maps[::-1] if layer.join is append else maps))
        passing = [item for item in branches if self._role(*item) == PASSES]
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
        y1 = self._visit(_join_path(path, "shortcuts.0"), shortcuts[0], x1, _if_fixed(target))
        y2 = self._visit(_join_path(path, "shortcuts.1"), shortcuts[1], x2, _if_fixed(target))
        self._visit(_join_path(path, "f"), layer.f, x2, y1)
        self._visit(_join_path(path, "g"), layer.g, y1, y2)
        return concat_maps(y1, y2)

    def _visit_added(self, path: str, block: nn.Module | None, inputs: ChannelMap) -> ChannelMap:
        """Return the map of the outputs of a new block: its inputs, and the new channels that it appends."""
        if not isinstance(block, Skip) or block.join not in (append, concat):
            return inputs
        if self.new_state is None:
            unknown = ChannelMap(torch.full_like(inputs.source, NEW), 0)
            outputs = self._visit(_join_path(path, "body"), block.body, unknown)
            reset_parameters(block)
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
        repeat = self.new_state is None
        first = ChannelMap.widened(old_front, front, repeat=repeat and old_front > 0)
        last = ChannelMap.widened(old_back, back, repeat=repeat and old_back > 0)
        pad.in_channels, pad.out_channels = width, size
        return concat_maps(first, inputs, last)

    def _visit_pass_through(self, path: str, layer: nn.Module, inputs: ChannelMap) -> ChannelMap:
        if isinstance(layer, nn.Flatten):
            return inputs.flattened(math.prod(self._input_shape(layer)[2:]))
        if isinstance(layer, SqueezeExcite):
            squeezed = self._widen_weights(_join_path(path, "squeeze"), layer.squeeze, inputs, None)
            self._widen_weights(_join_path(path, "excite"), layer.excite, squeezed, inputs)
        elif isinstance(layer, _NORMS):
            self._widen_norm(path, layer, inputs)
        elif isinstance(layer, _CONVOLUTIONS):
            layer.in_channels = layer.out_channels = layer.groups = len(inputs.source)
            for name in ("weight", *(() if layer.bias is None else ("bias",))):
                self._replace_tensor(path, layer, name, inputs)
        return inputs

    def _widen_norm(self, path: str, layer: Any, inputs: ChannelMap) -> None:
        size = len(inputs.source)
        if isinstance(layer, nn.GroupNorm):
            usual = layer.num_groups == math.gcd(32, inputs.old_width)
            groups = math.gcd(32, size) if usual else layer.num_groups
            if size % groups or not inputs.keeps_group_means(layer.num_groups, groups):
                raise _cannot_widen(path, "its groups would average other channels. Widen it by an integer factor.")
            layer.num_groups, layer.num_channels = groups, size
        elif isinstance(layer, nn.LayerNorm):
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
            outputs = ChannelMap.widened(len(old), self.new_width(path, len(old)), repeat=self.new_state is None)
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
        key = _join_path(path, name)
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


def reset_parameters(block: nn.Module) -> nn.Module:
    """Reset the weights of all layers of a block, and return it.

    Raises:
        InputError: A layer with parameters has no `reset_parameters`.
    """
    for path, layer in block.named_modules():
        if isinstance(layer, Scale):
            nn.init.constant_(layer.scale, layer.init)
        elif isinstance(layer, Shift):
            nn.init.zeros_(layer.bias)
        elif any(p is not None for p in layer._parameters.values()):
            if not callable(getattr(layer, "reset_parameters", None)):
                kind = type(layer).__name__
                raise InputError(f"cannot repeat the block: {kind} at {path} has no reset_parameters(). Add it.")
            layer.reset_parameters()
    return block


def _is_sequential(layer: nn.Module) -> bool:
    """Return True if `layer` runs its layers in sequence."""
    return is_plain_sequence(layer) or isinstance(layer, Project | Reversible)


def _is_depthwise(path: str, layer: nn.Module) -> bool:
    """Return True for a depthwise convolution; the name counts, because other groups of 1 may widen."""
    is_named = path.rpartition(".")[2] == "depthwise"
    return is_named and type(layer) in _CONVOLUTIONS and layer.in_channels == layer.out_channels == layer.groups


def _children(layer: Any) -> list[tuple[str, nn.Module]]:
    return layer.row() if isinstance(layer, Project) else list(layer._modules.items())


def _join_path(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


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
