"""Resampling and normalization of image batches, in C if there is a compiler, else with Pillow and torch.

Both versions are equal to the last bit. Zooms in C are for 1 or 3 channels of 8 bits.
Shapes: N cached images of P x P x C bytes, batches of B images of S x S.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skipway.kernels.build import has_openmp, library
from skipway.kernels.kernel_eligibility import Kernel, kernels_enabled

__all__ = ["NORMALIZE", "ZOOM"]

_CHUNK = 48  # values per iteration of the kernel: a multiple of 1, 2, 3, 4, 6, 8, 12 and 16 channels


def _plain_zoom(pixels: np.ndarray, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int) -> np.ndarray:
    """Crop, resize (antialiased bilinear) and flip images to (B, S, S, C) of the same type.

    Args:
        pixels: (N, P, P, C) uint8, or uint16 of deep images.
        rows: (B,) indices of images.
        boxes: (B, 4) left, top, right, bottom of each crop.
        flips: (B,) flags of a horizontal flip.
        size: S.
    """
    zoomed = np.empty((len(rows), size, size, pixels.shape[3]), pixels.dtype)
    for i, box in enumerate(boxes.tolist()):
        small = _resized(pixels[rows[i]], size, tuple(box))
        zoomed[i] = small[:, ::-1] if flips[i] else small
    return zoomed


def _resized(array: np.ndarray, size: int, box: tuple[float, float, float, float]) -> np.ndarray:
    """Resize a crop of one image (P, P, C) to (S, S, C); Pillow reads RGB at once, and other channels one by one."""
    if array.dtype == np.uint8 and array.shape[2] == 3:
        return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BILINEAR, box))
    is_deep = array.dtype != np.uint8
    planes = [np.ascontiguousarray(array[:, :, c], np.float32 if is_deep else None) for c in range(array.shape[2])]
    small = [Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR, box) for plane in planes]
    resized = np.stack([np.asarray(plane) for plane in small], axis=2)
    return np.rint(resized) if is_deep else resized


def _fast_zoom(pixels: np.ndarray, rows: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int) -> np.ndarray:
    zoomed = np.empty((len(rows), size, size, pixels.shape[3]), np.uint8)
    rows, boxes = np.ascontiguousarray(rows, np.int64), np.ascontiguousarray(boxes, np.float32)
    flips = np.ascontiguousarray(flips)

    def zoom(begin: int, end: int, threads: int) -> int:
        arrays = (array[begin:end].ctypes.data for array in (rows, boxes, flips))
        inputs = pixels.ctypes.data, *pixels.shape[2:], *arrays, end - begin, size, threads
        return int(_library().zoomed(*inputs, zoomed[begin:end].ctypes.data))

    threads = torch.get_num_threads()
    if has_openmp() or threads == 1:
        is_done = zoom(0, len(rows), threads)
    else:  # threads of Python, each on a part of the images
        bounds = [len(rows) * part // threads for part in range(threads + 1)]
        with ThreadPoolExecutor(threads) as pool:
            is_done = all(pool.map(partial(zoom, threads=1), bounds[:-1], bounds[1:]))
    if not is_done:
        raise MemoryError("cannot resize images: not enough memory for the buffers of one image")
    return zoomed


def _zoom_fits(pixels: np.ndarray, *_: object) -> bool:
    whole = pixels.dtype == np.uint8 and pixels.shape[1] == pixels.shape[2] and pixels.flags.c_contiguous
    return whole and pixels.shape[3] in (1, 3) and kernels_enabled() and _library() is not None


def _plain_normalize(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """Compute x * factor + offset as float32: (B, C, S, S), (1, C, 1, 1), (1, C, 1, 1) -> (B, C, S, S)."""
    return (x.float() if x.dtype == torch.uint8 else x).mul_(factor).add_(offset)


def _fast_normalize(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=torch.float32)
    inputs = x.data_ptr(), x.numel(), x.shape[1], factor.data_ptr(), offset.data_ptr()
    _library().normalized(*inputs, torch.get_num_threads(), out.data_ptr())
    return out


def _normalize_fits(x: Tensor, *_: object) -> bool:
    return (
        x.dtype == torch.uint8
        and x.device.type == "cpu"
        and _CHUNK % x.shape[1] == 0
        and x.is_contiguous(memory_format=torch.channels_last)
        and kernels_enabled()
        and _library() is not None
    )


@cache
def _library() -> Any:
    # Without fused multiply-add: torch rounds the product before the addition.
    functions = library(Path(__file__).with_name("image_ops.c"), "-ffp-contract=off")
    if functions is not None:
        number, pointer = ctypes.c_int64, ctypes.c_void_p
        functions.zoomed.argtypes = [pointer, number, number, *[pointer] * 3, *[number] * 3, pointer]
        functions.zoomed.restype = ctypes.c_int
        functions.normalized.argtypes = [pointer, number, number, pointer, pointer, number, pointer]
        functions.normalized.restype = None
    return functions


ZOOM = Kernel(_plain_zoom, _fast_zoom, _zoom_fits)  # (pixels, rows, boxes, flips, size)
NORMALIZE = Kernel(_plain_normalize, _fast_normalize, _normalize_fits)  # (x, factor, offset)
