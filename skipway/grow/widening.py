"""Layers rewritten for more channels, with the same outputs.

What reaches a layer is told as a Row. Its columns follow the row that it is given, and its own outputs follow what is
behind it: both sides of a join have the same row, and what leaves the network stays as it was. Channels that repeat an
old one share its weights in what reads them, new ones weigh nothing there.

Source: Chen et al. 2015, arXiv:1511.05641 (Net2WiderNet).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skipway.errors import InputError
from skipway.grow.channel_map import NEW, ChannelMap, Origin, beside, shares_of, taken
from skipway.models.resnet9 import Scaled
from skipway.nn.blocks import SameConv2d, SameMaxPool2d, Shift, SqueezeExcite
from skipway.nn.chain import Function, is_plain_sequence
from skipway.nn.joins import Gate, Scale, add, append, concat, multiply
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import Call
from skipway.nn.shortcuts import Pad, Project
from skipway.nn.skip import Dense, Parallel, Skip

__all__ = ["Widening", "redrawn"]

Wanted = ChannelMap | str | None  # a row, "keeps", or any
THROUGH, TAKES, KEEPS = "through", "takes", "keeps"  # what a layer does with the channels that it is given
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SameConv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm)
_OWN = (Shift, Scaled, SqueezeExcite, SameMaxPool2d, nn.Identity)
_ELEMENTWISE = {
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.mish),
    *(F.softplus, F.tanh, F.sigmoid),
}
_PLACES = ("activation", "dropout", "pooling", "padding", "upsampling")  # modules of torch that mix no channels, but:
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention, nn.PReLU)
_JOINS = (add, multiply, append, concat)


@dataclass
class Widening:
    """Rewrites layers in place, from the one that the network's input reaches on.

    calls: the call of each layer of the network as it was.
    size: how many outputs the layer at a path gets that had so many.
    fresh: a state to take new outputs from; None: outputs that come in addition repeat old ones.
    uneven: draws unequal shares for channels that repeat one.
    added: paths of blocks that the network did not have; what they append is new.
    origins: what each rewritten parameter is made of.
    """

    calls: Mapping[nn.Module, Call]
    size: Callable[[str, int], int]
    fresh: Mapping[str, Tensor] | None = None
    uneven: torch.Generator | None = None
    added: Collection[str] = ()
    origins: dict[str, Origin] = field(default_factory=dict)

    def rewrite(self, network: nn.Module, width: int) -> None:
        """Rewrite `network`, whose input has `width` channels; its outputs stay."""
        self._visit("", network, ChannelMap.kept(width), KEEPS)

    # What a layer does with the channels that it is given

    def _role(self, path: str, layer: nn.Module | None) -> str:
        if layer is None or self._passes(path, layer):
            return THROUGH
        if _is_sequential(layer):
            return self._behind(path, _row(layer)) or THROUGH
        if isinstance(layer, Dense):
            return self._role(_inside(path, "linear"), layer.linear)
        if type(layer) is nn.Linear:
            return TAKES if len(self._given(layer)) == 2 else KEEPS
        if type(layer) in (*_CONVOLUTIONS, Pad):
            return TAKES
        if isinstance(layer, Coupling):
            inner = [self._role(_inside(path, name), part) for name, part in (("f", layer.f), ("g", layer.g))]
            if KEEPS in inner:
                return KEEPS
            return THROUGH if layer.shortcuts is None else TAKES
        if isinstance(layer, Parallel):
            inner = [self._role(_inside(path, f"branches.{name}"), part) for name, part in _row(layer.branches)]
            strange = layer.join not in _JOINS or len(self._inputs(layer)) != 1
            if strange or KEEPS in inner:
                return KEEPS
            return THROUGH if THROUGH in inner else TAKES
        if isinstance(layer, Skip) and (layer.join in _JOINS or isinstance(layer.join, Scale | Gate)):
            inner = [self._role(_inside(path, name), getattr(layer, name)) for name in ("body", "shortcut", "after")]
            return KEEPS if KEEPS in inner or inner[2] != THROUGH else inner[1]
        return KEEPS

    def _behind(self, path: str, layers: Sequence[tuple[str, nn.Module]]) -> str | None:
        """What the first of `layers` does that does not only pass its channels through."""
        roles = (self._role(_inside(path, name), layer) for name, layer in layers)
        return next((role for role in roles if role != THROUGH), None)

    def _passes(self, path: str, layer: nn.Module) -> bool:
        if isinstance(layer, nn.Flatten):
            return layer.start_dim == 1 and layer.end_dim == -1
        if isinstance(layer, nn.LayerNorm):
            return len(layer.normalized_shape) == 1 and len(self._given(layer)) == 2
        if isinstance(layer, Function):
            return layer.function in _ELEMENTWISE
        if type(layer) in (*_NORMS, *_OWN):
            return True
        if type(layer).__module__.removeprefix("torch.nn.modules.") not in _PLACES or isinstance(layer, _MIXING):
            return False
        axes = re.search(r"([123])d$", type(layer).__name__)  # else it would take channels for one of them
        return axes is None or layer not in self.calls or len(self._given(layer)) == 2 + int(axes[1])

    def _inputs(self, layer: nn.Module) -> tuple[Any, ...]:
        """Shapes of a layer's inputs; of a layer in a block that was not there, that of any row of numbers."""
        return self.calls[layer].inputs if layer in self.calls else ((1, 1),)

    def _given(self, layer: nn.Module) -> tuple[int, ...]:
        return next(iter(self._inputs(layer)), ())

    # Rewriting: each gives the row of the layer's outputs

    def _visit(self, path: str, layer: nn.Module | None, given: ChannelMap, wanted: Wanted = None) -> ChannelMap:
        if path in self.added:
            row = self._add(path, layer, given)
        elif layer is None:
            row = given
        elif _is_sequential(layer):
            row = self._visit_row(path, layer, given, wanted)
        elif isinstance(layer, Dense):
            mixed = self._role(_inside(path, "activation"), layer.activation) != THROUGH
            row = self._visit(_inside(path, "linear"), layer.linear, given, KEEPS if mixed else wanted)
            row = row if mixed else self._visit(_inside(path, "activation"), layer.activation, row)
        elif self._role(path, layer) == KEEPS:
            return self._kept(path, layer, given, wanted)
        elif isinstance(layer, Skip):
            row = self._visit_skip(path, layer, given, wanted)
        elif isinstance(layer, Parallel):
            row = self._visit_parallel(path, layer, given, wanted)
        elif isinstance(layer, Coupling):
            row = self._visit_coupling(path, layer, given, wanted)
        elif self._passes(path, layer):
            row = self._pass(path, layer, given)
        else:
            row = self._pad(path, layer, given) if isinstance(layer, Pad) else self._weigh(path, layer, given, wanted)
        if (isinstance(wanted, ChannelMap) and not row.same(wanted)) or (wanted == KEEPS and not row.unchanged):
            raise _unable(path, "what it gives could not be kept beside what it is joined with")
        return row

    def _visit_row(self, path: str, layer: nn.Module, row: ChannelMap, wanted: Wanted) -> ChannelMap:
        layers = _row(layer)
        for i, (name, child) in enumerate(layers):
            behind = self._behind(path, layers[i + 1 :])
            if behind is None:
                ahead = wanted
            else:
                ahead = KEEPS if behind == KEEPS else None
            row = self._visit(_inside(path, name), child, row, ahead)
        if isinstance(layer, Project):
            layer.out_channels, layer.in_channels = (layer.conv if layer.dims else layer.linear).weight.shape[:2]
        return row

    def _kept(self, path: str, layer: nn.Module, given: ChannelMap, wanted: Wanted) -> ChannelMap:
        """A layer whose ways are not known: it is given what it was given, and gives what it gave."""
        if not given.unchanged or isinstance(wanted, ChannelMap) and not wanted.unchanged:
            raise _unable(path, f"the ways of {type(layer).__name__} with channels are not known")
        shape = self.calls[layer].output if layer in self.calls else ()
        return ChannelMap.kept(shape[1] if len(shape) > 1 and isinstance(shape[1], int) else given.width)

    def _visit_skip(self, path: str, skip: Skip, given: ChannelMap, wanted: Wanted) -> ChannelMap:
        body, shortcut = _inside(path, "body"), _inside(path, "shortcut")
        if skip.join in (append, concat):
            part = wanted if wanted == KEEPS else None
            kept, branch = self._visit(shortcut, skip.shortcut, given, part), self._visit(body, skip.body, given, part)
            both = beside(kept, branch) if skip.join is append else beside(branch, kept)
            return self._visit(_inside(path, "after"), skip.after, both)
        row = self._visit(shortcut, skip.shortcut, given, wanted)
        self._visit(body, skip.body, given, row)
        join = _inside(path, "join")
        if isinstance(skip.join, Scale) and skip.join.channels is not None:
            skip.join.channels = len(row.old)
            self._set(join, skip.join, "scale", row)
        elif isinstance(skip.join, Gate):
            assert skip.join.transform is not None
            self._weigh(_inside(join, "transform"), skip.join.transform, row, row)
        return self._visit(_inside(path, "after"), skip.after, row)

    def _visit_parallel(self, path: str, layer: Parallel, given: ChannelMap, wanted: Wanted) -> ChannelMap:
        branches = [(_inside(path, f"branches.{name}"), branch) for name, branch in _row(layer.branches)]
        if layer.join in (append, concat):
            part = wanted if wanted == KEEPS else None
            rows = [self._visit(name, branch, given, part) for name, branch in branches]
            return beside(*(rows[::-1] if layer.join is append else rows))
        bound = [one for one in branches if self._role(*one) == THROUGH]
        first, *rest = bound + [one for one in branches if one not in bound]
        row = self._visit(*first, given, wanted)
        for one in rest:
            self._visit(*one, given, row)
        return row

    def _visit_coupling(self, path: str, layer: Coupling, given: ChannelMap, wanted: Wanted) -> ChannelMap:
        half, middle = given.width // 2, len(given.old) // 2
        x1, x2 = ChannelMap(given.old[:middle], half), ChannelMap(given.old[middle:] - half, half)
        if len(given.old) % 2 or not (x1.whole and x2.whole) or bool((x1.old >= half).any()):
            raise _unable(path, "the halves of its channels would mix")
        part = wanted if wanted == KEEPS else None
        around = [None, None] if layer.shortcuts is None else list(layer.shortcuts)
        y1 = self._visit(_inside(path, "shortcuts.0"), around[0], x1, part)
        y2 = self._visit(_inside(path, "shortcuts.1"), around[1], x2, part)
        self._visit(_inside(path, "f"), layer.f, x2, y1)
        self._visit(_inside(path, "g"), layer.g, y1, y2)
        return beside(y1, y2)

    def _add(self, path: str, block: nn.Module | None, given: ChannelMap) -> ChannelMap:
        """What a block that was not there gives: what it appends is new, and all that it is given goes around it."""
        if not isinstance(block, Skip) or block.join not in (append, concat):
            return given
        if self.fresh is None:
            row = self._visit(_inside(path, "body"), block.body, ChannelMap(torch.full_like(given.old, NEW), 0))
            redrawn(block)
            width = len(row.old)
        else:  # it was made for what it is given
            width = next(p for p in reversed(list(block.body.parameters())) if p.dim() > 1).shape[0]
        new = ChannelMap(torch.full((width,), NEW), 0)
        return beside(given, new) if block.join is append else beside(new, given)

    def _pad(self, path: str, pad: Pad, given: ChannelMap) -> ChannelMap:
        """Zeros for new channels, in the same order as `Pad` gives them."""
        size = self.size(path, pad.out_channels)
        before, more = (
            (out - into) // 2 for out, into in ((pad.out_channels, pad.in_channels), (size, len(given.old)))
        )
        after, last = pad.out_channels - pad.in_channels - before, size - len(given.old) - more
        if more < before or last < after:
            raise _unable(path, f"{size} channels leave less room for its zeros around {len(given.old)}; widen it more")
        sides = [
            ChannelMap.spread(old, new, self.fresh is None and old > 0) for old, new in ((before, more), (after, last))
        ]
        pad.in_channels, pad.out_channels = len(given.old), size
        return beside(sides[0], given, sides[1])

    def _pass(self, path: str, layer: nn.Module, given: ChannelMap) -> ChannelMap:
        if isinstance(layer, nn.Flatten):
            return given.repeated(math.prod(self._given(layer)[2:]))
        if isinstance(layer, SqueezeExcite):
            squeezed = self._weigh(_inside(path, "squeeze"), layer.squeeze, given, None)
            self._weigh(_inside(path, "excite"), layer.excite, squeezed, given)
        elif isinstance(layer, _NORMS):
            self._norm(path, layer, given)
        return given

    def _norm(self, path: str, layer: Any, given: ChannelMap) -> None:
        size = len(given.old)
        if isinstance(layer, nn.GroupNorm):
            usual = layer.num_groups == math.gcd(32, given.width)
            groups = math.gcd(32, size) if usual else layer.num_groups
            if size % groups or not _same_means(given, layer.num_groups, groups):
                raise _unable(path, "its groups would mean over other channels; widen it by a whole factor")
            layer.num_groups, layer.num_channels = groups, size
        elif isinstance(layer, nn.LayerNorm):
            if not _same_means(given, 1, 1):
                raise _unable(path, "its mean would weigh channels anew; widen it by a whole factor")
            layer.normalized_shape = (size,)
        else:
            layer.num_features = size
        for name in ("weight", "bias", "running_mean", "running_var"):
            if getattr(layer, name, None) is not None:
                self._set(path, layer, name, given)

    def _weigh(self, path: str, layer: Any, given: ChannelMap, wanted: Wanted) -> ChannelMap:
        """A convolution or a linear layer: columns for what it is given, rows for what is wanted."""
        old, groups = layer.weight, getattr(layer, "groups", 1)
        if isinstance(wanted, ChannelMap):
            row = wanted
        elif wanted == KEEPS:
            row = ChannelMap.kept(len(old))
        else:
            row = ChannelMap.spread(len(old), self.size(path, len(old)), self.fresh is None)
        columns = given if groups == 1 else _grouped(path, given, row, groups)
        with torch.no_grad():
            weight = taken(taken(old, row, 0), columns, 1)
            if bool((columns.counts() > 1).any()):
                shares = shares_of(columns, len(row.old), self.uneven).to(weight)
                weight = weight * shares.view(*shares.shape, *[1] * (weight.dim() - 2))
        self._set(path, layer, "weight", row, columns, weight)
        if layer.bias is not None:
            self._set(path, layer, "bias", row)
        names = ("in_features", "out_features") if isinstance(layer, nn.Linear) else ("in_channels", "out_channels")
        for name, size in zip(names, (len(given.old), len(row.old)), strict=True):
            setattr(layer, name, size)
        return row

    def _set(
        self,
        path: str,
        layer: nn.Module,
        name: str,
        rows: ChannelMap,
        columns: ChannelMap | None = None,
        value: Tensor | None = None,
    ) -> None:
        """Put the rewritten tensor in its place, new rows with their fresh values."""
        old = getattr(layer, name)
        changed = None if rows.unchanged else rows, None if columns is None or columns.unchanged else columns
        if changed == (None, None):
            return
        with torch.no_grad():
            value = taken(old, rows, 0) if value is None else value
            new = rows.old < 0
            if bool(new.any()):
                value[new] = self._fresh(f"{path}.{name}", value)[new].to(value)
        key = _inside(path, name)
        if isinstance(old, nn.Parameter):
            layer._parameters[name] = nn.Parameter(value, old.requires_grad)
            self.origins[key] = Origin(key, *changed)
        else:
            layer._buffers[name] = value

    def _fresh(self, key: str, like: Tensor) -> Tensor:
        """Values for new channels: of the state that was given, or those that norms begin with."""
        if self.fresh is not None and key in self.fresh:
            return self.fresh[key]
        if like.dim() > 1:
            return nn.init.kaiming_normal_(torch.empty_like(like), nonlinearity="relu")
        return torch.full_like(like, float(key.endswith(("weight", "running_var"))))


