"""Lint: find common mistakes in a network without training it. Each note names the place, the mistake and a fix.

These networks run, but learn less than they could. Networks that cannot run fail in shape inference: mismatched shapes,
a join that would broadcast, an input changed in place.
"""

import dis
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from math import prod
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import Scale
from skipway.nn.shape_inference import Call, evaluation
from skipway.nn.skip import Skip
from skipway.utils.format_text import join_names

__all__ = ["find_mistakes"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_NORMS = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm
_WEIGHTED = nn.Linear, nn.modules.conv._ConvNd, *_NORMS  # their output is zero if weight and bias are zero
_OWN = set(vars(nn.Module()))  # attributes of every module; all others are the user's
_REPLACEMENTS = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}
_MAX_ITEMS = 1000
_MAX_DEPTH = 5
_FOREIGN = ("torch", "skipway", "numpy", "builtins")  # objects of these libraries hide no layers of the user


def find_mistakes(network: nn.Module, calls: Sequence[Call], lone: Sequence[Call]) -> list[str]:
    """Return one note for each likely mistake in a network.

    Args:
        network: network to check.
        calls: its calls for the full batch.
        lone: its calls for a batch of one sample.
    """
    with torch.no_grad():
        return [
            *_find_repeated(network, calls),
            *_find_hidden(network),
            *_find_dead(network),
            *_find_single_values(calls, lone),
        ]


def _find_repeated(network: nn.Module, calls: Sequence[Call]) -> Iterator[str]:
    """Find modules that are called several times and so share their parameters."""
    times = Counter(call.module for call in calls)
    reported: set[nn.Module] = set()
    for module in network.modules():
        count = times[module]
        if count < 2 or module in reported or not any(True for _ in module.parameters()):
            continue
        reported.update(module.modules())
        paths = dict.fromkeys(call.path for call in calls if call.module is module)
        norms = any(isinstance(m, _BATCH_NORM) for m in module.modules())
        yield (
            f"{_join_paths(paths)}: the same {type(module).__name__} is called {count} times and shares its parameters"
            f"{f'; its batch norms see {count} batches in each forward pass' if norms else ''}. Create a new module "
            "for each place to get separate weights"
        )


# Layers that are not registered


def _find_hidden(network: nn.Module) -> Iterator[str]:
    """Find layers in plain containers or captured by functions, which are not trained, moved or saved."""
    known = {id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            hidden = [] if name in _OWN else list(_layers_inside(value, f"{path}.{name}".lstrip("."), known, 0))
            if hidden:
                kind, places = type(value).__name__, [f"{trail} ({type(layer).__name__})" for trail, layer in hidden]
                count = sum(p.numel() for p in chain.from_iterable(_tensors_of(layer) for _, layer in hidden))
                replacement = _REPLACEMENTS.get(kind, "Module subclass")
                yield (
                    f"{_join_paths(places)}: hidden in a {kind}, so {count:,} values are not trained, moved or saved. "
                    f"Use an nn.{replacement}"
                )


def _tensors_of(layer: nn.Module | nn.Parameter) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()] if isinstance(layer, nn.Module) else [layer]


def _layers_inside(
    value: Any, trail: str, known: set[int], depth: int
) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """Yield (path, layer) for each layer with tensors reachable from `value`; add visited ids to `known`."""
    if id(value) in known or depth > _MAX_DEPTH:
        return
    known.add(id(value))
    if isinstance(value, nn.Module | nn.Parameter):
        known.update(id(part) for part in (value.modules() if isinstance(value, nn.Module) else ()))
        if _tensors_of(value):
            yield trail, value
        return
    for name, inner in _items(value):
        yield from _layers_inside(inner, f"{trail}{name}", known, depth + 1)


def _items(value: Any) -> Iterable[tuple[str, Any]]:
    """Return (name, value) pairs of a container's items, a function's captured values or an object's attributes."""
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"[{i}]", item) for i, item in enumerate(islice(value, _MAX_ITEMS)))
    if isinstance(value, dict):
        return ((f"[{key!r}]", item) for key, item in islice(value.items(), _MAX_ITEMS))
    if isinstance(value, MethodType):
        return [(".__self__", value.__self__), ("", value.__func__)]
    if isinstance(value, partial):
        return [("", value.func), (".args", value.args), (".keywords", value.keywords)]
    if isinstance(value, type | ModuleType | Tensor) or str(value.__class__.__module__).split(".")[0] in _FOREIGN:
        return _captured_values(value) if isinstance(value, FunctionType) else []
    return [(f".{name}", item) for name, item in getattr(value, "__dict__", {}).items()]


