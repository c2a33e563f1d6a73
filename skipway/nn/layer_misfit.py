"""Describe why a layer cannot process its inputs: what it expects, what it got, and the fix.

Only what was checked on the input is reported.

Shapes: B batch, C channels, T positions of a sequence, * any further axes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from skipway.errors import reason_of

__all__ = ["cannot_process", "find_misfit"]


class _Misfit(NamedTuple):
    expected: str
    fix: str
    got: str = ""  # the shape of the input by default


def find_misfit(layer: nn.Module, inputs: Sequence[Any]) -> str | None:
    """Return what does not fit between a well-known layer of torch and its inputs, or None if nothing was found.

    >>> find_misfit(nn.Linear(4, 2), [torch.ones(1, 3)])
    'expected (*, 4), got (1, 3). Set in_features to the last size, or infer it (None, nn.LazyLinear).'
    """
    misfit = _misfit(layer, inputs[0]) if inputs else None
    if misfit is None:
        return None
    return f"expected {misfit.expected}, got {misfit.got or _shown(inputs[0])}. {misfit.fix}"


def cannot_process(inputs: Sequence[Any], error: Exception) -> str:
    """Return a one-line message for an error of torch whose cause was not found."""
    got = ", ".join(_shown(x) for x in inputs) or "no input"
    reason = reason_of(error).replace("FakeTensor", "Tensor")
    return f"cannot process {got}: {reason}. Change this layer or the one before it."


def _shown(x: Any) -> str:
    if isinstance(x, Tensor):
        return str(tuple(x.shape))
    if isinstance(x, list | tuple):
        return f"({', '.join(_shown(part) for part in x)})"
    return type(x).__name__


def _misfit(layer: nn.Module, x: Any) -> _Misfit | None:
    check = next((check for kinds, check in _CHECKS if isinstance(layer, kinds)), None)
    if check is None:
        return None
    if not isinstance(x, Tensor):
        return _Misfit("a tensor", _SELECTION.get(type(x), "Convert it first: torch.as_tensor(x)."))
    parameter = next((p for p in layer.parameters() if not isinstance(p, nn.UninitializedParameter)), None)
    if parameter is not None and parameter.device != x.device:
        device = str(parameter.device)
        return _Misfit(f"an input on {device}", f'Move the input: x.to("{device}").', str(x.device))
    dtype = None if parameter is None or isinstance(layer, nn.Embedding) else parameter.dtype
    if dtype not in (None, x.dtype) and not torch.is_autocast_enabled(x.device.type):
        return _Misfit(f"an input of {dtype}", f"Convert the input: x.to({dtype}).", str(x.dtype))
    return check(layer, x)


# Kind of a value that is no tensor -> the fix.
_SELECTION: dict[type[Any], str] = {
    tuple: "Select it by a layer before: lambda outputs: outputs[0].",
    list: "Select it by a layer before: lambda outputs: outputs[0].",
    dict: 'Select it by a layer before: lambda outputs: outputs["name"].',
    type(None): "Return a tensor from the layer before.",
}


def _embedding(layer: nn.Embedding, x: Tensor) -> _Misfit | None:
    if x.dtype not in (torch.int32, torch.int64):
        return _Misfit("indices of torch.int64", "Convert the input: x.long().", str(x.dtype))
    if type(x) is not Tensor or x.is_meta or not x.numel():
        return None
    low, high, count = int(x.min()), int(x.max()), len(layer.weight)
    if 0 <= low and high < count:
        return None
    return _Misfit(f"indices from 0 to {count - 1}", "Set num_embeddings to the number of indices.", f"{low} to {high}")


def _linear(layer: nn.Linear, x: Tensor) -> _Misfit | None:
    if x.shape[-1:] == (layer.in_features,):
        return None
    fix = "Set in_features to the last size, or infer it (None, nn.LazyLinear)."
    return _Misfit(f"(*, {layer.in_features})", fix)


_SPACES = {1: "L", 2: "H, W", 3: "D, H, W"}


def _transposed(layer: Any, x: Tensor) -> _Misfit | None:
    dims = len(layer.kernel_size)
    if x.dim() in (dims + 1, dims + 2) and x.shape[-dims - 1] == layer.in_channels:
        return None
    return _Misfit(f"(B, {layer.in_channels}, {_SPACES[dims]})", "Set in_channels to that of the input.")


def _pool(layer: Any, x: Tensor) -> _Misfit | None:
    dims = int(type(layer).__name__[-2])
    sizes = getattr(layer, "kernel_size", 1)
    pads = getattr(layer, "padding", 0)
    kernel = sizes if isinstance(sizes, tuple) else (sizes,) * dims
    padding = pads if isinstance(pads, tuple) else (pads,) * dims
    least = [size - 2 * pad for size, pad in zip(kernel, padding, strict=True)]
    if x.dim() in (dims + 1, dims + 2) and all(size >= k for size, k in zip(x.shape[-dims:], least, strict=True)):
        return None
    space = _SPACES[dims]
    has_axes = x.dim() in (dims + 1, dims + 2)
    fix = f"Use larger inputs, or a smaller window than {kernel}." if has_axes else "Keep these axes before it."
    return _Misfit(f"(B, C, {space}) with {space} at least the window", fix)


def _instance_norm(layer: Any, x: Tensor) -> _Misfit | None:
    dims = int(type(layer).__name__[-2])
    if x.dim() in (dims + 1, dims + 2) and x.shape[-dims - 1] == layer.num_features:
        return None
    return _Misfit(f"(B, {layer.num_features}, {_SPACES[dims]})", "Set num_features to the size of axis 1.")


def _cell(layer: Any, x: Tensor) -> _Misfit | None:
    if x.dim() in (1, 2) and x.shape[-1] == layer.input_size:
        return None
    return _Misfit(f"(B, {layer.input_size})", "Set input_size to the last size.")


def _prelu(layer: nn.PReLU, x: Tensor) -> _Misfit | None:
    if layer.num_parameters in (1, *x.shape[1:2]):
        return None
    return _Misfit(f"{layer.num_parameters} channels on axis 1", "Set num_parameters to that size.")


def _bilinear(layer: nn.Bilinear, x: Tensor) -> _Misfit | None:
    if x.shape[-1:] == (layer.in1_features,):
        return None
    return _Misfit(f"a first input (*, {layer.in1_features})", "Set in1_features to the last size.")


def _convolution(layer: Any, x: Tensor) -> _Misfit | None:
    dims = len(layer.kernel_size)
    if layer.padding == "same":
        padding = (max((*x.shape, 0)),) * dims
    else:
        padding = (0,) * dims if layer.padding == "valid" else layer.padding
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(layer.dilation, layer.kernel_size, padding, strict=True)]
    has_channels = x.dim() in (dims + 1, dims + 2) and x.shape[-dims - 1] == layer.in_channels
    if has_channels and all(size >= least for size, least in zip(x.shape[-dims:], reach, strict=True)):
        return None
    space = _SPACES[dims]
    return _Misfit(
        f"(B, {layer.in_channels}, {space}) with {space} at least the size of the kernel after padding",
        f"Set in_channels to that of the input, or change the kernel {layer.kernel_size}, stride or padding.",
    )


def _batch_norm(layer: Any, x: Tensor) -> _Misfit | None:
    ranks = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
    rank = next((rank for kind, rank in ranks.items() if isinstance(layer, kind)), range(2, 6))
    if x.dim() in rank and x.shape[1] == layer.num_features:
        return None
    if x.dim() == min(rank) - 1 and x.shape[0] == layer.num_features:
        return _Misfit(f"(B, {layer.num_features}, *)", "Add the batch axis: x[None].")
    axes = "" if x.dim() in rank else f" of {' or '.join(map(str, rank))} axes"
    fix = "Set num_features to that size, or use a norm for that shape."
    return _Misfit(f"{layer.num_features} channels on axis 1{axes}", fix)


def _group_norm(layer: nn.GroupNorm, x: Tensor) -> _Misfit | None:
    if x.shape[1:2] == (layer.num_channels,):
        return None
    return _Misfit(f"{layer.num_channels} channels on axis 1", "Set num_channels to that size.")


def _layer_norm(layer: Any, x: Tensor) -> _Misfit | None:
    sizes = tuple(layer.normalized_shape)
    if tuple(x.shape[-len(sizes) :]) == sizes:
        return None
    return _Misfit(f"(*, {', '.join(map(str, sizes))})", "Set normalized_shape to the last sizes of the input.")


def _sequence(layer: Any, x: Tensor) -> _Misfit | None:
    name = "input_size" if isinstance(layer, nn.RNNBase) else "embed_dim"
    size = getattr(layer, name)
    if x.dim() in (2, 3) and x.shape[-1] == size:
        return None
    return _Misfit(f"({'B, T' if layer.batch_first else 'T, B'}, {size})", f"Set {name} to the last size.")


# Kinds of layers -> the check of their first input. The first that matches counts.
_CHECKS: tuple[tuple[Any, Callable[..., _Misfit | None]], ...] = (
    (nn.Linear, _linear),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    (nn.modules.conv._ConvTransposeNd, _transposed),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _pool),
    (nn.modules.instancenorm._InstanceNorm, _instance_norm),
    (nn.modules.rnn.RNNCellBase, _cell),
    (nn.PReLU, _prelu),
    (nn.Bilinear, _bilinear),
    (nn.modules.batchnorm._BatchNorm, _batch_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    ((nn.RNNBase, nn.MultiheadAttention), _sequence),
    (nn.Embedding, _embedding),
)
