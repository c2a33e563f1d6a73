"""Precision of training and evaluation: autocast, and convolutions and matrix products without TF32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

__all__ = ["autocast", "feature_precision", "without_tf32"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device_type: str, precision: str) -> AbstractContextManager[Any]:
    """Return the autocast context of a forward pass, or a null context for fp32.

    Args:
        device_type: type of the device, such as "cuda".
        precision: "bf16", "fp16" or "fp32".
    """
    return torch.autocast(device_type, _DTYPES[precision]) if precision in _DTYPES else nullcontext()


def feature_precision(precision: str) -> str:
    """Return the precision of networks without gradients in a run that trains in `precision`: fp32 for fp16.

    Outputs of frozen layers can exceed the largest number of fp16, and no loss scale prevents it.
    """
    return "fp32" if precision == "fp16" else precision


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute fp32 convolutions and matrix products on CUDA in fp32, and restore the setting when the context ends."""
    backends: tuple[Any, ...] = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.fp32_precision = value
