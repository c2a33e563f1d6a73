"""What is done to the pixels of every batch, by C where there is a compiler, by Pillow and torch elsewhere.

Both give the same, to the last bit. Shapes: N packed images of P x P x C bytes, B of them in a batch, S x S.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.kernels.build import library
from skipway.kernels.kernel_eligibility import Kernel, kernels_enabled

__all__ = ["NORMALIZE", "ZOOM"]


def _plain_zoom(pixels: np.ndarray, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int) -> np.ndarray:
    """The parts `boxes` (B, 4), left, top, right, bottom, of images `rows`, mirrored where `flips` says so, as
    (B, S, S, C) bytes by antialiased bilinear resampling."""
    zoomed = np.empty((len(rows), size, size, pixels.shape[3]), np.uint8)
    for i, box in enumerate(boxes.tolist()):
        array = pixels[rows[i]]
        image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
        small = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box)).reshape(zoomed.shape[1:])
        zoomed[i] = small[:, ::-1] if flips[i] else small
    return zoomed


def _fast_zoom(pixels: np.ndarray, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int) -> np.ndarray:
    zoomed = np.empty((len(rows), size, size, pixels.shape[3]), np.uint8)
    rows, boxes = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(boxes, np.float32)
    flips = np.ascontiguousarray(flips)
    inputs = pixels.ctypes.data, *pixels.shape[2:], *(array.ctypes.data for array in (rows, boxes, flips))
    if not _library().zoomed(*inputs, len(rows), size, torch.get_num_threads(), zoomed.ctypes.data):
        raise MemoryError("zooming needs memory for an image, and there is none")
    return zoomed


def _zoom_fits(pixels: np.ndarray, *_: object) -> bool:
    whole = pixels.dtype == np.uint8 and pixels.shape[1] == pixels.shape[2] and pixels.flags.c_contiguous
    return whole and pixels.shape[3] in (1, 3) and kernels_enabled() and _library() is not None


def _plain_normalize(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """(B, C, S, S) bytes or floats -> floats: times `factor`, plus `offset`, both (1, C, 1, 1)."""
    return (x.float() if x.dtype == torch.uint8 else x).mul_(factor).add_(offset)


def _fast_normalize(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.float32)
    inputs = x.data_ptr(), x.numel(), x.shape[1], factor.data_ptr(), offset.data_ptr()
    _library().normalised(*inputs, torch.get_num_threads(), out.data_ptr())
    return out


def _normalize_fits(x: Tensor, *_: object) -> bool:
    return (
        x.dtype == torch.uint8
        and x.device.type == "cpu"
        and x.shape[1] in (1, 3)
        and x.is_contiguous(memory_format=torch.channels_last)
        and kernels_enabled()
        and _library() is not None
    )


@cache
def _library() -> Any:
    # Products are rounded before they are added to, as torch does it.
    functions = library(Path(__file__).with_name("image_ops.c"), "-ffp-contract=off")
    if functions is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        functions.zoomed.argtypes = [pointer, number, number, *[pointer] * 3, *[number] * 3, pointer]
        functions.zoomed.restype = ctypes.c_int
        functions.normalised.argtypes = [pointer, number, number, pointer, pointer, number, pointer]
        functions.normalised.restype = None
    return functions


ZOOM = Kernel(_plain_zoom, _fast_zoom, _zoom_fits)  # (pixels, rows, boxes, flips, size)
NORMALIZE = Kernel(_plain_normalize, _fast_normalize, _normalize_fits)  # (x, factor, offset)
