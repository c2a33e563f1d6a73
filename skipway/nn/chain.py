"""Chain: layers applied one after the other, and functions as layers.

Shapes: those that the layers accept and return.
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, nn

from skipway.errors import InputError, did_you_mean
from skipway.kernels.layer_dispatch import run_layers
from skipway.nn.code_repr import show
from skipway.nn.shape_inference import NamedErrors, named_errors
from skipway.utils.format_text import join_names

__all__ = ["Chain", "Function", "Layer", "as_module", "is_plain_sequence", "warn_shared_layers"]

Layer = nn.Module | Callable[..., Any]


class Function(nn.Module):
    """A function as a layer, so that `Chain(conv, torch.relu)` and `Chain(..., lambda x: x.mean((2, 3)))` work."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        """Return the output of the function."""
        return self.function(*inputs)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class Chain(NamedErrors, nn.Sequential):
    """Apply layers one after the other: an `nn.Sequential` that accepts functions and whose `repr` is code.

    Args:
        layers: modules or functions, named by position.
        named: modules or functions with names.

    Raises:
        InputError: a name is empty, contains a dot, or is an attribute of the Chain.

    >>> import torch
    >>> Chain(nn.Linear(4, 8), torch.relu, head=nn.Linear(8, 2))(torch.ones(1, 4)).shape
    torch.Size([1, 2])
    """

    # Replaces the plain loop over the layers: see `recompute`.
    forward_impl: Callable[[Sequence[nn.Module], Any], Any] | None = None

    def __init__(self, *layers: Layer, **named: Layer):
        super().__init__()
        if len(layers) == 1 and isinstance(layers[0], OrderedDict) and not named:  # a slice of an nn.Sequential
            named = cast(dict[str, Layer], layers[0])
            layers = ()
        for name, layer in [*((str(i), layer) for i, layer in enumerate(layers)), *named.items()]:
            if hasattr(self, name) or not name or "." in name:
                raise InputError(
                    f"cannot name a layer of a Chain {name!r}: expected a new name without dots that is no "
                    "attribute of Chain. Choose another name."
                )
            self.add_module(name, as_module(layer))
        warn_shared_layers(self)

    @named_errors
    def forward(self, input: Any) -> Any:
        """Apply all layers in order."""
        return (self.forward_impl or run_layers)(list(self), input)

    def __getitem__(self, place: int | slice | str) -> Any:
        """Return the layer at an index or of a name, or a Chain of the layers of a slice."""
        if isinstance(place, str):
            return self._modules[self._known(place)]
        part: Any = super().__getitem__(place)
        if isinstance(place, slice):
            part.forward_impl = self.forward_impl
        return part

    def __delitem__(self, place: int | slice | str) -> None:
        """Remove the layer at an index or of a name, or those of a slice; unnamed layers are renumbered."""
        layers = list(self._modules.items())
        del layers[list(self._modules).index(self._known(place)) if isinstance(place, str) else place]
        self._hold(layers)

    def insert(self, index: int, module: Layer) -> "Chain":
        """Insert a layer or function before the layer at `index`, and return this Chain.

        >>> Chain(nn.ReLU(), nn.Tanh()).insert(1, nn.Sigmoid())[1]
        Sigmoid()
        """
        layers = list(self._modules.items())
        layers.insert(index, ("0", as_module(module)))
        self._hold(layers)
        warn_shared_layers(self)
        return self

    def append(self, module: Layer) -> "Chain":
        """Append a layer or function, and return this Chain.

        >>> len(Chain(nn.ReLU()).append(nn.Tanh()))
        2
        """
        self._hold([*self._modules.items(), ("0", as_module(module))])
        warn_shared_layers(self)
        return self

    def _hold(self, layers: list[tuple[str, nn.Module]]) -> None:
        named = {str(i) if name.isdigit() else name: layer for i, (name, layer) in enumerate(layers)}
        self._modules.clear()
        self._modules.update(named)

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


def as_module(layer: Layer) -> nn.Module:
    """Return a module unchanged, or wrap a function as a `Function`."""
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
