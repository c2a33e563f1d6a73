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
from skipway.export.quantization import Observer, QuantizationParams, QuantizedTensor, quantize
from skipway.kernels.kernel_eligibility import has_hooks
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.blocks import SameConv2d, pair
from skipway.nn.chain import Chain, is_plain_sequence
from skipway.nn.joins import add
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import NamedErrors, named_errors
from skipway.nn.shortcut_types import Project
from skipway.nn.skip import Parallel, Skip

__all__ = ["Convolution", "FusedSkip", "dequantize", "fold", "plan_quantized_outputs", "run_fused"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in evaluation


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
        self.quantizes_output = False
        # The observers of the input and of the output during calibration, and their parameters in int8.
        self.observers: tuple[Observer, Observer] | None = None
        self.quantization: tuple[QuantizationParams, QuantizationParams] | None = None
        self._packed: tuple[Any, list[Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None = None, reuse: bool = False
    ) -> Tensor | QuantizedTensor:
        """(B, C, H, W), and (B, C', H', W') to add -> (B, C', H', W').

        With `reuse` nothing else needs `shortcut`: the output may take its memory.
        """
        if self.quantization is not None and type(_values(x)) is Tensor and not _values(x).is_meta:
            return self._int8_forward(x, shortcut, reuse)
        x, shortcut = dequantize(x).to(self.dtype), None if shortcut is None else dequantize(shortcut).to(self.dtype)
        assert isinstance(x, Tensor) and not isinstance(shortcut, QuantizedTensor)
        y = self._onednn_forward(x, shortcut, reuse) if _has_onednn(x) else self._torch_forward(x, shortcut)
        if self.observers is not None:
            self.observers[0].observe(x)
            self.observers[1].observe(y)
        return y

    def with_relu(self) -> "Convolution":
        """Return another one with the same weights, and a ReLU at the end."""
        twin = copy.copy(self)
        twin.relu = True
        return twin

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(*, C, H, W) -> (*, C', H', W')."""
        kernel = self.weight.shape[2:]
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilation, strict=True)]
        sizes = zip(shape[-2:], reach, self.padding, self.stride, strict=True)
        return *shape[:-3], len(self.weight), *((size + 2 * p - r) // s + 1 for size, r, p, s in sizes)

    def start_calibration(self, batches: int) -> None:
        """Observe inputs and outputs from now on, for this many batches."""
        self.observers = Observer(batches), Observer(batches)

    def finish_calibration(self) -> None:
        """Compute in int8 from now on, if any input was observed."""
        if self.observers is not None and self.observers[0].sample:
            self.quantization = self.observers[0].choose_params(), self.observers[1].choose_params()
        self.observers = None

    def extra_repr(self) -> str:
        """Its sizes, and how it computes."""
        out_channels, in_channels, *kernel = self.weight.shape
        kind = "int8" if self.quantization is not None else str(self.dtype).removeprefix("torch.")
        sizes = f"{in_channels * self.groups}, {out_channels}, {'x'.join(map(str, kernel))}"
        return f"{sizes}, {kind}{', relu' * self.relu}"

    def __getstate__(self) -> dict[str, Any]:  # what is packed cannot be copied, and is soon made again
        return self.__dict__ | {"_packed": None}

    def _apply(self, fn: Any, recurse: bool = True) -> "Convolution":
        self._packed = None  # it would stay where the weights no longer are
        return super()._apply(fn, recurse)

    def _pack(self, kind: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return what `make` makes of the weights; it is called again if they have changed."""
        tensors = self.weight, self.bias
        if any(type(t) not in (Tensor, nn.Parameter) or t.is_meta or t.is_inference() for t in tensors):
            return make()  # these change in ways that cannot be seen, or have no numbers
        state = kind, *((id(t), t._version) for t in tensors)
        if self._packed is None or self._packed[0] != state:
            self._packed = state, make(), tensors  # a reference to them, so that their ids are not used again
        return self._packed[1]

    def _torch_forward(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        def cast() -> list[Tensor]:
            return [self.weight.to(x.dtype, memory_format=torch.channels_last), self.bias.to(x.dtype)]

        weight, bias = cast() if torch.compiler.is_compiling() else self._pack("plain", cast)
        y = F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if shortcut is None else y + shortcut
        return y.relu_() if self.relu else y

    def _onednn_forward(self, x: Tensor, shortcut: Tensor | None, reuse: bool) -> Tensor:
        geometry = self.padding, self.stride, self.dilation, self.groups

        def reordered() -> list[Tensor]:
            weight = self.weight.to(x.dtype, memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, list(x.shape))
            return [packed, self.bias.to(x.dtype)]

        convolution = *self._pack("onednn", reordered), *geometry
        relu = "relu" if self.relu else None
        if shortcut is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *convolution, relu or "none", [], "")
        join: tuple[Any, ...] = ("add", 1.0, relu, [], "")
        if reuse and shortcut.is_contiguous(memory_format=torch.channels_last):
            return torch.ops.mkldnn._convolution_pointwise_.binary(shortcut, x, *convolution, *join)
        return torch.ops.mkldnn._convolution_pointwise.binary(x, shortcut, *convolution, *join)

    def _int8_forward(
        self, x: Tensor | QuantizedTensor, shortcut: Tensor | QuantizedTensor | None, reuse: bool
    ) -> Tensor | QuantizedTensor:
        assert self.quantization is not None
        _need_pictures_on_a_cpu(_values(x))
        x = x if isinstance(x, QuantizedTensor) else quantize(x, self.quantization[0])
        weight, scales, zeros = self._pack("int8", partial(self._int8_weights, x))
        ops, relu = torch.ops.onednn, "relu" if self.relu else "none"
        inputs = x.values, x.scale, x.zero_point, weight, scales, zeros
        geometry = self.bias, self.stride, self.padding, self.dilation, self.groups
        # The codes of a shortcut in float would have another scale: then the output is quantized afterwards.
        fused = self.quantizes_output and not isinstance(shortcut, Tensor)
        params, dtype = (self.quantization[1], torch.uint8) if fused else (QuantizationParams(1.0, 0), self.dtype)
        if shortcut is None:
            y = ops.qconv2d_pointwise(*inputs, *geometry, *params, dtype, relu, [], "")
        else:
            other = shortcut if isinstance(shortcut, QuantizedTensor) else QuantizedTensor(shortcut, 1.0, 0)
            values = other.values.to(dtype, copy=not reuse, memory_format=torch.channels_last)  # becomes the output
            operands = *inputs, values, *geometry, *params, dtype, other.scale, other.zero_point
            y = ops.qconv2d_pointwise.binary(*operands, "sum", 1.0, relu, [], "")
        if self.quantizes_output:
            return QuantizedTensor(y, *params) if fused else quantize(y, self.quantization[1])
        return y

    def _int8_weights(self, x: QuantizedTensor) -> list[Tensor]:
        """Return the weights as integers, the scale of each output channel, and zeros.

        From -64 to 64: processors without VNNI add products in pairs of 16 bits, which twice 255 * 127 would exceed.
        """
        scales = self.weight.abs().amax((1, 2, 3)).clamp_(min=1e-12) / 64
        whole = (self.weight / scales.view(-1, 1, 1, 1)).round_().to(torch.int8)
        geometry = list(self.stride), list(self.padding), list(self.dilation), self.groups
        packed = torch.ops.onednn.qconv_prepack(whole, scales, x.scale, x.zero_point, *geometry, list(x.values.shape))
        return [packed, scales, torch.zeros(len(whole), dtype=torch.int64)]


class FusedSkip(NamedErrors):
    """last(body(x), shortcut(x)): the last convolution of the body does the join, and the ReLU after it."""

    shortcut: nn.Module | None

    def __init__(self, body: Chain, last: Convolution, shortcut: nn.Module | None):
        super().__init__()
        self.body, self.last = body, last
        self.register_module("shortcut", shortcut)

    @named_errors
    def forward(self, x: Tensor | QuantizedTensor, reuse: bool = False) -> Tensor | QuantizedTensor:
        """(B, C, H, W) -> (B, C', H', W'); with `reuse` nothing else needs x: the output may take its memory."""
        shortcut = x
        if self.shortcut is not None:
            shortcut, reuse = run_fused([self.shortcut], x), _owns_output(self.shortcut)
        branch = self.body(x)
        if not self.last.quantizes_output:
            shortcut = dequantize(shortcut)
        if _values(shortcut).shape != (shape := self.last.output_shape(_values(branch).shape)):
            add(torch.empty(shape, device="meta"), _values(shortcut).to("meta"))  # raises the error of the join
        return self.last(branch, shortcut, reuse and _storage_address(shortcut) != _storage_address(branch))


def dequantize(x: Any) -> Any:
    """Return the numbers of a QuantizedTensor, and anything else as it is."""
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def run_fused(layers: Sequence[nn.Module], x: Any) -> Any:
    """Run `layers` one after the other; those that cannot take codes get numbers."""
    return run_layers(layers, x, _call_fused)


def _call_fused(layers: Sequence[nn.Module], index: int, x: Any) -> tuple[Any, int]:
    layer = layers[index]
    if isinstance(x, QuantizedTensor) and _is_plain_max_pool(layer):
        return x.max_pool(cast(nn.MaxPool2d, layer)), index + 1
    if isinstance(layer, FusedSkip):
        reuse = index > 0 and _owns_output(layers[index - 1]) and not _has_inner_hooks(layer)
        return layer(x, reuse), index + 1
    return layer(x if _accepts_codes(layer) else dequantize(x)), index + 1


def fold(root: nn.Module) -> nn.Module:
    """A network like `root`, in evaluation mode, whose norms, ReLUs and joins are done by the layers before them.

    What is not a row of layers, a Skip, a Project, a Parallel or a Coupling stays as it is, for what it does with its
    layers is not known; so does what somebody watches by hooks. `root` is not changed; layers that stay are its own.
    """
    if has_hooks(root):
        return root
    if is_plain_sequence(root) or type(root) is Project:
        layers = root.row() if isinstance(root, Project) else _named_layers(root)
        chain = _with_children(root if isinstance(root, Chain) else Chain(), dict(_merge_layers(layers)))
        chain.forward_impl = run_fused
        return chain
    if type(root) is Skip:
        return _fold_skip(root)
    if type(root) is Parallel:
        return _with_children(root, {**root._modules, "branches": _fold_children(root.branches)})
    if type(root) is nn.Conv2d and root.padding_mode == "zeros" and not isinstance(root.padding, str):
        return Convolution(root)
    return _fold_children(root) if isinstance(root, Reversible | Coupling) else root


def _fold_skip(skip: Skip) -> nn.Module:
    parts = {name: None if child is None else fold(child) for name, child in skip._modules.items()}
    after, layers = skip.after, dict(_named_layers(parts["body"]))
    last = layers.pop(next(reversed(layers))) if layers else None
    relu = type(after) is nn.ReLU and not has_hooks(after)
    if skip.join is not add or skip.open_shortcut is not None or not (relu or after is None):
        return _with_children(skip, parts)
    if not isinstance(last, Convolution) or last.relu:
        return _with_children(skip, parts)
    body = _with_children(Chain(), layers)
    body.forward_impl = run_fused
    return FusedSkip(body, last.with_relu() if relu else last, parts["shortcut"])


def _merge_layers(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a sequence, with norms and ReLUs merged into the layer before, without idle ones."""
    pending: tuple[str, nn.Module] | None = None
    for name, layer in layers:
        if type(layer) in _IDLE and not has_hooks(layer):
            continue
        if pending is not None and (merged := _merge_pair(pending[1], layer)) is not None:
            pending = pending[0], merged
            continue
        if pending is not None:
            yield pending[0], fold(pending[1])
        pending = name, layer
    if pending is not None:
        yield pending[0], fold(pending[1])


def _merge_pair(layer: nn.Module, following: nn.Module) -> nn.Module | None:
    """Return one layer that does what both do, or None."""
    if has_hooks(layer) or has_hooks(following):
        return None
    if type(following) is nn.BatchNorm2d and following.running_mean is not None:
        foldable = type(layer) in (nn.Conv2d, SameConv2d)
        return fuse_conv_bn_eval(cast(nn.Conv2d, layer), following) if foldable else None
    if type(following) is nn.ReLU:
        folded = fold(layer)
        return folded.with_relu() if isinstance(folded, Convolution) and not folded.relu else None
    return None


def _named_layers(module: nn.Module | None) -> Iterable[tuple[str, nn.Module]]:
    """Return the layers of a plain sequence; unlike named_children() with those that are in it more than once."""
    layers = module._modules.items() if module is not None and is_plain_sequence(module) else ()
    return [(name, layer) for name, layer in layers if layer is not None]


def _fold_children(module: AnyModule) -> AnyModule:
    """Return a copy of `module` with each child folded by itself."""
    children = {name: None if child is None else fold(child) for name, child in module._modules.items()}
    return _with_children(module, children)


def _with_children(module: AnyModule, children: Mapping[str, nn.Module | None]) -> AnyModule:
    """Return a copy of `module` with these children."""
    twin = copy.copy(module)
    twin._modules = dict(children)
    return twin


def plan_quantized_outputs(layer: nn.Module, next_takes_codes: bool = False) -> bool:
    """Let each convolution in `layer` quantize its output if the next layer takes codes.

    Returns:
        True if `layer` itself takes codes.
    """
    if isinstance(layer, Convolution):
        layer.quantizes_output = next_takes_codes and layer.quantization is not None
        return layer.quantization is not None
    if isinstance(layer, FusedSkip):
        last_takes_codes = plan_quantized_outputs(layer.last, next_takes_codes)
        if layer.shortcut is not None:
            plan_quantized_outputs(layer.shortcut, layer.last.quantizes_output)
        return plan_quantized_outputs(layer.body, last_takes_codes)
    if is_plain_sequence(layer):
        for child in reversed(list(cast(nn.Sequential, layer))):
            next_takes_codes = plan_quantized_outputs(child, next_takes_codes)
        return next_takes_codes
    for child in layer.branches if isinstance(layer, Parallel) else layer.children():
        plan_quantized_outputs(child)
    return next_takes_codes and _is_plain_max_pool(layer)


def _owns_output(layer: nn.Module) -> bool:
    """Return whether the output of `layer` is a new tensor that nothing else refers to."""
    if is_plain_sequence(layer) and len(cast(nn.Sequential, layer)) and not has_hooks(layer):
        return _owns_output(cast(nn.Sequential, layer)[-1])
    return isinstance(layer, Convolution | FusedSkip) and not _has_inner_hooks(layer)


def _has_inner_hooks(layer: nn.Module) -> bool:
    """Return whether a hook on `layer` or on anything inside may keep a tensor of it."""
    return any(map(has_hooks, layer.modules()))


def _values(x: Tensor | QuantizedTensor) -> Tensor:
    return x.values if isinstance(x, QuantizedTensor) else x


def _storage_address(x: Tensor | QuantizedTensor) -> int:
    return 0 if _values(x).is_meta else _values(x).untyped_storage().data_ptr()


def _accepts_codes(layer: nn.Module) -> bool:
    if isinstance(layer, Convolution):
        return layer.quantization is not None
    return isinstance(layer, FusedSkip) or (isinstance(layer, Chain) and layer.forward_impl is run_fused)


def _is_plain_max_pool(layer: nn.Module) -> bool:
    plain = type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices and not has_hooks(layer)
    return plain and pair(cast(nn.MaxPool2d, layer).dilation) == (1, 1)


def _need_pictures_on_a_cpu(x: Tensor) -> None:
    if x.device.type != "cpu" or x.dim() != 4:
        raise InputError(
            f'a network that is fused to "int8" computes with (B, C, H, W) on a CPU, not with {tuple(x.shape)} on '
            f'{x.device.type}; fuse it to "bf16" for other places and shapes'
        )


def _has_onednn(x: Tensor) -> bool:
    """Return whether oneDNN's convolutions can run on x; what is traced keeps to operations of every backend."""
    available = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dim() == 4 and x.numel() > 0
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not available or not plain or traced or torch.is_grad_enabled():
        return False
    return x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
