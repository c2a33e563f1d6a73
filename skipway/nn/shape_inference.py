"""Shape inference: output shapes without data, sizes of lazy layers, and errors that name the layer.

Shapes include the batch, so that `output_shape(module, x.shape) == module(x).shape` always holds.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import wraps
from numbers import Integral
from traceback import walk_tb
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from skipway.errors import InputError, ShapeError, SkipwayError, printable
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = [
    "Call",
    "NamedErrors",
    "calls",
    "evaluation",
    "filling",
    "kept_buffers",
    "named_errors",
    "on_meta",
    "output_shape",
    "real_tensors",
]

P = ParamSpec("P")
R = TypeVar("R")
_FILLING: ContextVar[bool] = ContextVar("filling", default=False)
_ONE_VALUE = "Expected more than 1"  # "... value per channel when training", "... spatial element when training"


class NamedErrors(nn.Module):
    """Base class of layers whose errors include their path in the network: see `named_errors`."""

    def parts(self) -> "list[tuple[str, nn.Module | str]] | None":
        """Return the constructor arguments for the code of this layer, or None if `repr` is that code."""
        return None


def named_errors(forward: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of a NamedErrors layer so that an error names the path from the outermost NamedErrors."""

    @wraps(forward)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return forward(*args, **kwargs)
        except ValueError as error:
            root = cast(nn.Module, args[0])
            if str(error).startswith(_ONE_VALUE):
                raise _one_value(root, error) from error
            if isinstance(error, SkipwayError):
                _put_path_first(error, root)
            raise

    return named


def _put_path_first(error: SkipwayError, root: nn.Module, path: str | None = None) -> None:
    """Prefix the message of `error` with the path from `root` of the layer that raised it, `root` by default."""
    if error.source is None:
        error.source = root, str(error).removeprefix(f"{type(root).__name__}: ")
    source, text = error.source
    if path is None:
        path = next((path for path, module in root.named_modules() if module is source), None)
    if path is not None:
        error.args = (f"{type(source).__name__}{' at ' if path else ''}{path}: {text}",)


def _one_value(root: nn.Module, error: ValueError) -> ShapeError:
    """Convert torch's error about a norm over a single value to a ShapeError with the path and a fix."""
    scopes = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)][::-1]
    norm = next((scope["self"] for scope in scopes if isinstance(scope.get("self"), nn.Module)), root)
    shape = next((tuple(scope["input"].shape) for scope in scopes if isinstance(scope.get("input"), Tensor)), "this")
    batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    fix = 'Use batches of 2 or more, norm="group" or "layer", or call eval().' if batch else "Use another norm there."
    shape_error = ShapeError()
    shape_error.source = norm, f"cannot normalize {shape}: expected more than one value per mean, got one. {fix}"
    _put_path_first(shape_error, root)
    return shape_error


def output_shape(module: nn.Module, *input_shapes: Sequence[int]) -> tuple[Any, ...]:
    """Return the shape of `module(x)` without data and without arithmetic.

    Uninferred sizes (`Dense(None, 5)`, `shortcut="auto"`, torch's lazy layers) are set in the process. The module must
    not be used in another thread at the same time.

    Args:
        module: the module to run.
        input_shapes: shape of each input, batch included.

    Returns:
        The output shape as a tuple, or a tuple of shapes if the module has several outputs.

    Raises:
        InputError: a shape is not a sequence of non-negative integers.
        ShapeError: a layer cannot process its input. The message names its path, both shapes and a fix.

    >>> output_shape(nn.Conv2d(3, 16, 3), (2, 3, 32, 32))
    (2, 16, 30, 30)
    """
    return _shapes_of(_infer(module, input_shapes))


class Call(NamedTuple):
    """One call of a module: its path, the module, the shapes of its inputs, and the shape of its output."""

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: tuple[Any, ...] = ()


