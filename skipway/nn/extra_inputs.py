"""Extra inputs, such as a mask or a condition, that travel through containers next to the main input.

The main input goes through the layers one after the other. Each extra input goes unchanged to every layer that takes
it: a positional one to layers whose `forward` takes exactly as many inputs, a named one to layers with an argument of
that name.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from typing import Any

from torch import nn

from skipway.errors import InputError

__all__ = ["ExtraInputs", "NamedInputs", "call_layers", "taken_inputs", "with_extra_inputs"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class NamedInputs:
    """Base class of batches that hold extra inputs next to the main one, so that one object travels to the network."""

    def split_inputs(self) -> tuple[Any, dict[str, Any]]:
        """Return the main input, and the extra inputs by the names of the arguments that take them."""
        raise NotImplementedError


class ExtraInputs(nn.Module):
    """Base class of containers whose `forward` hands extra inputs on."""

    def takes(self, count: int, names: Collection[str]) -> tuple[bool, set[str]]:
        """Return True if the container takes `count` positional extra inputs, and the names that it takes."""
        raise NotImplementedError

    def forward_with(self, x: Any, extra: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Compute the output of `forward` with extra inputs."""
        raise NotImplementedError


def with_extra_inputs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Let a `forward(self, x)` of an ExtraInputs container take extra inputs, by its `forward_with`.

    `forward` itself keeps its single argument, because `torch.fx` takes every argument for an input.
    """
    signature = inspect.signature(forward)
    main = list(signature.parameters)[1]

    @wraps(forward)
    def call(self: ExtraInputs, *inputs: Any, **named: Any) -> Any:
        if main in named and not inputs:
            inputs = (named.pop(main),)
        if len(inputs) == 1 and isinstance(inputs[0], NamedInputs):
            x, own = inputs[0].split_inputs()
            inputs, named = (x,), {**own, **named}
        if not inputs or (len(inputs) == 1 and not named):
            return forward(self, *inputs, **named)
        return self.forward_with(inputs[0], inputs[1:], named)

    kinds = inspect.Parameter
    extra = [kinds("extra", kinds.VAR_POSITIONAL), kinds("named", kinds.VAR_KEYWORD)]
    call.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *extra])  # type: ignore[attr-defined]
    return call


def taken_inputs(layer: nn.Module, count: int, names: Collection[str]) -> tuple[bool, set[str]]:
    """Return True if `layer` takes `count` positional extra inputs, and those of `names` that it takes.

    >>> taken_inputs(nn.Bilinear(2, 2, 2), 1, ["mask"])
    (True, set())
    """
    if isinstance(layer, ExtraInputs):
        return layer.takes(count, names)
    function = getattr(layer, "function", None) or layer.forward
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function of C without a signature
        return False, set()
    kinds = {p.kind for p in parameters}
    # In torch, arguments with a default are options or states: F.relu(x, inplace), nn.LSTM(x, hx).
    is_torch = (getattr(function, "__module__", None) or "").startswith("torch.")
    positional = sum(p.kind in _POSITIONAL and (p.default is p.empty or not is_torch) for p in parameters)
    any_name = inspect.Parameter.VAR_KEYWORD in kinds
    taken = {p.name for p in parameters if p.kind != inspect.Parameter.POSITIONAL_ONLY}
    is_taking = count > 0 and (positional == 1 + count or inspect.Parameter.VAR_POSITIONAL in kinds)
    return is_taking, {name for name in names if any_name or name in taken}


def call_layers(layers: Sequence[nn.Module], x: Any, extra: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """Call layers one after the other, with the extra inputs that each takes.

    Raises:
        InputError: no layer takes an extra input.
    """
    plans = [taken_inputs(layer, len(extra), named) for layer in layers]
    unused = sorted(set(named).difference(*(names for _, names in plans)))
    if unused or (extra and not any(positional for positional, _ in plans)):
        what = f"argument {unused[0]!r}" if unused else f"{1 + len(extra)} inputs"
        raise InputError(
            f"cannot pass extra inputs: expected a layer whose forward takes {what}, got none. Add such a layer, or "
            "pass them by the names of its arguments."
        )
    for layer, (positional, names) in zip(layers, plans, strict=True):
        x = layer(x, *(extra if positional else ()), **{name: named[name] for name in names})
    return x