def redrawn(block: nn.Module) -> nn.Module:
    """The block with fresh weights in all of its layers.

    Raises:
        InputError: a layer with weights of its own has no `reset_parameters`.
    """
    for path, layer in block.named_modules():
        if isinstance(layer, Scale):
            nn.init.constant_(layer.scale, layer.init)
        elif isinstance(layer, Shift):
            nn.init.zeros_(layer.bias)
        elif any(p is not None for p in layer._parameters.values()):
            if not callable(getattr(layer, "reset_parameters", None)):
                raise InputError(
                    f"{type(layer).__name__} at {path} of a block to repeat has no reset_parameters(), which would "
                    "give it fresh weights; write that method"
                )
            layer.reset_parameters()
    return block


def _is_sequential(layer: nn.Module) -> bool:
    """Return whether the channels of `layer` pass through its layers one after the other."""
    return is_plain_sequence(layer) or isinstance(layer, Project | Reversible)


def _row(layer: Any) -> list[tuple[str, nn.Module]]:
    return layer.row() if isinstance(layer, Project) else list(layer._modules.items())


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _same_means(row: ChannelMap, before: int, groups: int) -> bool:
    """Whether each of `groups` takes its mean over the channels of one of the groups there were, each as often."""
    size = row.width // before
    for members in row.old.view(groups, -1):
        inside = members - members[0] // size * size
        if bool((members < 0).any()) or bool(((inside < 0) | (inside >= size)).any()):
            return False
        counts = inside.bincount(minlength=size)
        if bool((counts != counts[0]).any()):
            return False
    return True


def _grouped(path: str, given: ChannelMap, row: ChannelMap, groups: int) -> ChannelMap:
    """The columns of a convolution in groups, which are those of each group."""
    local = []
    for one, wide in ((given, len(given.old)), (row, len(row.old))):
        size, places = one.width // groups, torch.arange(groups)[:, None]
        inside = one.old.view(groups, -1) - size * places if wide % groups == 0 else torch.full((1, 1), NEW)
        if bool(((inside < 0) | (inside >= size)).any()) or bool((inside != inside[0]).any()):
            raise _unable(path, f"its {groups} groups would mix; widen it by a whole factor")
        local.append(ChannelMap(inside[0], size))
    return local[0]


def _unable(path: str, why: str) -> InputError:
    return InputError(f"the layer at {path or 'the top'} cannot be widened: {why}")
