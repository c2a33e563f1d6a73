"""Shape inference: output shapes without data, and sizes of lazy layers.

Shapes include the batch, so that `output_shape(module, x.shape) == module(x).shape` always holds.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.modules.lazy import LazyModuleMixin
from torch.overrides import TorchFunctionMode

from skipway.errors import ShapeError, SkipwayError
from skipway.nn.example_inputs import Example, ExampleInputs
from skipway.nn.late_parameters import warn_late_parameters
from skipway.nn.layer_misfit import cannot_process, find_misfit
from skipway.nn.named_errors import put_path_first
from skipway.utils.quiet_loggers import quiet_loggers

__all__ = [
    "Call",
    "calls",
    "evaluation",
    "filling",
    "kept_buffers",
    "on_meta",
    "output_shape",
    "real_tensors",
]

_FILLING: ContextVar[bool] = ContextVar("filling", default=False)


def output_shape(
    module: nn.Module,
    *inputs: Example,
    dtypes: torch.dtype | Sequence[torch.dtype | None] | None = None,
    **named: Example,
) -> tuple[Any, ...]:
    """Return the shape of `module(x)` without data and without arithmetic.

    Uninferred sizes (`Dense(None, 5)`, `shortcut="auto"`, torch's lazy layers) are set in the process. The module must
    not be used in another thread at the same time.

    Args:
        module: the module to run.
        inputs: shape of each input, batch included; or an example tensor, or a dictionary or list of shapes and tensors
            for a module that takes one.
        dtypes: dtype of the inputs, or one for each; None is that of the parameters. `nn.Embedding` takes torch.int64.
        named: inputs passed by name, such as `mask=(2, 5)`.

    Returns:
        The output shape as a tuple, or a tuple of shapes if the module has several outputs.

    Raises:
        InputError: a shape is not a sequence of non-negative integers.
        ShapeError: a layer cannot process its input. The message names its path, both shapes and a fix.

    >>> output_shape(nn.Conv2d(3, 16, 3), (2, 3, 32, 32))
    (2, 16, 30, 30)
    >>> output_shape(nn.Embedding(10, 4), (2, 5), dtypes=torch.int64)
    (2, 5, 4)
    """
    return _shapes_of(_infer(module, ExampleInputs(inputs, named, dtypes)))


class Call(NamedTuple):
    """One call of a module: its path, the module, the shapes of its inputs, and the shape of its output."""

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: tuple[Any, ...] = ()


def calls(
    module: nn.Module,
    *inputs: Example,
    dtypes: torch.dtype | Sequence[torch.dtype | None] | None = None,
    **named: Example,
) -> list[Call]:
    """Return every call inside `module`, in the order in which the calls end; the inputs are as in `output_shape`."""
    before = sum(1 for _ in module.modules())
    examples = ExampleInputs(inputs, named, dtypes)
    ended: list[Call] = []
    _infer(module, examples, ended)
    if sum(1 for _ in module.modules()) != before:  # layers created on the first run have no hooks
        _infer(module, examples, ended)
    return ended


def _infer(module: nn.Module, examples: ExampleInputs, ended: list[Call] | None = None) -> Any:
    """Return the output of `module` for example inputs, and record its calls in `ended`."""
    examples.check()
    with (
        warn_late_parameters(module),
        evaluation(module),
        _filling_sizes(),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
    ):
        with suppress(Exception, _Uninferred):
            return _infer_on_meta(module, examples, ended)
        try:
            return _infer_on_fakes(module, examples, ended)  # any failure: repeat with exact fakes
        except ShapeError as error:
            batched = examples.batched()
            is_of_torch = error.__cause__ is not None
            if not is_of_torch or batched is None or not _fits(module, batched):
                raise
        shapes = " and ".join(str(tuple(shape)) for shape in batched.inputs)
        raise ShapeError(f"{type(module).__name__}: the batch axis is missing: expected {shapes}. Pass that shape.")


def _fits(module: nn.Module, examples: ExampleInputs) -> bool:
    with suppress(Exception, _Uninferred):
        _infer_on_meta(module, examples, None)
        return True
    return False


def _infer_on_meta(module: nn.Module, examples: ExampleInputs, ended: list[Call] | None) -> Any:
    """Run on the meta device: ten times faster than `_infer_on_fakes`, but without new layers or named errors."""
    with on_meta(module), nullcontext() if ended is None else _recorded_calls(module, [], ended), _SameNorm():
        inputs, named = examples.build("meta", _dtype(module))
        return module(*inputs, **named)


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


def _infer_on_fakes(module: nn.Module, examples: ExampleInputs, ended: list[Call] | None) -> Any:
    """Run on fake tensors, with real parameters for layers whose sizes are inferred."""
    running: list[_Running] = []
    with (
        kept_buffers(module),
        _recorded_calls(module, running, [] if ended is None else ended),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        inputs, named = examples.build(_device(module), _dtype(module))
        try:
            return module(*inputs, **named)
        except SkipwayError as error:
            if error.source is not None:
                source, _ = error.source
                path = next((run.call.path for run in reversed(running) if run.call.module is source), None)
                put_path_first(error, module, path)
            raise
        except Exception as error:
            call, tensors = running[-1] if running else _Running(Call("", module, ()), (*inputs, *named.values()))
            raise ShapeError(_describe_misfit(call, tensors, error)) from error


def _describe_misfit(call: Call, tensors: Sequence[Any], error: Exception) -> str:
    name = f"{type(call.module).__name__} at {call.path or 'the top'}"
    misfit = find_misfit(call.module, tensors)
    return f"{name} {cannot_process(tensors, error)}" if misfit is None else f"{name}: {misfit}"


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


class _Running(NamedTuple):
    """A call that has not returned, and its inputs."""

    call: Call
    tensors: tuple[Any, ...]


@contextmanager
def _recorded_calls(root: nn.Module, running: "list[_Running]", ended: list[Call]) -> Iterator[None]:
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
        tensors = (*args, *(v for v in kwargs.values() if isinstance(v, Tensor)))
        running.append(_Running(Call(path, module, _shapes_of(tensors)), tensors))
        if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
            # Before torch's hook, which would create parameters from fake tensors.
            with real_tensors():
                module.initialize_parameters(*args, **kwargs)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while running[-1].call.module is not module:  # a failed call whose error the parent caught
            running.pop()
        ended.append(running.pop().call._replace(output=_shapes_of(output)))

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
    return next(
        (p.dtype for p in module.parameters() if p.is_floating_point() or p.is_complex()), torch.get_default_dtype()
    )
