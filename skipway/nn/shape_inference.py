"""Output shapes without data: sizes left open are filled in on the way, and a misfit names the layer.

Shapes include the batch, so that the law `output_shape(module, x.shape) == module(x).shape` holds as it stands.
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
    """A layer whose errors name its path in the network around it: what it does is decorated with `named_errors`."""

    def parts(self) -> "list[tuple[str, nn.Module | str]] | None":
        """What stands between the brackets of the code that builds it; None where `repr` is that code."""
        return None


def named_errors(forward: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of NamedErrors: an error inside names its layer by the path from the outermost NamedErrors."""

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
    """Put the path from `root` of the layer that raised `error` before what it said; raised by none, it is `root`'s."""
    if error.source is None:
        error.source = root, str(error).removeprefix(f"{type(root).__name__}: ")
    source, text = error.source
    if path is None:
        path = next((path for path, module in root.named_modules() if module is source), None)
    if path is not None:
        error.args = (f"{type(source).__name__}{' at ' if path else ''}{path}: {text}",)


def _one_value(root: nn.Module, error: ValueError) -> ShapeError:
    """What torch says of a norm that is given one value where it needs several, with the path and the mend."""
    scopes = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)][::-1]
    norm = next((scope["self"] for scope in scopes if isinstance(scope.get("self"), nn.Module)), root)
    shape = next((tuple(scope["input"].shape) for scope in scopes if isinstance(scope.get("input"), Tensor)), "this")
    batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    mend = (
        'give batches of 2 or more, use norm="group" or "layer", or call eval()' if batch else "use another norm there"
    )
    shape_error = ShapeError()
    shape_error.source = norm, f"cannot norm {shape}, one value for each mean that it takes; {mend}"
    _put_path_first(shape_error, root)
    return shape_error


def output_shape(module: nn.Module, *input_shapes: Sequence[int]) -> tuple[Any, ...]:
    """Shape of `module(x)` for x of `input_shapes[0]` (batch included), with no data and no arithmetic.

    Lazy sizes (`Dense(None, 5)`, `shortcut="auto"`, torch's Lazy layers) are filled in. Several shapes stand for
    several inputs. A module with several outputs gives a tuple of shapes. No other thread may use the module meanwhile.

    >>> output_shape(nn.Conv2d(3, 16, 3), (2, 3, 32, 32))
    (2, 16, 30, 30)

    Raises:
        ShapeError: a layer cannot take what reaches it; names its path, both shapes and the mend.
    """
    return _shapes_of(_shape_pass(module, input_shapes))


class Call(NamedTuple):
    """One call of a module: where it stands, the module, the shapes of its inputs, the shape of its output."""

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: tuple[Any, ...] = ()


def calls(module: nn.Module, *input_shapes: Sequence[int]) -> list[Call]:
    """Every call inside `module`, in the order in which they end."""
    before = sum(1 for _ in module.modules())
    ended: list[Call] = []
    _shape_pass(module, input_shapes, ended)
    if sum(1 for _ in module.modules()) != before:  # what the pass has made, it has not watched
        _shape_pass(module, input_shapes, ended)
    return ended


def _shape_pass(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None = None) -> Any:
    """What `module` gives for inputs of `shapes`; `ended` becomes its calls."""
    for shape in shapes:
        if not isinstance(shape, Sequence) or not all(isinstance(size, Integral) and size >= 0 for size in shape):
            raise InputError(
                f"output_shape takes shapes of whole numbers with the batch first, as (2, 3, 32, 32), not {shape}"
            )
    with evaluation(module), _filling_pass(), torch.no_grad(), torch.random.fork_rng(devices=[]):
        with suppress(Exception, _Open):
            return _quick_pass(module, shapes, ended)
        return _exact_pass(module, shapes, ended)  # whatever it was: look closely


def _quick_pass(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None) -> Any:
    """The pass on the meta device: a tenth of the time of the exact one, but it can make nothing and names nothing."""
    with on_meta(module), nullcontext() if ended is None else _recorded_calls(module, [], ended), _SameNorm():
        return module(*(torch.empty(tuple(shape), device="meta", dtype=_dtype(module)) for shape in shapes))


@contextmanager
def on_meta(root: nn.Module) -> Iterator[None]:
    """Every parameter and buffer replaced by one without data; they come back."""
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
            for name in tensors.keys() - values.keys():  # made in this very call; the first real one makes it again
                if tensors[name] is not None and tensors[name].is_meta:
                    del tensors[name]


class _SameNorm(TorchFunctionMode):
    """A batch norm that fits gives the shape that it is given; on the meta device torch would do all its arithmetic."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.batch_norm:
            x, mean, variance = args
            numbers = (mean, variance, kwargs["weight"], kwargs["bias"])
            if not kwargs["training"] and all(n is not None and n.shape == x.shape[1:2] for n in numbers):
                return torch.empty_like(x)
        return function(*args, **kwargs)


def _exact_pass(module: nn.Module, shapes: Sequence[Sequence[int]], ended: list[Call] | None) -> Any:
    """The pass on fakes of the tensors as they are, with real ones where sizes are filled in."""
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
    """Whether a shape pass is under way: the one moment in which open sizes may be filled in."""
    return not torch.compiler.is_compiling() and _FILLING.get()


class _Open(BaseException):
    """A size is open, which the quick pass cannot fill in; not for the `except Exception` of a module to catch."""


@contextmanager
def real_tensors() -> Iterator[None]:
    """Within a shape pass: tensors made here are real, fit to be parameters."""
    with unset_fake_temporarily() as mode:
        if mode is None:
            raise _Open
        yield


@contextmanager
def _filling_pass() -> Iterator[None]:
    token = _FILLING.set(True)
    try:
        with quiet_loggers("torch._subclasses.fake_tensor"):  # prints the traceback of a misfit that we name in a line
            yield
    finally:
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
def kept_buffers(root: nn.Module) -> Iterator[None]:
    """A layer that gives itself a new buffer in every call is left with a real one."""
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
    """`running` holds the calls under way, `ended` becomes those that gave an output.

    A module that stands in several places is named after them in turn. Lazy ones are sized with real parameters.
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
            # Before torch's own hook, which would make parameters out of fake tensors.
            with real_tensors():
                module.initialize_parameters(*args, **kwargs)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        while running[-1].module is not module:  # a call that failed, in a module that goes on without it
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
    shapes = ", ".join(str(shape) for shape in call.inputs) or "nothing"
    expected, mend = _expectation(call.module)
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace("FakeTensor", "Tensor")
    if expected and not any(word in reason for word in ("type", "device", "Device")):
        return f"{name} got {shapes}, but expects {expected}; {mend}"
    return f"{name} cannot take {shapes}: {printable(reason)}; change it or what comes before"


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
