"""Layer fusion for inference: convolution, batch norm, activation and residual addition become one layer.

In evaluation mode a batch norm is an affine map, which folds into the weights and bias of the convolution before it.
In int8, consecutive convolutions exchange uint8 codes instead of floats. Outputs are equal up to rounding.

Shapes: those of the replaced layers.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skipway.export.fused_convolution import Convolution, dequantize, values_of
from skipway.export.quantization import QuantizedTensor
from skipway.kernels.kernel_eligibility import has_hooks
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.blocks import SameConv2d, pair
from skipway.nn.chain import Chain, is_plain_sequence
from skipway.nn.joins import add
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shortcut_types import Project
from skipway.nn.skip import Skip
from skipway.utils.tracing import is_recorded, is_traced

__all__ = ["FusedSkip", "fold", "plan_quantized_outputs", "run_fused"]

AnyModule = TypeVar("AnyModule", bound=nn.Module)
_ACTIVATIONS: dict[type, str] = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.SiLU: "silu"}
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)  # identities in evaluation mode


class FusedSkip(NamedErrors):
    """Residual block `last(body(x), shortcut(x))`, whose last convolution adds the shortcut and applies the ReLU."""

    shortcut: nn.Module | None

    def __init__(self, body: Chain, last: Convolution, shortcut: nn.Module | None):
        super().__init__()
        self.body, self.last = body, last
        self.register_module("shortcut", shortcut)

    @named_errors
    def forward(self, x: Tensor | QuantizedTensor, reuse: bool = False) -> Tensor | QuantizedTensor:
        """Map (B, C, H, W) to (B, C', H', W'); `reuse` allows the output to overwrite the memory of x."""
        shortcut = x
        if self.shortcut is not None:
            shortcut, reuse = run_fused([self.shortcut], x), _owns_output(self.shortcut)
        branch = self.body(x)
        if not self.last.quantizes_output:
            shortcut = dequantize(shortcut)
        if not is_traced(x) and values_of(shortcut).shape != (shape := self.last.output_shape(values_of(branch).shape)):
            add(torch.empty(shape, device="meta"), values_of(shortcut).to("meta"))  # raises the shape error
        reuse = reuse and not is_recorded(x) and _storage_address(shortcut) != _storage_address(branch)
        return self.last(branch, shortcut, reuse)


def run_fused(layers: Sequence[nn.Module], x: Any) -> Any:
    """Run `layers` in sequence; dequantize the input of layers that do not accept uint8 codes."""
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
    """Return a fused version of `root`, in evaluation mode.

    Plain sequences, Skip, Project, Parallel, Reversible and Coupling are fused. Other modules and modules with hooks
    are kept, because their use of their layers is unknown. `root` is not changed; the result shares the kept layers.
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
    if _is_foldable(root):
        return Convolution(cast(nn.Conv2d, root))
    return _fold_children(root) if isinstance(root, Reversible | Coupling) else root


def _fold_skip(skip: Skip) -> nn.Module:
    parts = {name: None if child is None else fold(child) for name, child in skip._modules.items()}
    after, layers = skip.after, dict(_named_layers(parts["body"]))
    last = layers.pop(next(reversed(layers))) if layers else None
    relu = type(after) is nn.ReLU and not has_hooks(after)
    if skip.join is not add or skip.open_shortcut is not None or not (relu or after is None):
        return _with_children(skip, parts)
    if not isinstance(last, Convolution) or last.activation != "none":
        return _with_children(skip, parts)
    body = _with_children(Chain(), layers)
    body.forward_impl = run_fused
    return FusedSkip(body, last.with_activation("relu") if relu else last, parts["shortcut"])


def _merge_layers(layers: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of a sequence: norms and activations merged into the layer before, identities dropped."""
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
    """Merge two consecutive layers into one, or return None if that is not possible."""
    if has_hooks(layer) or has_hooks(following):
        return None
    if type(following) is nn.BatchNorm2d and following.running_mean is not None:
        foldable = type(layer) in (nn.Conv2d, SameConv2d)
        return fuse_conv_bn_eval(cast(nn.Conv2d, layer), following) if foldable else None
    if type(following) in _ACTIVATIONS:
        folded = fold(layer)
        if isinstance(folded, Convolution) and folded.activation == "none":
            return folded.with_activation(_ACTIVATIONS[type(following)])
    return None


def _is_foldable(layer: nn.Module) -> bool:
    """Return True if a `Convolution` can replace `layer`."""
    if type(layer) is SameConv2d:
        return layer.padding_mode == "zeros" and layer.padding == (0, 0) and layer.dilation == (1, 1)
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _named_layers(module: nn.Module | None) -> Iterable[tuple[str, nn.Module]]:
    """Return the layers of a plain sequence; unlike named_children(), repeat a layer that is used more than once."""
    layers = module._modules.items() if module is not None and is_plain_sequence(module) else ()
    return [(name, layer) for name, layer in layers if layer is not None]


def _fold_children(module: AnyModule) -> AnyModule:
    """Return a copy of `module` with each child fused separately."""
    children = {name: None if child is None else fold(child) for name, child in module._modules.items()}
    return _with_children(module, children)


def _with_children(module: AnyModule, children: Mapping[str, nn.Module | None]) -> AnyModule:
    """Return a shallow copy of `module` with these children."""
    twin = copy.copy(module)
    twin._modules = dict(children)
    return twin


def plan_quantized_outputs(layer: nn.Module, next_takes_codes: bool = False) -> bool:
    """Set each convolution in `layer` to quantize its output if the next layer accepts uint8 codes.

    Args:
        layer: Fused layer or network.
        next_takes_codes: True if the layer after `layer` accepts codes.

    Returns:
        True if `layer` accepts codes.
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
    """Return True if the output of `layer` is a new tensor without other references."""
    if is_plain_sequence(layer) and len(cast(nn.Sequential, layer)) and not has_hooks(layer):
        return _owns_output(cast(nn.Sequential, layer)[-1])
    return isinstance(layer, Convolution | FusedSkip) and not _has_inner_hooks(layer)


def _has_inner_hooks(layer: nn.Module) -> bool:
    """Return True if `layer` or a layer inside has hooks, which may keep a reference to a tensor."""
    return any(map(has_hooks, layer.modules()))


def _storage_address(x: Tensor | QuantizedTensor) -> int:
    return 0 if values_of(x).is_meta else values_of(x).untyped_storage().data_ptr()


def _accepts_codes(layer: nn.Module) -> bool:
    if isinstance(layer, Convolution):
        return layer.quantization is not None
    return isinstance(layer, FusedSkip) or (isinstance(layer, Chain) and layer.forward_impl is run_fused)


def _is_plain_max_pool(layer: nn.Module) -> bool:
    plain = type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices and not has_hooks(layer)
    return plain and pair(cast(nn.MaxPool2d, layer).dilation) == (1, 1)
