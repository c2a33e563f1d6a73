"""Inputs of a probed network: shapes or examples, as `output_shape` takes them, and batches of tensors.

Shapes include the batch axis.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from skipway.errors import InputError, SkipwayError, reason_of
from skipway.nn.example_inputs import Example, ExampleInputs
from skipway.nn.shape_inference import Call, calls
from skipway.utils.format_text import join_names

__all__ = [
    "Dtypes",
    "call_network",
    "calls_of",
    "check_batch",
    "examples_of",
    "shape_of",
    "shape_text",
    "unfused_attention",
    "with_one_sample",
]

Dtypes = torch.dtype | Sequence[torch.dtype | None] | None


def examples_of(
    inputs: tuple[Example, ...], named: Mapping[str, Example], dtypes: Dtypes, input_shape: Example | None = None
) -> ExampleInputs:
    """Return the inputs of a call; `input_shape` is the older name of the first one."""
    return ExampleInputs(inputs if input_shape is None else (input_shape, *inputs), named, dtypes)


def calls_of(network: nn.Module, examples: ExampleInputs) -> list[Call]:
    """Return every call inside `network`, also those inside the attention layers of torch."""
    with unfused_attention():
        return calls(network, *examples.inputs, dtypes=examples.dtypes, **examples.named)


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Make the transformer layers of torch call their parts, which they do not in evaluation mode."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def with_one_sample(examples: ExampleInputs) -> ExampleInputs:
    """Return the same inputs for a batch of one sample."""

    def cut(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape[1:]) if shape else shape

    def cut_tensor(x: Tensor) -> Tensor:
        return x[:1] if x.dim() else x

    inputs = tuple(_map(x, cut, cut_tensor) for x in examples.inputs)
    return examples._replace(
        inputs=inputs, named={name: _map(x, cut, cut_tensor) for name, x in examples.named.items()}
    )


def shape_of(examples: ExampleInputs) -> Any:
    """Return the shape of a single input; for several inputs, a tuple of shapes, or a dictionary for named ones."""
    shapes = [_map(x, tuple, lambda x: tuple(x.shape)) for x in examples.inputs]
    named = {name: _map(x, tuple, lambda x: tuple(x.shape)) for name, x in examples.named.items()}
    if named:
        shapes.append(named)
    return shapes[0] if len(shapes) == 1 else tuple(shapes)


def shape_text(shapes: Any, separator: str = "x") -> str:
    """Format a shape as "2x3x32x32", and several shapes with their names, divided by commas."""
    if isinstance(shapes, Mapping):
        return ", ".join(f"{name} {shape_text(part, separator)}" for name, part in shapes.items())
    if isinstance(shapes, list | tuple) and any(isinstance(part, list | tuple | Mapping) for part in shapes):
        return ", ".join(shape_text(part, separator) for part in shapes if part != ())  # None has no shape
    return separator.join(map(str, shapes)) if isinstance(shapes, list | tuple) else str(shapes)


def check_batch(x: Any) -> None:
    """Check a batch of inputs.

    Raises:
        InputError: it is no tensor, and no tuple, list or dictionary of tensors with a batch axis.
    """
    tensors = tree_leaves(x)
    if not tensors or not all(isinstance(tensor, Tensor) and tensor.dim() for tensor in tensors):
        raise InputError(
            f"invalid x: expected a batch as a tensor (B, *), got {type(x).__name__}. Stack the samples with "
            "torch.stack, and pass a tuple of tensors to a network with several inputs."
        )


def call_network(network: nn.Module, x: Any) -> Any:
    """Return the output of a network for a batch; a tuple holds one positional input each.

    Raises:
        InputError: the network does not take the batch.
    """
    try:
        return network(*(x if isinstance(x, tuple) else (x,)))
    except SkipwayError:
        raise
    except Exception as error:
        shapes = [str(tuple(tensor.shape)) for tensor in tree_leaves(x)]
        raise InputError(
            f"invalid x: expected inputs that the network takes, got {join_names(shapes, limit=3)}: "
            f"{reason_of(error)}. Pass a tuple with one tensor for each input."
        ) from error


def _map(example: Any, of_shape: Callable[[tuple[int, ...]], Any], of_tensor: Callable[[Tensor], Any]) -> Any:
    """Apply a function to each shape or tensor of an example, and keep its structure."""
    if isinstance(example, Tensor):
        return of_tensor(example)
    if isinstance(example, Mapping):
        return {name: _map(part, of_shape, of_tensor) for name, part in example.items()}
    if not isinstance(example, list | tuple):
        return of_shape(tuple(example)) if isinstance(example, Sequence) and not isinstance(example, str) else example
    if all(isinstance(part, int) for part in example):
        return of_shape(tuple(example))
    return type(example)(_map(part, of_shape, of_tensor) for part in example)
