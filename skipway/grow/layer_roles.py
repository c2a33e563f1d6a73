"""Layer roles: what a layer does to the channels of its input, and why it cannot be widened.

A network has one channel axis: 1 for (B, C, *), or -1 for sequences (B, T, C).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from skipway.models.head import Scaled
from skipway.nn.anti_aliasing import BlurPool2d, TrailingAvgPool2d
from skipway.nn.blocks import EfficientChannelAttention, LayerNorm2d, SameConv2d, SameMaxPool2d, Shift, SqueezeExcite
from skipway.nn.chain import Function, is_plain_sequence
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, add, append, concat, multiply
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import Call
from skipway.nn.shortcut_types import Pad, Project
from skipway.nn.skip import Skip

__all__ = ["CONVOLUTIONS", "FIXED", "NORMS", "PASSES", "LayerRoles", "children_of", "is_sequential", "join_path"]

Role = Literal["passes", "mixes", "fixed"]  # keeps its channels, mixes them, or cannot be widened
PASSES: Final = "passes"
MIXES: Final = "mixes"
FIXED: Final = "fixed"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, SameConv2d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_CHANNEL_NORMS = (*_BATCH_NORMS, *_INSTANCE_NORMS, nn.GroupNorm)
_VECTOR_NORMS = (nn.LayerNorm, nn.RMSNorm)
NORMS = (*_CHANNEL_NORMS, *_VECTOR_NORMS)
_ELEMENTWISE_LAYERS = (Shift, Scaled, nn.Identity)
_IMAGE_LAYERS = (SqueezeExcite, SameMaxPool2d, BlurPool2d, TrailingAvgPool2d)
_ELEMENTWISE = {
    *(torch.relu, torch.tanh, torch.sigmoid, F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.hardswish, F.mish),
    *(F.softplus, F.tanh, F.sigmoid),
}
_PLACES = ("activation", "dropout", "pooling", "padding", "upsampling")  # torch modules that keep channels, except:
_MIXING = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU, nn.MultiheadAttention)
_ANY_AXIS = ("activation", "dropout")
_JOINS = (add, multiply, append, concat)
# Kinds of layers that are often in the way -> the reason, and the way out. The first that matches counts.
_REASONS: tuple[tuple[Any, str], ...] = (
    (
        (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer),
        "splits its channels into heads. Build a wider one, or widen the layers between attention layers only",
    ),
    (nn.RNNBase, "has gates and a hidden state of its own width. Build a wider one"),
    (nn.modules.conv._ConvTransposeNd, "is a transposed convolution. Use nn.Upsample and a convolution"),
    (
        (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d, nn.GLU),
        "computes each output from several channels. Use an elementwise activation inside, or place it last",
    ),
    (
        (nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Unflatten, nn.Flatten, nn.Fold, nn.Unfold),
        "moves channels to other places. Widen the layers before and after it separately",
    ),
    (EfficientChannelAttention, 'weighs each channel by its neighbors. Use attention="se"'),
    (nn.LocalResponseNorm, "normalizes over neighboring channels. Use nn.BatchNorm2d"),
    ((nn.Embedding, nn.EmbeddingBag), "is a table of indices. Build it with a larger embedding_dim"),
    (Function, "may mix channels. Use a module of torch.nn, such as nn.ReLU or nn.Flatten"),
)


class LayerRoles:
    """Roles of the layers of a network, from the shapes of a call of each.

    Args:
        calls: input and output shapes of each layer.

    Attributes:
        axis: axis of the channels, 1 or -1.
    """

    def __init__(self, calls: Mapping[nn.Module, Call]):
        self.calls = calls
        self.axis = _channel_axis(calls)

    def role(self, path: str, layer: nn.Module | None) -> Role:
        """Return the effect of a layer on its input channels."""
        if layer is not None and _is_computed(layer):
            return FIXED
        if layer is None or self.is_pass_through(path, layer):
            return PASSES
        if is_sequential(layer):
            ahead = self._is_ahead(layer) if isinstance(layer, Project) else True
            return (self.role_of_next(path, children_of(layer)) or PASSES) if ahead else FIXED
        if isinstance(layer, Dense):
            return self.role(join_path(path, "linear"), layer.linear)
        if type(layer) is nn.Linear:
            return MIXES if self.axis == -1 or self._rank(layer) == 2 else FIXED
        if type(layer) in CONVOLUTIONS:
            return MIXES if self.axis == 1 or self._rank(layer) == 2 else FIXED
        if isinstance(layer, Pad):
            return MIXES if self._is_ahead(layer) else FIXED
        if isinstance(layer, Skip | Parallel | Coupling):
            return self._role_of_join(path, layer)
        return FIXED

    def _role_of_join(self, path: str, layer: nn.Module) -> Role:
        inner = {name: self.role(join_path(path, name), part) for name, part in _parts(layer)}
        if FIXED in inner.values() or self._refused_join(layer):
            return FIXED
        if isinstance(layer, Coupling):
            return PASSES if layer.shortcuts is None else MIXES
        if isinstance(layer, Parallel):
            return PASSES if PASSES in inner.values() else MIXES
        return FIXED if inner["after"] != PASSES else inner["shortcut"]

    def _refused_join(self, layer: Any) -> str:
        """Return why a join cannot be widened, or ""."""
        if isinstance(layer, Coupling):
            return "" if self.axis == 1 else "splits axis 1, which is not the channel axis. Use Skips"
        if layer.join not in _JOINS and not (isinstance(layer, Skip) and isinstance(layer.join, Scale | Gate)):
            return 'has a join that may mix channels. Use "add", "concat", "append" or "multiply"'
        if len(self.input_shapes(layer)) != 1:
            return "has several inputs. Widen its branches before you join them"
        dims = [part.dim for part in (layer, layer.join) if getattr(part, "dim", None) is not None]
        if not all(self._is_channel_axis(layer, dim) for dim in dims) and layer.join not in (add, multiply):
            return "joins along another axis than the channels. Widen its parts separately"
        return ""

    def role_of_next(self, path: str, layers: Sequence[tuple[str, nn.Module]]) -> Role | None:
        """Return the role of the first of `layers` that does not just pass its channels."""
        roles = (self.role(join_path(path, name), layer) for name, layer in layers)
        return next((role for role in roles if role != PASSES), None)

    def is_pass_through(self, path: str, layer: nn.Module) -> bool:
        """Return True for a layer whose output channels depend on the input channels of the same number only."""
        first = self.axis == 1
        if isinstance(layer, nn.Flatten):
            return first and layer.start_dim == 1 and layer.end_dim == -1
        if isinstance(layer, LayerNorm2d):
            return first and self._rank(layer) == 4
        if type(layer) in _VECTOR_NORMS:
            return len(layer.normalized_shape) == 1 and (self.axis == -1 or self._rank(layer) == 2)  # type: ignore[arg-type]
        if isinstance(layer, Function):
            return layer.function in _ELEMENTWISE
        if type(layer) in _ELEMENTWISE_LAYERS:
            return True
        if type(layer) in _CHANNEL_NORMS or (isinstance(layer, nn.PReLU) and layer.num_parameters > 1):
            return first or self._rank(layer) == 2
        if type(layer) in _IMAGE_LAYERS or _is_depthwise(path, layer):
            return first
        place = type(layer).__module__.removeprefix("torch.nn.modules.")
        if place not in _PLACES or isinstance(layer, _MIXING) or not (first or place in _ANY_AXIS):
            return False
        axes = re.search(r"([123])d$", type(layer).__name__)  # without a batch axis, channels are a spatial axis
        return axes is None or layer not in self.calls or self._rank(layer) == 2 + int(axes[1])

    def blocker(self, path: str, layer: nn.Module | None) -> tuple[str, str]:
        """Return the path of the innermost layer that makes `layer` fixed, and a sentence with the reason and a fix."""
        if layer is not None and not _is_computed(layer):
            for name, part in _parts(layer):
                if self.role(join_path(path, name), part) == FIXED:
                    return self.blocker(join_path(path, name), part)
        return path, f"{_name_of(layer)} {self._reason(layer)}."

    def _reason(self, layer: Any) -> str:
        if _is_computed(layer):
            return (
                "computes its weight from other tensors (weight_norm, spectral_norm or pruning). Remove the "
                "parametrization first"
            )
        if isinstance(layer, Skip | Parallel | Coupling):
            return self._refused_join(layer) or "has a layer after the join that mixes channels. Put it after the Skip"
        if type(layer) in _VECTOR_NORMS and len(layer.normalized_shape) > 1:
            return "normalizes over several axes. Use nn.BatchNorm2d or nn.GroupNorm"
        if isinstance(layer, Pad | Project) or type(layer) in (nn.Linear, *NORMS, *CONVOLUTIONS):
            shape = self._input_shape(layer)
            expected = "1, as in (B, C, *)" if self.axis == 1 else "-1, as in (B, T, C)"
            return f"has other channels of its input {shape} than axis {expected}. Use one channel axis in all layers"
        for kinds, reason in _REASONS:
            if isinstance(layer, kinds):
                return reason
        if any(True for _ in layer.children()) and not type(layer).__module__.startswith(("torch.", "skipway.")):
            return "runs its layers in an unknown order. Build it from Chain and Skip"
        return "uses channels in an unknown way. Replace it by layers of torch.nn"

    def input_shapes(self, layer: nn.Module) -> tuple[Any, ...]:
        """Return the input shapes of a layer; for a layer in a new block, the shape of a table row."""
        return self.calls[layer].inputs if layer in self.calls else ((1, 1),)

    def spatial_sizes(self, layer: nn.Module) -> tuple[int, ...]:
        """Return the sizes of the axes of the input after the channels (B, C, *)."""
        return self._input_shape(layer)[2:]

    def output_width(self, layer: nn.Module) -> int | None:
        """Return the number of output channels of a layer, or None if it is unknown."""
        shape = self.calls[layer].output if layer in self.calls else ()
        width = shape[self.axis] if len(shape) > 1 else None
        return width if isinstance(width, int) else None

    def _input_shape(self, layer: nn.Module) -> tuple[int, ...]:
        return next(iter(self.input_shapes(layer)), ())

    def _rank(self, layer: nn.Module) -> int:
        return len(self._input_shape(layer))

    def _is_ahead(self, layer: Pad | Project) -> bool:
        """Return True if a shortcut has its channels on the axis of the network; a projection moves them to axis 1."""
        rank = self._rank(layer)
        return rank == 2 or (self._is_channel_axis(layer, layer.dim) and (self.axis == 1 or isinstance(layer, Pad)))

    def _is_channel_axis(self, layer: nn.Module, dim: int) -> bool:
        rank = max(self._rank(layer), 2)
        return rank == 2 or dim % rank == self.axis % rank


def _name_of(layer: nn.Module | None) -> str:
    if isinstance(layer, Function):
        return f"the function {getattr(layer.function, '__name__', repr(layer.function))}"
    return type(layer).__name__


def is_sequential(layer: nn.Module) -> bool:
    """Return True if `layer` runs its layers in sequence."""
    return is_plain_sequence(layer) or isinstance(layer, Project | Reversible)


def children_of(layer: Any) -> list[tuple[str, nn.Module]]:
    """Return the names and layers of a sequence, in call order."""
    return layer.row() if isinstance(layer, Project) else list(layer._modules.items())


def join_path(path: str, name: str) -> str:
    """Join two parts of a path; the first may be empty."""
    return f"{path}.{name}".lstrip(".")


def _parts(layer: Any) -> Iterable[tuple[str, nn.Module | None]]:
    """Return the parts of a layer that may fix its channels."""
    if isinstance(layer, Skip):
        return [(name, getattr(layer, name)) for name in ("body", "shortcut", "after")]
    if isinstance(layer, Parallel):
        return [(f"branches.{name}", part) for name, part in children_of(layer.branches)]
    if isinstance(layer, Coupling):
        return [("f", layer.f), ("g", layer.g)]
    if isinstance(layer, Dense):
        return [("linear", layer.linear)]
    return children_of(layer) if is_sequential(layer) else []


def _channel_axis(calls: Mapping[nn.Module, Call]) -> Literal[1, -1]:
    """Return -1 if layers read the last axis of inputs with 3 or more axes, and none reads axis 1; otherwise 1."""
    inside = {layer for project in calls if isinstance(project, Project) for layer in project.modules()}
    tall = [layer for layer, call in calls.items() if layer not in inside and call.inputs and len(call.inputs[0]) > 2]
    first = any(isinstance(layer, (*CONVOLUTIONS, *_CHANNEL_NORMS, nn.Flatten)) for layer in tall)
    last = any(isinstance(layer, (nn.Linear, *_VECTOR_NORMS)) for layer in tall)
    return -1 if last and not first else 1


def _is_computed(layer: nn.Module) -> bool:
    """Return True if torch computes a weight of `layer` from other tensors."""
    hooks = layer._forward_pre_hooks.values()
    return parametrize.is_parametrized(layer) or any(
        type(hook).__module__.startswith("torch.nn.utils") for hook in hooks
    )


def _is_depthwise(path: str, layer: nn.Module) -> bool:
    """Return True for a depthwise convolution; the name counts, because other groups of 1 may widen."""
    is_named = path.rpartition(".")[2] == "depthwise"
    return is_named and type(layer) in CONVOLUTIONS and layer.in_channels == layer.out_channels == layer.groups
