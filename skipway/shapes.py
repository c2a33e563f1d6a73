"""Output shapes without data: sizes left open are filled in on the way, and a misfit names the layer.

Shapes include the batch, so that the law `output_shape(module, x.shape) == module(x).shape` holds as it stands.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.lazy import LazyModuleMixin

from skipway.errors import InputError, ShapeError, SkipwayError, printable

__all__ = ["Placed", "evaluation", "filling", "output_shape", "output_shapes", "place", "real_tensors"]

_FILLING: ContextVar[bool] = ContextVar("filling", default=False)


class Placed(nn.Module):
    """A module that knows its path in the network around it, for its error messages."""

    path = ""

    @property
    def where(self) -> str:
        """'Skip at stage1.0', or 'Skip' where nothing is around it."""
        return f"{type(self).__name__} at {self.path}" if self.path else type(self).__name__

    def parts(self) -> "list[tuple[str, nn.Module | str]] | None":
        """What stands between the brackets of the code that builds it; None where `repr` is that code."""
        return None


def place(root: nn.Module, keep: bool = False) -> None:
    """Tell every module inside `root` its path from there; with `keep`, a longer one that leads there stays."""
    for path, module in root.named_modules():
        if isinstance(module, Placed) and not (keep and (not path or f".{module.path}".endswith(f".{path}"))):
            module.path = path


def output_shape(module: nn.Module, *input_shapes: Sequence[int]) -> tuple[Any, ...]:
    """Shape of `module(x)` for x of `input_shapes[0]` (batch included), with no data and no arithmetic.

    Lazy sizes (`Dense(None, 5)`, `shortcut="auto"`, torch's Lazy layers) are filled in. Several shapes stand for
    several inputs. A module with several outputs gives a tuple of shapes.

    >>> output_shape(nn.Conv2d(3, 16, 3), (2, 3, 32, 32))
    (2, 16, 30, 30)

    Raises:
        ShapeError: a layer cannot take what reaches it; names its path, both shapes and the mend.
    """
    output, _ = _shape_pass(module, input_shapes)
    return _shapes_of(output)


def output_shapes(module: nn.Module, *input_shapes: Sequence[int]) -> list[tuple[str, nn.Module, tuple[Any, ...]]]:
    """(path, module, output shape) of every call inside `module`, in the order in which they end."""
    before = sum(1 for _ in module.modules())
    called = _shape_pass(module, input_shapes)[1]
    filled = sum(1 for _ in module.modules()) != before  # what the pass has made, it has not watched
    return _shape_pass(module, input_shapes)[1] if filled else called


Called = list[tuple[str, nn.Module, tuple[Any, ...]]]


def _shape_pass(module: nn.Module, input_shapes: Sequence[Sequence[int]]) -> tuple[Any, Called]:
    for shape in input_shapes:
        if not isinstance(shape, Sequence) or not all(isinstance(size, Integral) and size >= 0 for size in shape):
            raise InputError(
                f"output_shape takes shapes of whole numbers with the batch first, as (2, 3, 32, 32), not {shape}"
            )
    place(module, keep=True)
    running: Called = []
    ended: Called = []
    with (
        evaluation(module),
        _kept_buffers(module),
        _watched(module, running, ended),
        _filling_pass(),
        torch.no_grad(),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        inputs = [torch.empty(tuple(shape), device=_device(module), dtype=_dtype(module)) for shape in input_shapes]
        try:
            output = module(*inputs)
        except SkipwayError:
            raise
        except Exception as error:
            path, layer, shapes = running[-1] if running else ("", module, tuple(map(tuple, input_shapes)))
            raise ShapeError(_misfit(path, layer, shapes, error)) from error
    return output, ended


def filling() -> bool:
    """Whether a shape pass is under way: the one moment in which open sizes may be filled in."""
    return not torch.compiler.is_compiling() and _FILLING.get()


@contextmanager
def real_tensors() -> Iterator[None]:
    """Within a shape pass: tensors made here are real, fit to be parameters."""
    with unset_fake_temporarily():
        yield


@contextmanager
def _filling_pass() -> Iterator[None]:
    token = _FILLING.set(True)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # it prints the traceback of a misfit that we name in one line
    try:
        yield
    finally:
        logger.setLevel(level)
        _FILLING.reset(token)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Evaluation mode meanwhile, so that no norm counts what it sees; each module's own mode comes back."""
    modes = {m: m.training for m in module.modules()}
    for m in modes:
        m.training = False  # not m.eval(), which a network may have made to do more
    try:
        yield
    finally:
        _restore(module, modes, module.training)


def _restore(module: nn.Module, modes: dict[nn.Module, bool], around: bool) -> None:
    """What was made meanwhile gets the mode of the module around it."""
    module.training = modes.get(module, around)
    for child in module.children():
        _restore(child, modes, module.training)


@contextmanager
def _kept_buffers(root: nn.Module) -> Iterator[None]:
    """A layer that gives itself a new buffer in every call is left with a real one."""
    kept = [(module, dict(module._buffers)) for module in root.modules()]
    try:
        yield
    finally:
        for module, buffers in kept:
            fake = [name for name, value in module._buffers.items() if isinstance(value, FakeTensor)]
            module._buffers.update({name: buffers.get(name) for name in fake})


@contextmanager
def _watched(root: nn.Module, running: Called, ended: Called) -> Iterator[None]:
    """`running` holds the modules being called with their inputs' shapes, `ended` those that gave an output.

    A module that stands in several places is named after them in turn. Lazy ones are sized with real parameters.
    """
    paths: dict[nn.Module, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    placed = {module: module.path for module in paths if isinstance(module, Placed)}
    calls = dict.fromkeys(paths, 0)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = paths[module][min(calls[module], len(paths[module]) - 1)]
        calls[module] += 1
        if isinstance(module, Placed):
            module.path = path
        running.append((path, module, _shapes_of(args)))
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            # Before torch's own hook, which would make parameters out of fake tensors.
            with real_tensors():
                module.initialize_parameters(*args, **kwargs)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while running[-1][1] is not module:  # a call that failed, in a module that goes on without it
            running.pop()
        ended.append((running.pop()[0], module, _shapes_of(output)))

    handles = []
    for module in paths:
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for placed_module, path in placed.items():
            placed_module.path = path


def _shapes_of(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Tensor | FakeTensor):
        return tuple(value.shape)
    if isinstance(value, list | tuple):
        return tuple(_shapes_of(v) for v in value)
    if isinstance(value, dict):
        return tuple(_shapes_of(v) for v in value.values())
    return ()


def _device(module: nn.Module) -> torch.device:
    return next((p.device for p in module.parameters()), torch.device("cpu"))


def _dtype(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())


def _misfit(path: str, layer: nn.Module, shapes: tuple[Any, ...], error: Exception) -> str:
    name = f"{layer.__class__.__name__} at {path or 'the top'}"
    got = ", ".join(str(s) for s in shapes) or "nothing"
    expected, mend = _expectation(layer)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if expected and not any(word in reason for word in ("type", "device", "Device")):
        return f"{name} got {got}, but expects {expected}; {mend}"
    return f"{name} cannot take {got}: {printable(reason)}; change it or what comes before"


def _expectation(layer: nn.Module) -> tuple[str, str]:
    """What a well-known layer takes and which argument to change, or two empty texts."""
    if isinstance(layer, nn.Linear):
        return f"(*, {layer.in_features})", "set in_features to the last size, or leave it open (None, nn.LazyLinear)"
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        axes = ("L",), ("H", "W"), ("D", "H", "W")
        space = ", ".join(axes[len(layer.kernel_size) - 1])
        return (
            f"(B, {layer.in_channels}, {space}) with {space} no smaller than its kernel after padding",
            f"set in_channels to what arrives, or change the kernel {layer.kernel_size}, stride or padding",
        )
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return f"{layer.num_features} channels on axis 1", "set num_features to that size, or use a norm for that shape"
    return "", ""
