"""Chain: layers applied one after the other, and functions as layers.

Shapes: those that the layers accept and return.
"""

import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from torch import nn

from skipway.errors import InputError, did_you_mean
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.channel_axis import check_dim
from skipway.nn.code_repr import show
from skipway.nn.extra_inputs import ExtraInputs, call_layers, taken_inputs, with_extra_inputs
from skipway.nn.named_errors import NamedErrors, named_errors
from skipway.utils.format_text import join_names

__all__ = ["Chain", "Function", "Layer", "as_module", "is_plain_sequence", "warn_shared_layers"]

Layer = nn.Module | Callable[..., Any]


class Function(nn.Module):
    """A function as a layer, so that `Chain(conv, torch.relu)` and `Chain(..., lambda x: x.mean((2, 3)))` work."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the output of the function."""
        return self.function(*inputs, **named)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class Chain(NamedErrors, ExtraInputs, nn.Sequential):
    """Apply layers one after the other: an `nn.Sequential` that accepts functions and whose `repr` is code.

    Extra inputs, as in `chain(x, mask)` or `chain(x, mask=mask)`, go unchanged to every layer that takes them: by
    position to layers whose forward takes as many inputs, by name to layers with an argument of that name.

    Args:
        layers: modules or functions, named by position; or a list, or a dictionary of named ones.
        dim: axis of the channels for the layers inside that have none of their own: see `Skip`.
        named: modules or functions with names.

    Raises:
        InputError: a name is empty, contains a dot, or is an attribute of the Chain.

    >>> import torch
    >>> Chain(nn.Linear(4, 8), torch.relu, head=nn.Linear(8, 2))(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """

    # Replaces the plain loop over the layers: see `recompute`.
    forward_impl: Callable[[Sequence[nn.Module], Any], Any] | None = None

    def __init__(
        self, *layers: Layer | Iterable[Layer] | Mapping[str, Layer], dim: int | None | Layer = None, **named: Layer
    ):
        super().__init__()
        self.dim: int | None = check_dim("Chain", dim)
        for name, layer in [*_numbered(layers), *named.items()]:
            if hasattr(self, name) or not name or "." in name:
                raise InputError(
                    f"cannot name a layer of a Chain {name!r}: expected a new name without dots that is no "
                    "attribute of Chain. Choose another name."
                )
            self.add_module(name, as_module(layer))
        self.share_dim()
        warn_shared_layers(self)

    @named_errors
    @with_extra_inputs
    def forward(self, input: Any) -> Any:
        """Apply all layers in order."""
        return (self.forward_impl or run_layers)(list(self), input)

    def forward_with(self, x: Any, extra: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Apply all layers in order, each with the extra inputs that it takes."""
        if self.forward_impl is not None:
            raise InputError(
                "cannot pass extra inputs: expected a Chain without activation checkpointing. Disable it with "
                'recompute(network, every="none").'
            )
        return call_layers(list(self), x, extra, named)

    def takes(self, count: int, names: Collection[str]) -> tuple[bool, set[str]]:
        """Return True if a layer takes `count` positional extra inputs, and the names that layers take."""
        plans = [taken_inputs(layer, count, names) for layer in self]
        return any(positional for positional, _ in plans), set().union(*(taken for _, taken in plans))

    def parts(self) -> list[tuple[str, nn.Module | str]]:
        """Return the layers, and the axis of the channels if it is set."""
        dim: list[tuple[str, nn.Module | str]] = [] if self.dim is None else [("dim", str(self.dim))]
        return [*self._modules.items(), *dim]  # named_children() would skip repeated ones

    def __getitem__(self, place: int | slice | str) -> Any:
        """Return the layer at an index or of a name, or a Chain of the layers of a slice.

        The ends of a slice may be names: `chain["stem":"head"]` has the layers from the stem up to the head, which is
        left out.
        """
        if isinstance(place, str):
            return self._modules[self._known(place)]
        if not isinstance(place, slice):
            return super().__getitem__(place)
        part = Chain(dict(list(self._modules.items())[self._numbers(place)]), dim=self.dim)
        part.forward_impl = self.forward_impl
        return part

    def __setitem__(self, place: int | str, layer: Layer) -> None:
        """Replace the layer at an index or of a name."""
        if isinstance(place, slice):
            raise InputError("cannot set layers of a Chain by a slice: expected an index or a name. Set one at a time.")
        module = as_module(layer)
        if isinstance(place, str):
            self._modules[self._known(place)] = module
        else:
            super().__setitem__(place, module)
        self.share_dim()
        warn_shared_layers(self)

    def __delitem__(self, place: int | slice | str) -> None:
        """Remove the layer at an index or of a name, or those of a slice; unnamed layers are renumbered."""
        layers = list(self._modules.items())
        del layers[self._number(place) if isinstance(place, str) else self._numbers(place)]
        self._hold(layers)

    def __add__(self, other: Iterable[nn.Module]) -> "Chain":
        """Return a Chain of the layers of both, which are shared with them; unnamed layers are renumbered."""
        if not isinstance(other, nn.Sequential | list | tuple):
            return NotImplemented
        chain = Chain(self._modules, dim=self.dim)
        chain += other
        return chain

    def __iadd__(self, other: Iterable[nn.Module]) -> "Chain":
        """Append the layers of `other`, with their names."""
        added = list(other._modules.items()) if isinstance(other, nn.Sequential) else list(_numbered(tuple(other)))
        twice = [name for name, _ in added if not name.isdigit() and name in self._modules]
        if twice:
            raise InputError(
                f"cannot add Chains: expected different names, got {twice[0]!r} in both. Nest them: "
                "Chain(a=..., b=...)."
            )
        self._hold([*self._modules.items(), *((name, as_module(layer)) for name, layer in added)])
        return self

    def __mul__(self, other: int) -> NoReturn:
        """Refuse repetition, which would share all parameters."""
        raise InputError(
            "cannot repeat a Chain: expected new layers for each repetition, because repeated ones would share their "
            "parameters. Build them: Chain(*(block() for _ in range(n)))."
        )

    __rmul__ = __imul__ = __mul__

    def insert(self, index: int, module: Layer) -> "Chain":
        """Insert a layer or function before the layer at `index`, and return this Chain.

        >>> Chain(nn.ReLU(), nn.Tanh()).insert(1, nn.Sigmoid())[1]
        Sigmoid()
        """
        layers = list(self._modules.items())
        layers.insert(index, ("0", as_module(module)))
        self._hold(layers)
        return self

    def append(self, module: Layer) -> "Chain":
        """Append a layer or function, and return this Chain.

        >>> len(Chain(nn.ReLU()).append(nn.Tanh()))
        2
        """
        self._hold([*self._modules.items(), ("0", as_module(module))])
        return self

    def _hold(self, layers: list[tuple[str, nn.Module]]) -> None:
        named = {str(i) if name.isdigit() else name: layer for i, (name, layer) in enumerate(layers)}
        self._modules.clear()
        self._modules.update(named)
        self.share_dim()
        warn_shared_layers(self)

    def share_dim(self) -> None:
        """Set the axis of the channels of all layers inside that have none."""
        for module in self.modules() if self.dim is not None else ():
            if isinstance(module, NamedErrors) and getattr(module, "dim", self.dim) is None:
                module.dim = self.dim  # type: ignore[assignment]

    def _number(self, name: str) -> int:
        return list(self._modules).index(self._known(name))

    def _numbers(self, place: int | slice) -> Any:
        """Return an index, or a slice with numbers in place of names."""
        if not isinstance(place, slice):
            return place
        start, stop = (self._number(end) if isinstance(end, str) else end for end in (place.start, place.stop))
        return slice(start, stop, place.step)

    def _known(self, name: str) -> str:
        if name not in self._modules:
            raise InputError(
                f"this Chain has no layer {name!r}{did_you_mean(name, self._modules)}. Use one of its layers: "
                f"{', '.join(self._modules) or 'none'}."
            )
        return name

    @named_errors
    def activations(self, x: Any) -> tuple[Any, ...]:
        """Return the output of every layer, in order.

        Args:
            x: input of the first layer.

        >>> Chain(abs, lambda x: x * 3).activations(-1)
        (1, 3)
        """
        outputs = []
        for layer in self:
            x = (self.forward_impl or run_layers)([layer], x)
            outputs.append(x)
        return tuple(outputs)

    def __repr__(self) -> str:
        return show(self)


def _numbered(layers: tuple[Any, ...]) -> Iterable[tuple[str, Layer]]:
    """Return layers with their names: those of a single dictionary or Sequential slice, else numbers."""
    if len(layers) == 1 and isinstance(layers[0], Mapping):
        return layers[0].items()
    if len(layers) == 1 and isinstance(layers[0], list | tuple | Generator):
        layers = tuple(layers[0])
    return ((str(number), layer) for number, layer in enumerate(layers))


def as_module(layer: Any) -> nn.Module:
    """Return a module unchanged, or wrap a function as a `Function`.

    Raises:
        InputError: it is neither, or a list of modules, which cannot be called.
    """
    if isinstance(layer, nn.ModuleList | nn.ModuleDict | list | tuple):
        kind = type(layer).__name__
        raise InputError(
            f"layer: expected a module or a function, got a {kind} of several. Chain them: "
            f"Chain({'layers' if kind == 'ModuleDict' else '*layers'})."
        )
    if isinstance(layer, nn.Module):
        return layer
    if isinstance(layer, type) or not callable(layer):
        raise InputError(
            f"layer: expected a module instance or a function of tensors, got {layer!r}. Write nn.ReLU() or torch.relu."
        )
    return Function(layer)


def is_plain_sequence(module: nn.Module) -> bool:
    """Return True if calling `module` only calls its layers one after the other."""
    return type(module).forward in (nn.Sequential.forward, Chain.forward)


def warn_shared_layers(container: nn.Module, only: str | None = None) -> None:
    """Warn if children of `container` share a layer with parameters.

    Args:
        container: module whose direct children are compared.
        only: name of one child to compare with the others; None compares all pairs.
    """
    first_holder: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, child in container._modules.items():  # named_children() would skip a repeated module
        modules = () if child is None else child.modules()
        holders = {id(m): name for m in modules if any(p is not None for p in m._parameters.values())}
        earlier = [first_holder[module_id] for module_id in holders if module_id in first_holder]
        shared.update((name, first) for first in earlier if only in (None, name, first))
        first_holder = holders | first_holder
    if shared:
        pairs = join_names((f"{name!r} with {first!r}" for name, first in shared.items()), limit=3)
        warnings.warn(
            f"layers of this {type(container).__name__} share parameters ({pairs}), which are counted "
            "once. Build a new layer for each position to train them separately.",
            stacklevel=3,
        )
