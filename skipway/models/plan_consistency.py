"""Compare the plan of a network with its tensors and its Spec, before loading or saving."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from skipway.data.image_spec import Spec
from skipway.data.tables.table_spec import TableSpec
from skipway.utils.format_text import count_of

__all__ = ["plan_mismatch"]

_SHOWN = 5


def plan_mismatch(
    plan: dict[str, Any],
    spec: Spec | TableSpec,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> str:
    """Describe the first differences between a plan and the tensors and Spec stored with it.

    Args:
        plan: values that define the network.
        spec: meaning of its inputs and outputs.
        expected: state of the network that `plan` builds; tensors on the meta device suffice.
        tensors: state to compare with it.

    Returns:
        The predicate of a sentence about the network, or an empty string if everything agrees.
    """
    differences = _state_differences(expected, tensors)
    if differences:
        return f"does not match its plan: {'; '.join(differences[:_SHOWN])}"
    planned_inputs, planned_classes = _inputs_of_plan(plan), plan.get("num_classes")
    spec_inputs, spec_classes = _inputs_of_spec(plan, spec), spec.num_classes
    # Without a classifier, a Spec describes only the inputs; it keeps the names for the next one.
    if planned_inputs == spec_inputs and planned_classes in (0, spec_classes):
        return ""
    return (
        f"has a plan for {planned_inputs} and {planned_classes} classes, but a Spec for {spec_inputs} and "
        f"{spec_classes} classes"
    )


def _state_differences(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    differences = []
    for name, value in expected.items():
        if name not in tensors:
            differences.append(f"{name} is missing, expected {tuple(value.shape)}")
        elif tensors[name].shape != value.shape:
            differences.append(f"{name} {tuple(tensors[name].shape)}, expected {tuple(value.shape)}")
        elif tensors[name].dtype != (expected_dtype := _expected_dtype(value, floats)):
            differences.append(f"{name} is {_dtype(tensors[name].dtype)}, expected {_dtype(expected_dtype)}")
    return differences + [f"{name} is unexpected" for name in tensors if name not in expected]


def _expected_dtype(value: Tensor, floats: set[torch.dtype]) -> torch.dtype:
    """Return the dtype of `value`, or float64 if all tensors are stored in float64, as by the estimators."""
    return torch.float64 if value.is_floating_point() and floats == {torch.float64} else value.dtype


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _inputs_of_plan(plan: dict[str, Any]) -> str:
    """Describe the inputs of the network of `plan`."""
    if "in_features" in plan:
        return _numbers(plan["in_features"], plan.get("categories", ()))
    return count_of(plan.get("in_chans", 0), "channel")


def _inputs_of_spec(plan: dict[str, Any], spec: Spec | TableSpec) -> str:
    """Describe the inputs of `spec` in the terms of the family of `plan`."""
    if isinstance(spec, TableSpec):
        return _numbers(math.prod(spec.input_shape), spec.categories)
    if "in_features" in plan:
        return _numbers(math.prod(spec.input_shape), ())
    return count_of(spec.channels, "channel")


def _numbers(count: int, categories: Any) -> str:
    return f"{count} numbers" + (f" with the categories {', '.join(map(str, categories))}" if categories else "")