def _captured_values(function: FunctionType) -> list[tuple[str, Any]]:
    """Return the closure variables, the referenced globals and the default arguments of a function."""
    if str(function.__module__).split(".")[0] in _FOREIGN:
        return []
    values: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the variable is not assigned yet
            values.append((f".{name}", cell.cell_contents))
    named = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    values += [(f".{name}", function.__globals__[name]) for name in sorted(named) if name in function.__globals__]
    return [*values, (".__defaults__", function.__defaults__), (".__kwdefaults__", function.__kwdefaults__)]


# Layers without a gradient


def _find_dead(network: nn.Module) -> Iterator[str]:
    """Find zero-initialized layers before an activation with zero slope at 0, or before a zero-initialized scale."""
    inner = set(chain.from_iterable(module.children() for module in network.modules() if _in_order(module)))
    for path, module in network.named_modules():
        if _in_order(module) and module not in inner:
            dead, _ = _trace_zeros(module, path)
            if dead:
                zero, activation = dead
                yield (
                    f"{activation}: this activation has zero slope at 0, and its input {zero} is zero at "
                    "initialization, so no gradient ever passes. Remove the activation, or initialize the weight or "
                    "bias to nonzero"
                )
        if isinstance(module, Skip) and isinstance(module.join, Scale) and _all_zero(module.join.scale):
            _, zero = _trace_zeros(module.body, f"{path}.body".lstrip("."))
            if zero:
                yield (
                    f"{path or 'the Skip'}: its scale and {zero}, the end of its body, are both zero at "
                    "initialization, so neither ever gets a gradient. Initialize one of them to nonzero"
                )


def _trace_zeros(module: nn.Module, path: str) -> tuple[tuple[str, str] | None, str]:
    """Return (zero layer, activation that blocks its gradient) or None, and the layer that makes the output zero."""
    zero = ""
    for place, layer in _flat_layers(module, path):
        if _gives_zeros(layer):
            zero = place
        elif zero and not (isinstance(layer, _WEIGHTED) and _no_bias(layer)):
            output, slope = _at_zero(layer)
            if slope is False:
                return (zero, place), ""
            zero = zero if slope and not output else ""
    return None, zero


def _flat_layers(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield (path, layer) in call order, as far as the containers determine it."""
    if _in_order(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _flat_layers(child, f"{path}.{name}".lstrip("."))
    else:
        yield path, module


def _in_order(module: nn.Module) -> bool:
    """Return True for a module that only calls its children one after another."""
    return type(module).forward in (nn.Sequential.forward, Chain.forward, Dense.forward)


def _gives_zeros(layer: nn.Module) -> bool:
    return isinstance(layer, _WEIGHTED) and _all_zero(layer.weight) and _no_bias(layer)


def _no_bias(layer: nn.Module) -> bool:
    bias = getattr(layer, "bias", None)
    return bias is None or _all_zero(bias)


def _all_zero(values: Any) -> bool:
    known = isinstance(values, Tensor) and not isinstance(values, nn.UninitializedParameter) and not values.is_meta
    return known and not bool(values.any())


def _at_zero(layer: nn.Module) -> tuple[bool, bool | None]:
    """Return (nonzero output at 0, nonzero slope at 0) of an activation; the slope is None for any other layer."""
    if any(True for _ in layer.parameters()):
        return True, None
    zeros = torch.zeros(2, 4, requires_grad=True)
    try:
        with torch.enable_grad(), evaluation(layer):
            output = layer(zeros.clone())
            (slope,) = torch.autograd.grad(output, zeros, torch.arange(1.0, 9.0).view(2, 4))
    except Exception:  # not an elementwise function
        return True, None
    return bool(output.any()), bool(slope.any())


# Norms of a single value


def _find_single_values(calls: Sequence[Call], lone: Sequence[Call]) -> Iterator[str]:
    """Find norms that average over a single value, for a batch of one sample or for any batch."""
    batch = [c.path for c in lone if isinstance(c.module, _BATCH_NORM) and prod(c.inputs[0]) == c.inputs[0][1]]
    any_batch = [
        c.path
        for c in calls
        if (isinstance(c.module, nn.GroupNorm) and prod(c.inputs[0]) == c.inputs[0][0] * c.module.num_groups)
        or (isinstance(c.module, nn.LayerNorm) and prod(c.module.normalized_shape) == 1)
    ]
    if batch:
        yield (
            f"{_join_paths(batch)}: batch norm cannot train on a batch of one sample, which has one value per channel "
            'here. Use batches of at least 2 (drop_last=True), or norm="group" or "layer"'
        )
    if any_batch:
        yield (
            f"{_join_paths(any_batch)}: each mean is over a single value, so the output is the bias for every input. "
            "Use fewer groups or another norm"
        )


def _join_paths(places: Iterable[str]) -> str:
    return join_names((place or "the network" for place in places), limit=3)
