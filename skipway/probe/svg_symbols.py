"""Symbols of layers, joins and shortcuts in a diagram: labeled boxes, bars, circles and arcs."""

from itertools import chain
from typing import Any

from torch import nn

from skipway.nn.blocks import EfficientChannelAttention, SqueezeExcite
from skipway.nn.chain import Function
from skipway.nn.joins import Gate, Scale, add, append, concat, multiply
from skipway.nn.shortcut_types import Pad, Project
from skipway.nn.skip import Skip
from skipway.probe.svg_text import Box, Join, Piece, Sliver, Way, fit_text

__all__ = ["around", "parameter_count", "join_of", "kind_of", "layer_of", "open_sizes", "way_of"]

_ACTIVATIONS = "relu", "gelu", "silu", "elu", "selu", "tanh", "sigmoid", "leaky_relu", "hardswish", "softmax"
_NORMS = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm
_SIGNS = (add, "+"), (multiply, "×"), (concat, "‖"), (append, "‖"), (Gate, "g"), (Scale, "s")


def open_sizes(module: nn.Module) -> bool:
    """Return True if some parameters of `module` have an uninferred size."""
    return any(isinstance(p, nn.UninitializedParameter) for p in module.parameters())


def parameter_count(*modules: nn.Module) -> int:
    """Count the parameters of several modules, each once, without those of uninferred size."""
    parameters = set(chain.from_iterable(module.parameters() for module in modules))
    return sum(p.numel() for p in parameters if not isinstance(p, nn.UninitializedParameter))


def kind_of(module: nn.Module) -> str:
    """Return the class name of a module, shortened and escaped."""
    return fit_text(type(module).__name__, 18)


def way_of(skip: Skip) -> Way:
    """Return the arc of a Skip."""
    if skip.open_shortcut is not None:
        return Way("projected", fit_text(skip.open_shortcut))
    way = around(skip.shortcut)
    return Way("dense") if way.kind == "identity" and skip.join in (concat, append) else way


def around(shortcut: nn.Module | None) -> Way:
    """Return the arc of a shortcut, with a word for its operation."""
    if shortcut is None or isinstance(shortcut, nn.Identity):
        return Way("identity")
    if isinstance(shortcut, Project):
        return Way("projected", "project" if shortcut.pool is None else "pool, project")
    if isinstance(shortcut, Pad):
        word = "pad"
    else:
        word = "pool" if _is_pool(shortcut) else kind_of(shortcut)
    return Way("projected" if parameter_count(shortcut) else "changed", word)


def join_of(join: Any) -> Join:
    """Return the circle of a join."""
    inner = join.function if isinstance(join, Function) else join
    sign = next((sign for known, sign in _SIGNS if inner is known or type(inner) is known), "f")
    name = type(inner).__name__ if isinstance(inner, nn.Module) else getattr(inner, "__name__", "function")
    return Join(sign, fit_text(name))


def _is_pool(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.pooling" or isinstance(module, nn.MaxPool2d)


def layer_of(module: nn.Module, tip: str) -> Piece:
    """Return the box or the sliver of one layer."""
    name = getattr(module.function, "__name__", "") if isinstance(module, Function) else ""
    activation = type(module).__module__ == "torch.nn.modules.activation" and not any(True for _ in module.children())
    if isinstance(module, _NORMS):
        return Sliver("norm", tip)
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return Sliver("drop", tip)
    if activation or name in _ACTIVATIONS:
        return Sliver("act", tip)
    if isinstance(module, nn.modules.conv._ConvNd):
        size = ("up " if module.transposed else "") + _window(module.kernel_size, module.stride)
        apart = f" d{module.dilation[0]}" if max(module.dilation) > 1 else ""
        return Box("weights", (size + apart, f"{module.out_channels}{_groups(module)}"), tip)
    if isinstance(module, nn.Linear):
        return Box("weights", ("linear", str(module.out_features)), tip)
    if _is_pool(module):
        class_name = type(module).__name__
        kind = next((word for word in ("Avg", "Max") if word in class_name), "pool").lower()
        return Box("pool", (kind, _pooled(module)), tip)
    if isinstance(module, SqueezeExcite | EfficientChannelAttention):
        return Box("attention", ("SE" if isinstance(module, SqueezeExcite) else "ECA",), tip)
    return Box("other", (fit_text(name, 16) if name else kind_of(module),), tip)


def _groups(layer: nn.modules.conv._ConvNd) -> str:
    return f" g{layer.groups}" if layer.groups > 1 else ""


def _pooled(pool: Any) -> str:
    """Return the window of a pooling layer, or its output size."""
    axes = next((n for n in (1, 2, 3) if type(pool).__name__.endswith(f"{n}d")), 2)
    if hasattr(pool, "output_size"):
        sizes = _each(pool.output_size, axes)
        return "all" if set(sizes) == {1} else "to " + "×".join(map(str, sizes))
    kernel = getattr(pool, "kernel_size", None)
    return _window(_each(kernel, axes), _each(getattr(pool, "stride", None) or kernel, axes)) if kernel else "parts"


def _each(size: Any, axes: int) -> tuple[Any, ...]:
    return size if isinstance(size, tuple) else (size,) * axes


def _window(kernel: tuple[Any, ...], stride: tuple[Any, ...]) -> str:
    """Format a kernel with its stride, such as 3×3/2."""
    window = "×".join(map(str, kernel))
    if set(stride) == {1}:
        return window
    steps = stride if len(set(stride)) > 1 else stride[:1]
    return f"{window}/{'×'.join(map(str, steps))}"
