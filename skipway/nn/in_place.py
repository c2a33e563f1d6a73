"""In-place layers: refuse them if another layer still needs the tensor that they overwrite."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import InputError

__all__ = ["is_changed", "refuse_in_place_change", "refuse_in_place_layers", "starts_in_place", "version_of"]


# Layers that may return their input, or a view of it.
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd, nn.Flatten)


def version_of(x: Any) -> int:
    """Return the number of in-place changes of a tensor, or -1 if torch does not count them (in inference mode)."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.is_inference():
        return -1
    return x._version


def is_changed(x: Any, version: int) -> bool:
    """Return True if `x` was changed in place since it had `version`, as far as torch counts changes.

    >>> x = torch.ones(1)
    >>> before = version_of(x)
    >>> is_changed(x.add_(1), before)
    True
    """
    now = version_of(x)
    return now != version and now >= 0 and version >= 0  # a thread that compiles hides versions from all threads


def refuse_in_place_change(x: Any, version: int, culprit: str) -> None:
    """Check that `x` still has the version of `version_of`.

    Args:
        x: tensor that two layers take.
        version: its version before the first layer ran.
        culprit: layers that may have run, for the message.

    Raises:
        InputError: the layer changed `x` in place.
    """
    if is_changed(x, version):
        raise InputError(
            f"{culprit} modifies its input in place, but both need it unchanged. Use layers that return a new tensor "
            "(inplace=False)."
        )


def refuse_in_place_layers(owner: str, *sides: nn.Module | None) -> None:
    """Check that no side starts with an in-place layer, which would change the input of the others.

    Raises:
        InputError: a side starts with such a layer.
    """
    for side in sides:
        for layer in _first_layers(side):
            if _is_in_place(layer):
                raise InputError(
                    f"{layer!r} at the start of a {owner} modifies in place the input that the other side needs. Use "
                    "a layer that returns a new tensor (inplace=False)."
                )


def starts_in_place(layers: Sequence[nn.Module]) -> bool:
    """Return True if layers that run one after the other start with an in-place layer.

    >>> starts_in_place([nn.ReLU(inplace=True), nn.Linear(2, 2)])
    True
    """
    first = next(
        (layer for layer in _flattened(layers) if not isinstance(layer, _PASSING) or _is_in_place(layer)), None
    )
    return any(_is_in_place(layer) for layer in _first_layers(first))


def _flattened(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flattened(layer)
        else:
            yield layer


def _is_in_place(layer: nn.Module) -> bool:
    name = getattr(getattr(layer, "function", None), "__name__", "")
    return getattr(layer, "inplace", False) is True or (name.endswith("_") and not name.endswith("__"))


def _first_layers(layer: nn.Module | None) -> Iterator[nn.Module]:
    """Yield the layers that get the input of `layer` itself."""
    if isinstance(layer, nn.Sequential):
        yield from _first_layers(next(layer.children(), None))
    elif layer is not None:
        branches = getattr(layer, "branches", None)  # of a Parallel
        if isinstance(branches, nn.Sequential):
            for branch in branches:
                yield from _first_layers(branch)
        else:
            yield layer
