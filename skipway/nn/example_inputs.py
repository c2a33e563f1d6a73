"""Inputs for shape inference, built from shapes or from examples."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from skipway.errors import InputError

__all__ = ["Example", "ExampleInputs"]

# A shape, a tensor, or a dictionary or list of these.
Example = Any


class ExampleInputs(NamedTuple):
    """Descriptions of the inputs of one call of a module.

    Attributes:
        inputs: a shape (a sequence of integers), a tensor, or a dictionary or list of these, for each positional input.
        named: the same for each input passed by name; flags, numbers and texts stay as they are.
        dtypes: dtype of all shapes, or one for each positional input; None is the dtype of the parameters.
    """

    inputs: tuple[Example, ...]
    named: Mapping[str, Example]
    dtypes: torch.dtype | Sequence[torch.dtype | None] | None = None

    def check(self) -> None:
        """Check the descriptions.

        Raises:
            InputError: a shape has a negative or fractional size, or the number of dtypes differs from that of inputs.
        """
        if isinstance(self.dtypes, Sequence) and len(self.dtypes) != len(self.inputs):
            raise InputError(
                f"dtypes: expected {len(self.inputs)}, one per input, got {len(self.dtypes)}. Pass one "
                "dtype for all, or one for each."
            )
        for example in self.inputs:
            _check(example)
        for example in self.named.values():
            if not isinstance(example, bool | int | float | str | None):
                _check(example)

    def build(self, device: torch.device | str, dtype: torch.dtype) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and named inputs without values on a device; shapes get `dtype` if there are no dtypes."""
        dtypes = list(self.dtypes) if isinstance(self.dtypes, Sequence) else [self.dtypes] * len(self.inputs)
        inputs = [
            _build(example, device, dtype if own is None else own)
            for example, own in zip(self.inputs, dtypes, strict=True)
        ]
        rest = self.dtypes if isinstance(self.dtypes, torch.dtype) else dtype
        return inputs, {name: _build(example, device, rest) for name, example in self.named.items()}

    def batched(self) -> "ExampleInputs | None":
        """Return the inputs with a batch axis of 1 before every shape, or None if an input is no plain shape."""
        if not self.inputs or self.named:
            return None
        shapes = [tuple(x.shape) if isinstance(x, Tensor) else x for x in self.inputs]
        if not all(_is_shape(shape) for shape in shapes):
            return None
        dtypes = [x.dtype if isinstance(x, Tensor) else None for x in self.inputs]
        is_example = any(dtype is not None for dtype in dtypes)
        return ExampleInputs(tuple((1, *shape) for shape in shapes), {}, dtypes if is_example else self.dtypes)


def _is_shape(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(v, Integral) for v in value)


def _check(example: Example) -> None:
    if isinstance(example, Tensor) or (_is_shape(example) and all(size >= 0 for size in example)):
        return
    if isinstance(example, Mapping):
        for part in example.values():
            _check(part)
    elif isinstance(example, list | tuple) and not any(isinstance(part, int | float) for part in example):
        for part in example:
            _check(part)
    else:
        raise InputError(
            "output_shape: expected shapes of non-negative integers with the batch first, such as (2, 3, 32, 32), "
            f"or example tensors, got {example}. Pass such a shape."
        )


def _build(example: Example, device: torch.device | str, dtype: torch.dtype) -> Any:
    if isinstance(example, Tensor):
        return torch.empty(tuple(example.shape), device=device, dtype=example.dtype)
    if _is_shape(example):
        return torch.empty(tuple(example), device=device, dtype=dtype)
    if isinstance(example, Mapping):
        return {name: _build(part, device, dtype) for name, part in example.items()}
    if isinstance(example, list | tuple):
        return type(example)(_build(part, device, dtype) for part in example)
    return example
