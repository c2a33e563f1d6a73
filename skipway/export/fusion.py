"""Layers of a network that only predicts: fewer, wider steps, with the same outputs up to the rounding of their type.

A batch norm is a convolution's scale and bias once its statistics stand; ReLU and the addition of a join are done
while the convolution's output is at hand; in int8 pictures travel between convolutions as uint8 codes.

Shapes: those of the layers that are replaced.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skipway.errors import InputError
from skipway.export.quantization import Observer, QuantizedTensor, quantize
from skipway.kernels.kernel import has_hooks
from skipway.nn.blocks import SameConv2d, pair
from skipway.nn.chain import Chain, is_plain_sequence
from skipway.nn.joins import add
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import NamedErrors, named_errors
from skipway.nn.shortcuts import Project
from skipway.nn.skip import Parallel, Skip

__all__ = ["Convolution", "FusedSkip", "folded", "in_turn", "numbers", "plan_codes"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation


class Convolution(nn.Module):
    """relu(conv2d(x) + shortcut): a convolution with what follows it, in float32, bfloat16 or int8.

    Its weights stay in float32; they are packed for the processor when it is first used.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        bias = torch.zeros(conv.out_channels, device=conv.weight.device) if conv.bias is None else conv.bias
        self.weight = nn.Parameter(conv.weight.detach().float(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().float(), requires_grad=False)
        assert not isinstance(conv.padding, str)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups, self.relu, self.dtype = conv.groups, False, torch.float32
        self.gives_codes = False
        self.ranges: tuple[Observer, Observer] | None = None  # of the input and of the output, while they are watched
        self.codes: tuple[tuple[float, int], tuple[float, int]] | None = None  # theirs, once it computes in int8
        self._packed: tuple[Any, list[Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None = None, spent: bool = False
    ) -> Tensor | QuantizedTensor:
        """(B, C, H, W), and (B, C', H', W') to add -> (B, C', H', W').

        `spent` says that nobody needs `shortcut` any more: its memory may be that of the output.
        """
        if self.codes is not None and type(_values(x)) is Tensor and not _values(x).is_meta:
            return self._in_codes(x, shortcut, spent)
        x, shortcut = numbers(x).to(self.dtype), None if shortcut is None else numbers(shortcut).to(self.dtype)
        assert isinstance(x, Tensor) and not isinstance(shortcut, QuantizedTensor)
        y = self._fused(x, shortcut, spent) if _has_onednn(x) else self._plain(x, shortcut)
        if self.ranges is not None:
            self.ranges[0].observe(x)
            self.ranges[1].observe(y)
        return y

    def with_relu(self) -> "Convolution":
        """Another one of the same weights, with ReLU at the end."""
        twin = copy.copy(self)
        twin.relu = True
        return twin

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(*, C, H, W) -> (*, C', H', W')."""
        kernel = self.weight.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        sizes = zip(shape[-2:], reach, self.padding, self.stride, strict=True)
        return *shape[:-3], len(self.weight), *((size + 2 * p - r) // s + 1 for size, r, p, s in sizes)

    def watch(self, batches: int) -> None:
        """From now on what goes in and out in so many batches is taken notice of."""
        self.ranges = Observer(batches), Observer(batches)

    def quantise(self) -> None:
        """From now on it computes in int8, with codes for what was seen; nothing where it was not used."""
        if self.ranges is not None and self.ranges[0].sample:
            self.codes = self.ranges[0].codes(), self.ranges[1].codes()
        self.ranges = None

    def extra_repr(self) -> str:
        """Its sizes, and how it computes."""
        out, into, *kernel = self.weight.shape
        kind = "int8" if self.codes is not None else str(self.dtype).removeprefix("torch.")
        return f"{into * self.groups}, {out}, {'x'.join(map(str, kernel))}, {kind}{', relu' * self.relu}"

    def __getstate__(self) -> dict[str, Any]:  # what is packed cannot be copied, and is soon made again
        return self.__dict__ | {"_packed": None}

    def _apply(self, fn: Any, recurse: bool = True) -> "Convolution":
        self._packed = None  # it would stay where the weights no longer are
        return super()._apply(fn, recurse)

    def _pack(self, kind: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What `make` makes of the weights, made anew where they were changed."""
        own = self.weight, self.bias
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta or t.is_inference() for t in own):
            return make()  # these change in ways that cannot be seen, or have no numbers
        state = kind, *((id(t), t._version) for t in own)
        if self._packed is None or self._packed[0] != state:
            self._packed = state, make(), own  # which keeps them, and so their ids
        return self._packed[1]

    def _plain(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        def cast() -> list[Tensor]:
            return [self.weight.to(x.dtype, memory_format=torch.channels_last), self.bias.to(x.dtype)]

        weight, bias = cast() if torch.compiler.is_compiling() else self._pack("plain", cast)
        y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if shortcut is None else y + shortcut
        return y.relu_() if self.relu else y

    def _fused(self, x: Tensor, shortcut: Tensor | None, spent: bool) -> Tensor:
        where = self.padding, self.stride, self.dilation, self.groups

        def packed() -> list[Tensor]:
            weight = self.weight.to(x.dtype, memory_format=torch.channels_last)
            return [torch.ops.mkldnn._reorder_convolution_weight(weight, *where, list(x.shape)), self.bias.to(x.dtype)]

        how = *self._pack("onednn", packed), *where
        relu = "relu" if self.relu else None
        if shortcut is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *how, relu or "none", [], "")
        if spent and shortcut.is_contiguous(memory_format=torch.channels_last):
            return torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, x, *how, "add", 1.0, relu, [], "")
        return torch.ops.mkldnn._convolution_pointwise.binary(x, shortcut, *how, "add", 1.0, relu, [], "")

    def _in_codes(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None, spent: bool
    ) -> Tensor | QuantizedTensor:
        assert self.codes is not None
        _need_pictures_on_a_cpu(_values(x))
        x = x if isinstance(x, QuantizedTensor) else quantize(x, *self.codes[0])
        weight, scales, zeros = self._pack("int8", partial(self._int8_weights, x))
        ops, relu = torch.ops.onednn, "relu" if self.relu else "none"
        given = x.values, x.scale, x.zero, weight, scales, zeros
        where = self.bias, self.stride, self.padding, self.dilation, self.groups
        at_once = self.gives_codes and not isinstance(shortcut, Tensor)  # whose codes would have another scale
        scale, zero, dtype = (*self.codes[1], torch.uint8) if at_once else (1.0, 0, self.dtype)
        if shortcut is None:
            y = ops.qconv2d_pointwise(*given, *where, scale, zero, dtype, relu, [], "")
        else:  # which the op adds to in place
            other = shortcut if isinstance(shortcut, QuantizedTensor) else QuantizedTensor(shortcut, 1.0, 0)
            values = other.values.to(dtype, copy=not spent, memory_format=torch.channels_last)
            added = *given, values, *where, scale, zero, dtype, other.scale, other.zero
            y = ops.qconv2d_pointwise.binary(*added, "sum", 1.0, relu, [], "")
        if self.gives_codes:
            return QuantizedTensor(y, scale, zero) if at_once else quantize(y, *self.codes[1])
        return y

    def _int8_weights(self, x: QuantizedTensor) -> list[Tensor]:
        """Weights as integers, the scale of each output channel, and zeros.

        From -64 to 64: processors without VNNI add products in pairs of 16 bits, which twice 255 * 127 would exceed.
        """
        scales = self.weight.abs().amax((1, 2, 3)).clamp_(min=1e-12) / 64
        whole = (self.weight / scales.view(-1, 1, 1, 1)).round_().to(torch.int8)
        where = list(self.stride), list(self.padding), list(self.dilation), self.groups, list(x.values.shape)
        packed = torch.ops.onednn.qconv_prepack(whole, scales, x.scale, x.zero, *where)
        return [packed, scales, torch.zeros(len(whole), dtype=torch.int64)]


class FusedSkip(NamedErrors):
    """last(body(x), shortcut(x)): the last convolution of the body does the join, and the ReLU after it."""

    shortcut: nn.Module | None

    def __init__(self, body: Chain, last: Convolution, shortcut: nn.Module | None):
        super().__init__()
        self.body, self.last = body, last
        self.register_module("shortcut", shortcut)

    @named_errors
    def forward(self, x: Tensor | QuantizedTensor, spent: bool = False) -> Tensor | QuantizedTensor:
        """(B, C, H, W) -> (B, C', H', W'); `spent` says that nobody needs x any more: its memory may be used."""
        shortcut = x
        if self.shortcut is not None:
            shortcut, spent = in_turn([self.shortcut], x), _makes(self.shortcut)
        branch = self.body(x)
        if not self.last.gives_codes:
            shortcut = numbers(shortcut)
        if _values(shortcut).shape != (shape := self.last.output_shape(_values(branch).shape)):
            add(torch.empty(shape, device="meta"), _values(shortcut).to("meta"))  # which says what does not fit
        return self.last(branch, shortcut, spent and _memory(shortcut) != _memory(branch))


def numbers(x: Any) -> Any:
    """Codes as the numbers that they stand for; anything else as it is."""
    return x.numbers() if isinstance(x, QuantizedTensor) else x


def in_turn(layers: Sequence[nn.Module], x: Any) -> Any:
    """What `layers` make of x one after the other; those that know nothing of codes are given numbers."""
    before: nn.Module | None = None
    for layer in layers:
        if isinstance(x, QuantizedTensor) and _pools(layer):
            x = x.pooled(cast(nn.MaxPool2d, layer))
        elif isinstance(layer, FusedSkip):
            x = layer(x, before is not None and _makes(before) and not _seen_into(layer))
        else:
            x = layer(x if _knows_codes(layer) else numbers(x))
        before = layer
    return x


def folded(root: nn.Module) -> nn.Module:
    """A network like `root`, in evaluation mode, whose norms, ReLUs and joins are done by the layers before them.

    What is not a row of layers, a Skip, a Project, a Parallel or a Coupling stays as it is, for what it does with its
    layers is not known; so does what somebody watches by hooks. `root` is not changed; layers that stay are its own.
    """
    if has_hooks(root):
        return root
    if is_plain_sequence(root) or type(root) is Project:
        layers = root.row() if isinstance(root, Project) else _row(root)
        row = _with(root if isinstance(root, Chain) else Chain(), dict(_merged(layers)))
        row.forward_impl = in_turn
        return row
    if type(root) is Skip:
        return _folded_skip(root)
    if type(root) is Parallel:
        return _with(root, {**root._modules, "branches": _each(root.branches)})
    if type(root) is nn.Conv2d and root.padding_mode == "zeros" and not isinstance(root.padding, str):
        return Convolution(root)
    return _each(root) if isinstance(root, Reversible | Coupling) else root


def _folded_skip(skip: Skip) -> nn.Module:
    parts = {name: None if child is None else folded(child) for name, child in skip._modules.items()}
    after, layers = skip.after, dict(_row(parts["body"]))
    last = layers.pop(next(reversed(layers))) if layers else None
    relu = type(after) is nn.ReLU and not has_hooks(after)
    if skip.join is not add or skip.open_shortcut is not None or not (relu or after is None):
        return _with(skip, parts)
    if not isinstance(last, Convolution) or last.relu:
        return _with(skip, parts)
    body = _with(Chain(), layers)
    body.forward_impl = in_turn
    return FusedSkip(body, last.with_relu() if relu else last, parts["shortcut"])


def _merged(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """A row of layers with each norm and ReLU made part of what is before it, and what does nothing left out."""
    held: tuple[str, nn.Module] | None = None
    for name, layer in layers:
        if type(layer) in _NOTHING and not has_hooks(layer):
            continue
        if held is not None and (together := _together(held[1], layer)) is not None:
            held = held[0], together
            continue
        if held is not None:
            yield held[0], folded(held[1])
        held = name, layer
    if held is not None:
        yield held[0], folded(held[1])


def _together(one: nn.Module, following: nn.Module) -> nn.Module | None:
    """One layer that does what two do; None where there is none."""
    if has_hooks(one) or has_hooks(following):
        return None
    if type(following) is nn.BatchNorm2d and following.running_mean is not None:
        return fuse_conv_bn_eval(cast(nn.Conv2d, one), following) if type(one) in (nn.Conv2d, SameConv2d) else None
    if type(following) is nn.ReLU and isinstance(one := folded(one), Convolution) and not one.relu:
        return one.with_relu()
    return None


def _row(module: nn.Module | None) -> Iterable[tuple[str, nn.Module]]:
    """Its layers where it is a row; unlike named_children() with those that stand in it more than once."""
    layers = module._modules.items() if module is not None and is_plain_sequence(module) else ()
    return [(name, layer) for name, layer in layers if layer is not None]


def _each(module: AnyModule) -> AnyModule:
    """`module` with each of its layers folded by itself."""
    return _with(module, {name: None if child is None else folded(child) for name, child in module._modules.items()})


def _with(module: AnyModule, children: Mapping[str, nn.Module | None]) -> AnyModule:
    """Another `module`, which has these layers."""
    twin = copy.copy(module)
    twin._modules = dict(children)
    return twin


def plan_codes(layer: nn.Module, wanted: bool = False) -> bool:
    """Lets each convolution in `layer` give codes where what is next wants them; whether `layer` wants them itself.

    `wanted` says so of its end.
    """
    if isinstance(layer, Convolution):
        layer.gives_codes = wanted and layer.codes is not None
        return layer.codes is not None
    if isinstance(layer, FusedSkip):
        begins = plan_codes(layer.last, wanted)
        if layer.shortcut is not None:
            plan_codes(layer.shortcut, layer.last.gives_codes)
        return plan_codes(layer.body, begins)
    if is_plain_sequence(layer):
        for one in reversed(list(cast(nn.Sequential, layer))):
            wanted = plan_codes(one, wanted)
        return wanted
    for child in layer.branches if isinstance(layer, Parallel) else layer.children():
        plan_codes(child)
    return wanted and _pools(layer)


def _makes(layer: nn.Module) -> bool:
    """Whether what it gives is new, and nobody else's."""
    if is_plain_sequence(layer) and len(cast(nn.Sequential, layer)) and not has_hooks(layer):
        return _makes(cast(nn.Sequential, layer)[-1])
    return isinstance(layer, Convolution | FusedSkip) and not _seen_into(layer)


def _seen_into(layer: nn.Module) -> bool:
    """Whether somebody watches it or anything inside, and may keep what is there."""
    return any(map(has_hooks, layer.modules()))


def _values(x: Tensor | QuantizedTensor) -> Tensor:
    return x.values if isinstance(x, QuantizedTensor) else x


def _memory(x: Tensor | QuantizedTensor) -> int:
    return 0 if _values(x).is_meta else _values(x).untyped_storage().data_ptr()


def _knows_codes(layer: nn.Module) -> bool:
    """Whether it may be given codes."""
    if isinstance(layer, Convolution):
        return layer.codes is not None
    return isinstance(layer, FusedSkip) or (isinstance(layer, Chain) and layer.forward_impl is in_turn)


def _pools(layer: nn.Module) -> bool:
    plain = type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices and not has_hooks(layer)
    return plain and pair(cast(nn.MaxPool2d, layer).dilation) == (1, 1)


def _need_pictures_on_a_cpu(x: Tensor) -> None:
    if x.device.type != "cpu" or x.dim() != 4:
        raise InputError(
            f'a network that is fused to "int8" computes with (B, C, H, W) on a CPU, not with {tuple(x.shape)} on '
            f'{x.device.type}; fuse it to "bf16" for other places and shapes'
        )


def _has_onednn(x: Tensor) -> bool:
    """Whether oneDNN's convolutions are there for x; what is traced is left in layers that everybody knows."""
    there = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    ordinary = type(x) is Tensor and x.device.type == "cpu" and x.dim() == 4 and x.numel() > 0
    if not there or not ordinary or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
