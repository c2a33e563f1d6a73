"""Receptive fields: the part of the input that each position of a tensor depends on, tracked through every operation.

`Fields` observes a pass over tensors without data and applies one rule per operation. An operation without a rule
counts as dependent on its whole input.

Shapes: B batch, C channels, * further axes, which are tracked.
Source: Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks", Distill.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Fields", "Span"]


@dataclass(frozen=True, eq=False)
class Span:
    """Receptive field of the positions of one tensor, along one axis of the input.

    Attributes:
        low, high: position i depends on the pixels from `low[i]` to `high[i]` of an input without edges.
        jump: distance between adjacent positions, in pixels.
        dim: axis of the tensor that holds the positions, counted from the end. None if no position is left: every entry
            depends on the same pixels.
        inner: number of consecutive entries that share a position.
    """

    low: np.ndarray
    high: np.ndarray
    jump: float = 1.0
    dim: int | None = None
    inner: int = 1

    def collapsed(self) -> "Span":
        """Merge all positions into one."""
        return Span(self.low.min(keepdims=True), self.high.max(keepdims=True), self.jump)

    def at(self, *indices: np.ndarray, jump: float) -> "Span":
        """Return positions whose fields are the unions of those at `indices`, extrapolated beyond both ends."""
        inside = [np.clip(index, 0, len(self.low) - 1) for index in indices]
        beyond = [np.rint((index - i) * self.jump) for index, i in zip(indices, inside, strict=True)]
        low = np.min([self.low[i] + b for i, b in zip(inside, beyond, strict=True)], axis=0)
        high = np.max([self.high[i] + b for i, b in zip(inside, beyond, strict=True)], axis=0)
        return replace(self, low=low, high=high, jump=jump)

    def pixels(self, size: int) -> int:
        """Return the largest field of a position in pixels, limited to an axis of `size` if no position is left."""
        low, high = self.low, self.high
        if self.dim is None:
            low, high = np.maximum(low, 0), np.minimum(high, size - 1)
        return int(np.max(high - low)) + 1


Axes = tuple[Span | None, ...]  # the spans of a tensor by input axis; None if it does not depend on that axis
Arguments = dict[str, Any]  # the arguments of an operation by the names in its schema


class Fields(TorchDispatchMode):
    """Dispatch mode that tracks the receptive field of every tensor computed from the input.

    Norms count as elementwise: the dependence through their statistics is ignored.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: tuple[int, ...] = ()
        self._axes: dict[tuple[Any, ...], Axes] = {}
        self._alive: list[Any] = []  # storages kept alive so that no address is reused

    def begin(self, x: Tensor, channel_axis: int = 1) -> None:
        """Start tracking the axes of x (B, C, *) other than batch and channels; (B, *, C) with channel axis -1."""
        axes = [axis - x.dim() for axis in range(1, x.dim()) if axis != channel_axis % x.dim()]
        self.sizes = tuple(x.shape[axis] for axis in axes)
        places = [np.arange(float(size)) for size in self.sizes]
        self._set(x, tuple(Span(at, at, dim=axis) for axis, at in zip(axes, places, strict=True)))

    def of(self, value: Any) -> tuple[tuple[int, ...], bool]:
        """Return the field of a position of `value` in pixels along each axis, and True if it is the whole input."""
        followed = [axes for t in tree_leaves(value) if isinstance(t, Tensor) and any(axes := self._get(t))]
        spans = [[axes[i] for axes in followed] for i in range(len(self.sizes) if followed else 0)]
        pixels = tuple(
            max(span.pixels(size) if span else 0 for span in along)
            for along, size in zip(spans, self.sizes, strict=False)
        )
        placeless = all(span is None or span.dim is None for span in chain.from_iterable(spans))
        return pixels, bool(followed) and placeless and pixels == self.sizes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute the operation and track its outputs."""
        out = func(*args, **(kwargs or {}))
        if self.sizes:
            self._follow(func, _arguments_by_name(func, args, kwargs or {}), out)
        return out

    def _follow(self, func: Any, arguments: Arguments, out: Any) -> None:
        name = func._schema.name.removeprefix("aten::")
        in_place = name.endswith("_")
        name = name.removesuffix("_")
        inputs = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        sources = [(t, self._get(t)) for t in (inputs[1:] if name == "copy" else inputs)]
        if not any(any(axes) for _, axes in sources) or name.endswith("_like") or name.startswith("new_"):
            return
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        rule = RULES.get(name, _unchanged if torch.Tag.pointwise in func.tags else _unknown)
        if outputs:
            arguments = arguments | {"name": name, "out": outputs[0]}
        moved = [tuple(a if a is None or a.dim is None else rule(a, t, arguments) for a in axes) for t, axes in sources]
        joined = tuple(_union([s for axes in moved if (s := axes[i])]) for i in range(len(self.sizes)))
        for tensor in outputs:
            self._set(tensor, tuple(a and _fit_to(a, tensor) for a in joined), in_place)

    def _get(self, tensor: Tensor) -> Axes:
        storage, key = _key(tensor)
        return self._axes.get(key) or self._axes.get((storage._cdata,)) or (None,) * len(self.sizes)

    def _set(self, tensor: Tensor, axes: Axes, in_place: bool = False) -> None:
        storage, key = _key(tensor)
        if in_place and storage.nbytes() != tensor.numel() * tensor.element_size():
            # The tensor is a part of a larger storage. Its place in it is not tracked, so fields are merged.
            overlapping = [axes, *(old for place, old in self._axes.items() if place[0] == storage._cdata)]
            axes = tuple(_union([s.collapsed() for old in overlapping if (s := old[i])]) for i in range(len(axes)))
            self._axes = {place: old for place, old in self._axes.items() if place[0] != storage._cdata}
            key = (storage._cdata,)
        self._axes[key] = axes
        self._alive.append(storage)


def _key(tensor: Tensor) -> tuple[Any, tuple[Any, ...]]:
    """Return the storage and a key of the tensor in it; the key outlives the tensor object."""
    storage = tensor.untyped_storage()
    return storage, (storage._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())


@cache
def _signature(func: Any) -> tuple[list[str], Arguments]:
    arguments = func._schema.arguments
    return [a.name for a in arguments], {a.name: a.default_value for a in arguments if a.has_default_value()}


def _arguments_by_name(func: Any, args: Iterable[Any], kwargs: Arguments) -> Arguments:
    names, defaults = _signature(func)
    return defaults | dict(zip(names, args, strict=False)) | kwargs


def _union(spans: list[Span]) -> Span | None:
    """Return the field of an entry computed from the entries at the same place of several tensors."""
    if len({(span.dim, span.inner) for span in spans}) > 1:
        spans = [span.collapsed() for span in spans]
    if len(spans) < 2:
        return spans[0] if spans else None
    low, high = spans[0].low, spans[0].high
    for span in spans[1:]:
        low, high = np.minimum(low, span.low), np.maximum(high, span.high)
    return replace(spans[0], low=low, high=high, jump=max(span.jump for span in spans))


def _fit_to(span: Span, tensor: Tensor) -> Span:
    """Return the span if the tensor has a matching axis, else merge its positions, also one broadcast to several."""
    count = len(span.low) * span.inner
    fits = span.dim is not None and -span.dim <= tensor.dim() and tensor.shape[span.dim] % count == 0
    return span if fits and (len(span.low) > 1 or tensor.shape[span.dim] == count) else span.collapsed()  # type: ignore[index]


# Rules: (span, input tensor, arguments) -> span of the output. A rule describes one operation along one axis.

Rule = Callable[[Span, Tensor, Arguments], Span]


def _unchanged(span: Span, x: Tensor, arguments: Arguments) -> Span:
    return span


def _unknown(span: Span, x: Tensor, arguments: Arguments) -> Span:
    return span.collapsed()


def _whole_axis(rule: Rule) -> Rule:
    """Restrict a rule to positions that fill an axis of the tensor; merge all others."""
    return lambda span, x, arguments: rule(span, x, arguments) if span.inner == 1 else span.collapsed()


@_whole_axis
def _windows(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply windows of convolution and pooling, with their stride, padding and dilation."""
    convolution = "weight" in arguments
    kernel = arguments["weight"].shape[2:] if convolution else arguments["kernel_size"]
    axis = _spatial(span, kernel)
    if convolution and (axis == -1 or x is not arguments["input"]):  # channels and kernel weights are mixed
        return span.collapsed()
    if axis < 0:
        return span
    stride = arguments["stride"] or kernel
    windows = (kernel, stride, arguments["padding"], arguments.get("dilation", 1))
    size, step, edge, gap = (_along_axis(values, axis) for values in windows)
    if (size, step, edge) == (1, 1, 0):
        return span
    out, reach = np.arange(arguments["out"].shape[span.dim]), gap * (size - 1)
    if arguments.get("transposed"):
        last = (out + edge) // step
        first = np.minimum(-((reach - out - edge) // step), last)
        return span.at(*(np.minimum(first + k, last) for k in range(reach // step + 1)), jump=span.jump / step)
    return span.at(*(out * step - edge + gap * k for k in range(size)), jump=span.jump * step)


def _spatial(span: Span, sizes: Any) -> int:
    """Return the index into `sizes`, which describe the last axes, of the axis of the positions; negative if before."""
    assert span.dim is not None
    return span.dim + len(sizes)


def _along_axis(values: Any, axis: int) -> int:
    if isinstance(values, int):
        return values
    return values[axis] if len(values) > 1 else values[0]


@_whole_axis
def _adaptive(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply the windows of adaptive pooling."""
    if _spatial(span, arguments["output_size"]) < 0:
        return span
    count, size_out = len(span.low), arguments["out"].shape[span.dim]
    first, end = np.arange(size_out) * count // size_out, -(-np.arange(1, size_out + 1) * count // size_out)
    taps = (np.minimum(first + k, end - 1) for k in range(max(end - first)))
    return span.at(*taps, jump=span.jump * count / size_out)


@_whole_axis
def _interpolated(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply nearest or linear interpolation."""
    axis = _spatial(span, arguments["output_size"])
    if axis < 0:
        return span
    count, size_out = len(span.low), arguments["out"].shape[span.dim]
    scale = [arguments[name] for name in ("scales", "scales_d", "scales_h", "scales_w") if name in arguments][axis]
    ratio, out = 1 / scale if scale else count / size_out, np.arange(size_out)
    if arguments.get("align_corners"):
        place = out * (count - 1) / max(size_out - 1, 1)
    elif "align_corners" in arguments:
        place = np.maximum((out + 0.5) * ratio - 0.5, 0)
    else:
        place = np.floor((out + 0.5) * ratio if "exact" in arguments["name"] else out * ratio)
    taps = (np.clip(tap, 0, count - 1).astype(int) for tap in (np.floor(place), np.ceil(place)))
    return span.at(*taps, jump=span.jump * ratio)


@_whole_axis
def _shuffled(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply pixel shuffle (channels become positions) or its inverse."""
    if _spatial(span, (1, 1)) < 0:
        return span.collapsed()
    if "upscale_factor" in arguments:
        factor = arguments["upscale_factor"]
        return span.at(np.arange(len(span.low) * factor) // factor, jump=span.jump / factor)
    factor = arguments["downscale_factor"]
    starts = np.arange(0, len(span.low), factor)
    return span.at(*(starts + k for k in range(factor)), jump=span.jump * factor)


@_whole_axis
def _padded(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply zero, reflection or replication padding; negative padding crops."""
    assert span.dim is not None
    edges = arguments["pad" if "pad" in arguments else "padding"]
    left, right = edges[-2 * span.dim - 2 :][:2] or (0, 0)
    count = len(span.low)
    if arguments["name"] == "constant_pad_nd" or min(left, right) < 0:
        return span.at(np.arange(-left, count + right), jump=span.jump)
    mode: Any = "reflect" if arguments["name"].startswith("reflection") else "edge"
    return span.at(np.pad(np.arange(count), (left, right), mode), jump=span.jump)


@_whole_axis
def _sliced(span: Span, x: Tensor, arguments: Arguments) -> Span:
    if _from_end(arguments["dim"], x) != span.dim:
        return span
    indices = np.arange(len(span.low))[arguments["start"] : arguments["end"] : arguments["step"]]
    return span.at(indices, jump=span.jump * arguments["step"]) if len(indices) else span.collapsed()


def _from_end(dim: int, x: Tensor) -> int:
    return dim if dim < 0 else dim - x.dim()


def _mixed_along_axis(span: Span, x: Tensor, arguments: Arguments) -> Span:
    return span.collapsed() if _from_end(arguments["dim"], x) == span.dim else span


def _reduced(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply a reduction over some axes, or over all."""
    dims = arguments.get("dim")
    if dims is None or dims == []:
        dims = range(x.dim())
    elif isinstance(dims, int):
        dims = [dims]
    away = {_from_end(dim, x) for dim in dims}
    if span.dim is None or span.dim in away:
        return span.collapsed()
    return span if arguments.get("keepdim") else replace(span, dim=span.dim + sum(dim > span.dim for dim in away))


def _viewed(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply a reshape; the positions survive if one axis of the new shape holds them all."""
    assert span.dim is not None
    apart = span.inner * prod(x.shape[x.dim() + span.dim + 1 :])  # entries between adjacent positions
    shape = arguments["out"].shape
    for dim in range(-1, -len(shape) - 1, -1):
        step = prod(shape[len(shape) + dim + 1 :])
        inner, count = apart // step, len(span.low)
        if apart % step == 0 and shape[dim] % (inner * count) == 0 and (count > 1 or shape[dim] == 1):
            return replace(span, dim=dim, inner=inner)
    return span.collapsed()


def _permuted(span: Span, x: Tensor, arguments: Arguments) -> Span:
    order = list(range(-x.dim(), 0))
    if "dims" in arguments:
        order = [_from_end(dim, x) for dim in arguments["dims"]]
    else:
        first, second = (_from_end(arguments.get(name, i), x) for i, name in enumerate(("dim0", "dim1")))
        order[first], order[second] = order[second], order[first]
    assert span.dim is not None
    return replace(span, dim=order.index(span.dim) - x.dim())


def _multiplied(span: Span, x: Tensor, arguments: Arguments) -> Span:
    """Apply a matrix product, which mixes the summed axis."""
    right = arguments["mat2" if "mat2" in arguments else "batch2"]
    left = next(arguments[name] for name in ("mat1", "batch1", "self") if name in arguments)
    mixed = (x is left and span.dim == -1) or (x is right and (span.dim == -2 or x is left))
    return span.collapsed() if mixed else span


def _in_dims(name: str, *dims: int) -> list[str]:
    """Return the names of an operator for several numbers of dimensions."""
    return [name.format(number) for number in dims]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices"), _windows),
    **dict.fromkeys(("avg_pool1d", "avg_pool2d", "avg_pool3d"), _windows),
    **dict.fromkeys(_in_dims("_adaptive_avg_pool{}d", 2, 3), _adaptive),
    **dict.fromkeys(_in_dims("adaptive_max_pool{}d", 2, 3), _adaptive),
    **dict.fromkeys(_in_dims("upsample_nearest{}d", 1, 2, 3), _interpolated),
    **dict.fromkeys(_in_dims("_upsample_nearest_exact{}d", 1, 2, 3), _interpolated),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"), _interpolated),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), _shuffled),
    **dict.fromkeys(_in_dims("reflection_pad{}d", 1, 2, 3), _padded),
    **dict.fromkeys(_in_dims("replication_pad{}d", 1, 2, 3), _padded),
    "constant_pad_nd": _padded,
    "slice": _sliced,
    **dict.fromkeys(("cat", "split", "split_with_sizes", "glu", "cumsum"), _mixed_along_axis),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _mixed_along_axis),
    **dict.fromkeys(
        ("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp"), _reduced
    ),
    **dict.fromkeys(("prod", "norm", "linalg_vector_norm"), _reduced),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze"), _viewed),
    **dict.fromkeys(("permute", "transpose", "t"), _permuted),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm"), _multiplied),
    **dict.fromkeys(("copy", "clone", "detach", "alias", "expand", "_to_copy", "lift_fresh"), _unchanged),
    **dict.fromkeys(("native_batch_norm", "native_group_norm", "native_layer_norm", "_fused_rms_norm"), _unchanged),
    # Elementwise functions without the pointwise tag.
    **dict.fromkeys(("hardswish", "_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward"), _unchanged),
}
