"""Mistakes that networks are often built with, found without training: one line each, with where, what and the mend.

What cannot run at all, a misfit, a join that would broadcast, a shortcut changed in place, is an error of the shape
pass. What stands here runs, and learns less than it could.
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
from skipway.nn.joins import Scale
from skipway.nn.shape_inference import Call, evaluation
from skipway.nn.skip import Dense, Skip
from skipway.utils.format_text import join_names

__all__ = ["find_mistakes"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_NORMS = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm
_WEIGHTED = nn.Linear, nn.modules.conv._ConvNd, *_NORMS  # zeros come out of them where weight and bias are zero
_OWN = set(vars(nn.Module()))  # what every module has, besides what its writer gave it
_REPLACEMENTS = {"list": "ModuleList", "tuple": "ModuleList", "dict": "ModuleDict"}
_MAX_ITEMS = 1000
_MAX_DEPTH = 5
_FOREIGN = ("torch", "skipway", "numpy", "builtins")  # nobody's layers hide in there


def find_mistakes(network: nn.Module, calls: Sequence[Call], lone: Sequence[Call]) -> list[str]:
    """What is likely to be wrong with `network`, called with `calls`, and with `lone` where the batch is one sample."""
    with torch.no_grad():
        return [
            *_find_repeated(network, calls),
            *_find_hidden(network),
            *_find_dead(network),
            *_find_single_values(calls, lone),
        ]


def _find_repeated(network: nn.Module, calls: Sequence[Call]) -> Iterator[str]:
    """Blocks that are called several times: one block, not several."""
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
            f"{_join_paths(paths)}: one {type(module).__name__} is called {count} times, and its parameters count once"
            f"{f'; its batch norms see {count} batches in each pass' if norms else ''}; build it anew for weights of "
            "its own in each place"
        )


# Layers that the network does not know of


def _find_hidden(network: nn.Module) -> Iterator[str]:
    """Layers in plain containers or captured by functions: nothing trains, moves or saves them."""
    known = {id(part) for part in (*network.modules(), *network.parameters(), *network.buffers())}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            hidden = [] if name in _OWN else list(_layers_inside(value, f"{path}.{name}".lstrip("."), known, 0))
            if hidden:
                kind, places = type(value).__name__, [f"{trail} ({type(layer).__name__})" for trail, layer in hidden]
                count = sum(p.numel() for p in chain.from_iterable(_tensors_of(layer) for _, layer in hidden))
                replacement = _REPLACEMENTS.get(kind, "Module of your own")
                yield (
                    f"{_join_paths(places)}: hidden in a {kind}, their {count:,} values are not trained, moved or "
                    f"saved; use an nn.{replacement}"
                )


def _tensors_of(layer: nn.Module | nn.Parameter) -> list[Tensor]:
    return [*layer.parameters(), *layer.buffers()] if isinstance(layer, nn.Module) else [layer]


def _layers_inside(
    value: Any, trail: str, known: set[int], depth: int
) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """(where, layer) of each layer with values in it that `value` leads to; what has been seen is added to `known`."""
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
    """(name, value) of what a container, a function or a plain object of the user holds."""
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
    """What a function takes along: variables of the functions around it, globals that it names, its defaults."""
    if str(function.__module__).split(".")[0] in _FOREIGN:
        return []
    values: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # a variable that has no value yet
            values.append((f".{name}", cell.cell_contents))
    named = {i.argval for i in dis.get_instructions(function) if i.opname == "LOAD_GLOBAL"}
    values += [(f".{name}", function.__globals__[name]) for name in sorted(named) if name in function.__globals__]
    return [*values, (".__defaults__", function.__defaults__), (".__kwdefaults__", function.__kwdefaults__)]


# Layers that no gradient reaches


def _find_dead(network: nn.Module) -> Iterator[str]:
    """What begins at zero, followed by an activation without a slope there, or by a scale that is zero as well."""
    inner = set(chain.from_iterable(module.children() for module in network.modules() if _in_order(module)))
    for path, module in network.named_modules():
        if _in_order(module) and module not in inner:
            dead, _ = _trace_zeros(module, path)
            if dead:
                zero, activation = dead
                yield (
                    f"{activation}: an activation without a slope at 0 follows {zero}, which gives zeros at first; no "
                    "gradient ever comes through; leave the activation out, or begin the weights or the bias elsewhere"
                )
        if isinstance(module, Skip) and isinstance(module.join, Scale) and _all_zero(module.join.scale):
            _, zero = _trace_zeros(module.body, f"{path}.body".lstrip("."))
            if zero:
                yield (
                    f"{path or 'the Skip'}: its scale and {zero}, the end of its body, are both zero at first, so that "
                    "neither ever gets a gradient; begin one of them elsewhere"
                )


def _trace_zeros(module: nn.Module, path: str) -> tuple[tuple[str, str] | None, str]:
    """(the layer that gives zeros, the activation that lets no gradient through to it), what makes the output zero."""
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
    """(path, layer) in the order of calls, as far as containers tell it."""
    if _in_order(module):
        for name, child in module._modules.items():
            if child is not None:
                yield from _flat_layers(child, f"{path}.{name}".lstrip("."))
    else:
        yield path, module


def _in_order(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other and does nothing else."""
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
    """Whether an activation gives anything for zeros, and whether it has a slope there; None: it is none."""
    if any(True for _ in layer.parameters()):
        return True, None
    zeros = torch.zeros(2, 4, requires_grad=True)
    try:
        with torch.enable_grad(), evaluation(layer):
            output = layer(zeros.clone())
            (slope,) = torch.autograd.grad(output, zeros, torch.arange(1.0, 9.0).view(2, 4))
    except Exception:  # no function of each number alone
        return True, None
    return bool(output.any()), bool(slope.any())


# Norms that have nothing to take a mean of


def _find_single_values(calls: Sequence[Call], lone: Sequence[Call]) -> Iterator[str]:
    """Norms that are given one value for each mean, in a batch of one sample or in any."""
    batch = [c.path for c in lone if isinstance(c.module, _BATCH_NORM) and prod(c.inputs[0]) == c.inputs[0][1]]
    any_batch = [
        c.path
        for c in calls
        if (isinstance(c.module, nn.GroupNorm) and prod(c.inputs[0]) == c.inputs[0][0] * c.module.num_groups)
        or (isinstance(c.module, nn.LayerNorm) and prod(c.module.normalized_shape) == 1)
    ]
    if batch:
        yield (
            f"{_join_paths(batch)}: a batch of one sample leaves one value a channel, on which a batch norm cannot "
            'train; give batches of 2 or more (drop a last one of 1), or use norm="group" or "layer"'
        )
    if any_batch:
        yield (
            f"{_join_paths(any_batch)}: each mean is of one value, so that the bias comes out whatever comes in; "
            "use fewer groups or another norm"
        )


def _join_paths(places: Iterable[str]) -> str:
    return join_names((place or "the network" for place in places), limit=3)
