"""The C library of feed-forward networks, mlp.c."""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

from skipway.kernels.build import call_c, library

__all__ = ["BLOCK", "PARTS", "call_mlp", "has_mlp_library"]

BLOCK, PARTS = 64, 16  # rows of a block, and numbers that are computed at once, as in mlp.c


def has_mlp_library() -> bool:
    """Return True if the C library can be loaded. The first call compiles it."""
    return _library() is not None


def call_mlp(name: str, *values: Any) -> None:
    """Call the C function `name` with the addresses of tensors."""
    call_c(getattr(_library(), name), *values)


@cache
def _library() -> ctypes.CDLL | None:
    functions = library(Path(__file__).with_name("mlp.c"))
    if functions is not None:
        pointer, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
        functions.first_layer_forward.argtypes = [*[pointer] * 5, real, *[pointer] * 13]
        functions.first_layer_backward.argtypes = [*[pointer] * 4, real, *[pointer] * 16]
        functions.block_forward.argtypes = [*[pointer] * 8, real, real, *[pointer] * 3, number, real, *[pointer] * 5]
        functions.block_backward.argtypes = [*[pointer] * 6, real, *[pointer] * 11]
        for side in ("forward", "backward"):
            getattr(functions, f"first_layer_{side}").restype = None
            getattr(functions, f"block_{side}").restype = None
    return functions