def calls(module: nn.Module, *input_shapes: Sequence[int]) -> list[Call]:
    """Return every call inside `module`, in the order in which the calls end."""
    before = sum(1 for _ in module.modules())
    ended: list[Call] = []
    _infer(module, input_shapes, ended)
    if sum(1 for _ in module.modules()) != before:  # layers created on the first run have no hooks
        _infer(module, input_shapes, ended)
    return ended


def _infer(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None = None) -> Any:
    """Return the output of `module` for inputs of `shapes`, and record its calls in `ended`."""
    for shape in shapes:
        if not isinstance(shape, Sequence) or not all(isinstance(size, Integral) and size >= 0 for size in shape):
            raise InputError(
                "output_shape: expected shapes of non-negative integers with the batch first, such as "
                f"(2, 3, 32, 32), got {shape}. Pass such a shape."
            )
    with evaluation(module), _filling_sizes(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with suppress(Exception, _Uninferred):
            return _infer_on_meta(module, shapes, ended)
        return _infer_on_fakes(module, shapes, ended)  # any failure: repeat with exact fakes


def _infer_on_meta(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None) -> Any:
    """Run on the meta device: ten times faster than `_infer_on_fakes`, but without new layers or named errors."""
    with on_meta(module), nullcontext() if ended is None else _recorded_calls(module, [], ended), _SameNorm():
        return module(*(torch.empty(tuple(shape), device="meta", dtype=_dtype(module)) for shape in shapes))


@contextmanager
def on_meta(root: nn.Module) -> Iterator[None]:
    """Replace every parameter and buffer by one on the meta device, and restore them afterwards."""
    originals: list[tuple[dict[str, Any], dict[str, Any]]] = []
    twins: dict[Tensor | None, Tensor | None] = {None: None}
    try:
        for module in (m for m in root.modules() if not isinstance(m, torch.jit.ScriptModule)):
            for tensors in (vars(module)["_parameters"], vars(module)["_buffers"]):
                originals.append((tensors, dict(tensors)))
                for name, tensor in tensors.items():
                    if tensor not in twins:
                        twins[tensor] = torch.empty_like(tensor, device="meta")
                    tensors[name] = twins[tensor]
        yield
    finally:
        for tensors, values in originals:
            tensors.update(values)
            for name in tensors.keys() - values.keys():  # created by this call; the first real call creates it again
                if tensors[name] is not None and tensors[name].is_meta:
                    del tensors[name]


class _SameNorm(TorchFunctionMode):
    """Skip the arithmetic of a batch norm on the meta device, because its output has the shape of its input."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            x, mean, variance = args
            vectors = (mean, variance, kwargs["weight"], kwargs["bias"])
            if not kwargs["training"] and all(v is not None and v.shape == x.shape[1:2] for v in vectors):
                return torch.empty_like(x)
        return function(*args, **kwargs)


def _infer_on_fakes(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None) -> Any:
    """Run on fake tensors, with real parameters for layers whose sizes are inferred."""
    running: list[Call] = []
    with (
        kept_buffers(module),
        _recorded_calls(module, running, [] if ended is None else ended),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        inputs = [torch.empty(tuple(shape), device=_device(module), dtype=_dtype(module)) for shape in shapes]
        try:
            return module(*inputs)
        except SkipwayError as error:
            if error.source is not None:
                source, _ = error.source
                path = next((call.path for call in reversed(running) if call.module is source), None)
                _put_path_first(error, module, path)
            raise
        except Exception as error:
            call = running[-1] if running else Call("", module, tuple(map(tuple, shapes)))
            raise ShapeError(_describe_misfit(call, error)) from error


def filling() -> bool:
    """Return True during shape inference, the only time at which uninferred sizes may be set."""
    return not torch.compiler.is_compiling() and _FILLING.get()


class _Uninferred(BaseException):
    """Raised if a size cannot be set on the meta device; a BaseException, so that no module can catch it."""


@contextmanager
def real_tensors() -> Iterator[None]:
    """Create real tensors, suitable as parameters, during shape inference."""
    with unset_fake_temporarily() as mode:
        if mode is None:
            raise _Uninferred
        yield


@contextmanager
def _filling_sizes() -> Iterator[None]:
    token = _FILLING.set(True)
    try:
        # It would log the traceback of an error that we report in one line.
        with quiet_loggers("torch._subclasses.fake_tensor"):
            yield
    finally:
        _FILLING.reset(token)


@contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode, so that no norm updates its statistics, and restore the mode of each module."""
    modes = {m: m.training for m in module.modules()}
    for m in modes:
        m.training = False  # not m.eval(), which a subclass may override
    try:
        yield
    finally:
        _restore(module, modes, module.training)


def _restore(module: nn.Module, modes: dict[nn.Module, bool], around: bool) -> None:
    """Restore the modes; a module created meanwhile gets the mode of its parent."""
    module.training = modes.get(module, around)
    for child in module.children():
        _restore(child, modes, module.training)


@contextmanager
def kept_buffers(root: nn.Module) -> Iterator[None]:
    """Restore the real buffer of a layer that assigns itself a new (fake) buffer in every call."""
    originals = [(module, dict(module._buffers)) for module in root.modules()]
    try:
        yield
    finally:
        for module, buffers in originals:
            fake = [name for name, value in module._buffers.items() if isinstance(value, FakeTensor)]
            for name in fake:
                module._buffers[name] = buffers.get(name)


@contextmanager
def _recorded_calls(root: nn.Module, running: list[Call], ended: list[Call]) -> Iterator[None]:
    """Record the calls in progress in `running`, and those that returned in `ended`.

    A module used at several paths is named after them in turn. Lazy modules are initialized with real parameters.
    """
    ended.clear()
    paths: dict[nn.Module, list[str]] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(path)
    counts = dict.fromkeys(paths, 0)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = paths[module][min(counts[module], len(paths[module]) - 1)]
        counts[module] += 1
        running.append(Call(path, module, _shapes_of((*args, *(v for v in kwargs.values() if isinstance(v, Tensor))))))
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            # Before torch's hook, which would create parameters from fake tensors.
            with real_tensors():
                module.initialize_parameters(*args, **kwargs)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while running[-1].module is not module:  # a failed call whose error the parent caught
            running.pop()
        ended.append(running.pop()._replace(output=_shapes_of(output)))

    handles = []
    for module in (m for m in paths if not isinstance(m, torch.jit.ScriptModule)):
        handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _describe_misfit(call: Call, error: Exception) -> str:
    name = f"{type(call.module).__name__} at {call.path or 'the top'}"
    shapes = ", ".join(str(shape) for shape in call.inputs) or "no input"
    expected, fix = _expectation(call.module)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace("FakeTensor", "Tensor")
    if expected and not any(word in reason for word in ("type", "device", "Device")):
        return f"{name}: expected {expected}, got {shapes}. {fix}"
    return f"{name} cannot process {shapes}: {printable(reason)}. Change this layer or the one before it."


def _expectation(layer: nn.Module) -> tuple[str, str]:
    """Return the input shape that a well-known layer takes and how to fix it, or two empty strings."""
    if isinstance(layer, nn.Linear):
        return f"(*, {layer.in_features})", "Set in_features to the last size, or infer it (None, nn.LazyLinear)."
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        axes = ("L",), ("H", "W"), ("D", "H", "W")
        space = ", ".join(axes[len(layer.kernel_size) - 1])
        return (
            f"(B, {layer.in_channels}, {space}) with {space} at least the size of the kernel after padding",
            f"Set in_channels to that of the input, or change the kernel {layer.kernel_size}, stride or padding.",
        )
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        return (
            f"{layer.num_features} channels on axis 1",
            "Set num_features to that size, or use a norm for that shape.",
        )
    return "", ""
