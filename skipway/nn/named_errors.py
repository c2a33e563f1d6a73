"""Errors that name the path of the layer that failed, in the network that was called."""

from collections.abc import Callable
from functools import wraps
from traceback import walk_tb
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from skipway.errors import ShapeError, SkipwayError, is_out_of_memory
from skipway.nn.layer_misfit import find_misfit
from skipway.nn.scripting import scriptable_graph

__all__ = ["NamedErrors", "named_errors", "put_path_first"]

P = ParamSpec("P")
R = TypeVar("R")
_ONE_VALUE = "Expected more than 1"  # "... value per channel when training", "... spatial element when training"
_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # raised by layers of torch for bad inputs


class NamedErrors(nn.Module):
    """Base class of layers whose errors include their path in the network: see `named_errors`."""

    def parts(self) -> "list[tuple[str, nn.Module | str]] | None":
        """Return the constructor arguments for the code of this layer, or None if `repr` is that code."""
        return None

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what torch.jit.script compiles in place of this layer."""
        return scriptable_graph(self)


def named_errors(forward: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method of a NamedErrors layer so that an error names the path from the outermost NamedErrors.

    An error of a well-known layer of torch about its input becomes a ShapeError. Another error of torch keeps its
    type and its message, and gets a note.
    """

    @wraps(forward)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return forward(*args, **kwargs)
        except _ERRORS as error:
            if torch.compiler.is_compiling() or is_out_of_memory(error):
                raise
            root = cast(nn.Module, args[0])
            if isinstance(error, SkipwayError):
                put_path_first(error, root)
                raise
            named_error = _named(root, error)
            if named_error is None:
                raise
            raise named_error from error

    return named


def put_path_first(error: SkipwayError, root: nn.Module, path: str | None = None) -> None:
    """Prefix the message of `error` with the path from `root` of the layer that raised it, `root` by default."""
    if error.source is None:
        error.source = root, str(error).removeprefix(f"{type(root).__name__}: ")
    source, text = error.source
    if path is None:
        path = _path_of(cast(nn.Module, source), root)
    if path is not None:
        error.args = (f"{type(source).__name__}{' at ' if path else ''}{path}: {text}",)


def _named(root: nn.Module, error: Exception) -> ShapeError | None:
    """Return a ShapeError with the path and a fix for an error of a layer of torch; note the path of another layer."""
    layer, inputs = _failed_call(error.__traceback__)
    if layer is None or layer is root:
        return None
    if isinstance(error, ValueError) and str(error).startswith(_ONE_VALUE):
        message = _one_value(layer, inputs)
    elif (misfit := find_misfit(layer, inputs)) is not None:
        message = misfit
    else:
        if isinstance(error, RuntimeError | IndexError) or type(layer).__module__.startswith("torch.nn."):
            _add_note(error, layer, root)  # an error that the user raises is left as it is
        return None
    shape_error = ShapeError()
    shape_error.source = layer, message
    put_path_first(shape_error, root)
    return shape_error


def _add_note(error: Exception, layer: nn.Module, root: nn.Module) -> None:
    """Add the path of `layer` to the traceback; the note of the outermost network replaces those before."""
    path = _path_of(layer, root)
    if path:
        begin = "raised by the layer at "
        notes = [note for note in getattr(error, "__notes__", []) if not note.startswith(begin)]
        error.__notes__ = [*notes, f"{begin}{path} of this {type(root).__name__}: {type(layer).__name__}"]


def _failed_call(traceback: TracebackType | None) -> tuple[nn.Module | None, tuple[Any, ...]]:
    """Return the innermost module whose `forward` raised, and its positional inputs."""
    for frame, _ in reversed(list(walk_tb(traceback))):
        own, *names = frame.f_code.co_varnames[: frame.f_code.co_argcount] or [""]
        module = frame.f_locals.get(own)
        if isinstance(module, nn.Module) and frame.f_code.co_name == "forward":
            first, *others = [frame.f_locals.get(name) for name in names] or [None]
            return module, (first, *(x for x in others if isinstance(x, Tensor | list | tuple | dict)))
    return None, ()


def _path_of(layer: nn.Module, root: nn.Module) -> str | None:
    return next((path for path, module in root.named_modules() if module is layer), None)


def _one_value(norm: nn.Module, inputs: tuple[Any, ...]) -> str:
    """Return a message for torch's error about a norm over a single value."""
    shape = tuple(inputs[0].shape) if inputs else "this"
    batch = isinstance(norm, nn.modules.batchnorm._BatchNorm)
    fix = 'Use batches of 2 or more, norm="group" or "layer", or call eval().' if batch else "Use another norm there."
    return f"cannot normalize {shape}: expected more than one value per mean, got one. {fix}"
