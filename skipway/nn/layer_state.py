"""State of layers at the start of a forward pass: parameters, buffers and modes.

A second pass in that state computes what the first computed, although norms and spectral norms have updated their
buffers in the meantime. Nothing large is copied that the first pass leaves unchanged.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from skipway.errors import InputError
from skipway.nn.in_place import is_changed, starts_in_place, version_of

__all__ = ["LayerState", "differentiable_tensors"]

_SMALL = 2**16  # bytes; copied at every start, because torch does not count the changes of running statistics
_STEADY = WeakTensorKeyDictionary()  # larger buffers that a forward pass did not change; they are copied once


def differentiable_tensors(layers: Sequence[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of `layers` that need a gradient, each once."""
    tensors = chain.from_iterable(chain(layer.parameters(), layer.buffers()) for layer in layers)
    return list(dict.fromkeys(tensor for tensor in tensors if tensor.requires_grad))


class _ModuleState(NamedTuple):
    """The tensors that a module itself holds, and its mode."""

    module: nn.Module
    training: bool
    parameters: dict[str, Tensor | None]
    buffers: dict[str, Tensor | None]

    @classmethod
    def of(cls, module: nn.Module) -> "_ModuleState":
        return cls(module, module.training, dict(module._parameters), dict(module._buffers))

    def apply(self, values: Mapping[Tensor, Tensor]) -> None:
        """Put the module into this state, with other tensors for those in `values`."""
        if self.module.training != self.training:
            self.module.training = self.training
        held: tuple[Any, Any] = self.module._parameters, self.module._buffers
        for own, tensors in zip(held, (self.parameters, self.buffers), strict=True):
            own.update((name, None if t is None else values.get(t, t)) for name, t in tensors.items())


class LayerState:
    """The state of `layers` when it is created. Call `end_pass` after the forward pass.

    Attributes:
        leaves: parameters and buffers that need a gradient.
        in_place: True if the layers start in place, so that they need a copy of their input.

    Raises:
        InputError: a layer is a ScriptModule.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.leaves = differentiable_tensors(layers)
        self.in_place = starts_in_place(layers)
        modules = dict.fromkeys(chain.from_iterable(layer.modules() for layer in layers))
        if any(isinstance(module, torch.jit.ScriptModule) for module in modules):
            raise InputError(
                "cannot recompute: expected layers in Python, got a ScriptModule. Disable recompute for these layers, "
                "or do not script them."
            )
        self._modules = [_ModuleState.of(module) for module in modules]
        self._buffers = [{b for b in state.buffers.values() if b is not None} for state in self._modules]
        parameters = chain.from_iterable(state.parameters.values() for state in self._modules)
        tensors = [*(p for p in parameters if p is not None), *chain.from_iterable(self._buffers)]
        self._versions = {tensor: version_of(tensor) for tensor in tensors}
        # An embedding scales its rows down in place, which changes nothing the second time.
        limited = [state for state in self._modules if getattr(state.module, "max_norm", None) is not None]
        self._renormalized = set(chain.from_iterable(state.parameters.values() for state in limited))
        learning = set(self.leaves)
        copied = {b for b in chain.from_iterable(self._buffers) if b not in _STEADY}
        copied |= {t for t in tensors if t.nbytes <= _SMALL}
        self._starts = {tensor: tensor.detach().clone() for tensor in copied - learning}

    def end_pass(self) -> None:
        """Forget the copies of large buffers that the pass did not change.

        Raises:
            InputError: the pass changed a tensor whose value at the start is lost.
        """
        changed = {t for t, version in self._versions.items() if is_changed(t, version)}
        lost = [t for t in changed if t not in self._starts and t not in self._renormalized]
        if lost:
            is_steady = _STEADY.pop(lost[0], False)
            fix = "Run the pass again, which then keeps a copy." if is_steady else "Disable recompute for this layer."
            raise InputError(
                "cannot recompute: expected layers that change only their buffers, and the same ones in every pass, "
                f"got a change of {_named(lost[0], self._modules)} in place. {fix}"
            )
        for buffers in self._buffers:
            if not buffers & changed:
                for buffer in buffers:
                    if buffer.nbytes > _SMALL:
                        self._starts.pop(buffer, None)
                        _STEADY[buffer] = True
        self._versions = {t: version_of(t) for t in self._versions if t not in self._starts}

    @contextmanager
    def restored(self, aliases: Mapping[Tensor, Tensor]) -> Iterator[None]:
        """Put the layers into this state inside the context, and back afterwards.

        Args:
            aliases: tensors to use in place of `leaves`.

        Raises:
            InputError: a parameter or a large buffer was modified since the forward pass.
        """
        for tensor, version in self._versions.items():
            if is_changed(tensor, version):
                raise InputError(
                    "cannot recompute: expected parameters and buffers as in the forward pass, got "
                    f"{_named(tensor, self._modules)} modified in place. Call backward() before optimizer.step() and "
                    "other changes."
                )
        values = {**aliases}
        for tensor, start in self._starts.items():
            copy = start.clone()
            values[tensor] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
        now = [_ModuleState.of(state.module) for state in self._modules]
        try:
            for state in self._modules:
                state.apply(values)
            yield
        finally:
            for state in now:
                state.apply({})


def _named(tensor: Tensor, states: Sequence[_ModuleState]) -> str:
    """Return the name of a tensor and the type of the layer that holds it."""
    for state in states:
        for name, own in chain(state.parameters.items(), state.buffers.items()):
            if own is tensor:
                return f"{name!r} of {type(state.module).__name__}"
    return f"a tensor of shape {tuple(tensor.shape)}"
