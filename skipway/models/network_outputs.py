"""Convert inputs (paths, arrays, DataFrames) to tensors, and the outputs of a network to predictions.

Shapes: (B, C, H, W) -> (B, K) for images of C channels and K outputs; for rows of a table, (B, F) -> (B, K).
"""

import math
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.images.crop_zoom_flip import crop_offset, num_tta_views, tta_views
from skipway.data.images.image_rows import ImageRows
from skipway.data.sources.decode import REPORTED_NOTES, BadImage, DecodedImage, decode, decode_array
from skipway.data.sources.image_source import Content, read_content
from skipway.data.sources.in_memory import image_item, is_frame
from skipway.data.sources.in_memory_source import matrix_table
from skipway.data.sources.read_bytes import read_image_file
from skipway.data.sources.read_table import frame_table, read_table
from skipway.data.sources.table import Table
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.data.tables.table_spec import TableSpec
from skipway.data.value_range import levels_of
from skipway.errors import InputError, NotFiniteError, printable
from skipway.nn.shape_inference import evaluation
from skipway.training.metrics import Averaged
from skipway.training.precision import without_tf32

__all__ = [
    "as_table",
    "batch_size_for",
    "count_views",
    "describe_views",
    "holds_many",
    "image_outputs",
    "pixel_outputs",
    "refuse_columns",
    "prepare_image",
    "require_finite",
    "row_outputs",
    "with_views",
]

_BATCH = 64
_BATCH_BYTES = 1 << 29  # float32 inputs of one batch: images may be large
_ROWS = 4096  # rows of a table per batch


def image_outputs(network: nn.Module, spec: Spec, inputs: Any) -> np.ndarray:
    """Compute probabilities or numbers (N, K) of images, see `OutputSpec.values`.

    Args:
        network: an image model.
        spec: its Spec.
        inputs: paths or arrays.

    Raises:
        InputError: `inputs` is a single image, or an image cannot be read.
        NotFiniteError: the outputs for an image are NaN or infinite.
    """
    is_one_array = isinstance(inputs, np.ndarray) and not holds_many(inputs, spec.channels)
    if isinstance(inputs, str | os.PathLike) or is_one_array:
        raise InputError("predict: expected a list of images, got a single image. Pass [image].")
    images = list(inputs)
    parts, batch_size = [], batch_size_for(spec, _BATCH)
    for begin in range(0, len(images), batch_size):
        pixels = [prepare_image(image, spec) for image in images[begin : begin + batch_size]]
        parts.append(pixel_outputs(network, spec, pixels))
    return require_finite(np.concatenate(parts) if parts else np.empty((0, spec.num_outputs), np.float32))


def require_finite(outputs: np.ndarray) -> np.ndarray:
    """Check that outputs (N, K) are finite, and return them.

    Raises:
        NotFiniteError: an output is NaN or infinite; the message names the first such input.
    """
    bad = np.flatnonzero(~np.isfinite(outputs).all(axis=1))
    if len(bad):
        raise NotFiniteError(
            f"cannot predict: expected finite outputs of the model, got NaN or infinity for {len(bad):,} of "
            f"{len(outputs):,} inputs, first for number {bad[0] + 1:,}. Use precision fp32, or train the model again "
            "with a lower --lr."
        )
    return outputs


def pixel_outputs(
    network: nn.Module,
    spec: Spec,
    pixels: Sequence[np.ndarray],
    *,
    rows: np.ndarray | None = None,
    tta: bool | None = None,
) -> np.ndarray:
    """Compute probabilities or numbers (N, K) of prepared images, see `OutputSpec.values`.

    Args:
        network: an image model.
        spec: its Spec.
        pixels: images, each (S, S, C) uint8, uint16 of deep images, or levels in [0, 255].
        rows: (N, F + K) encoded feature columns of the images, for a model that has them.
        tta: average over several views of each image; None for the value of the Spec.

    Returns:
        The values, NaN for an image with outputs that are not finite.

    Raises:
        InputError: the model has feature columns, and `rows` is None.
    """
    parameter = next(network.parameters())
    device = parameter.device
    x = torch.from_numpy(levels_of(np.stack(pixels))).permute(0, 3, 1, 2).to(device).float()
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
    model = with_views(network, spec, tta)
    inputs: Any = ((x / 255 - mean) / std).to(parameter.dtype)
    if rows is not None:
        inputs = ImageRows(inputs, torch.from_numpy(rows).to(device))
    with evaluation(network), without_tf32(), torch.inference_mode():
        return _values(spec, model(inputs).float().cpu())


def batch_size_for(spec: Spec, most: int) -> int:
    """Return the batch size for images of `spec`: `most`, or fewer if the images are large."""
    return max(1, min(most, _BATCH_BYTES // (4 * math.prod(spec.input_shape))))


def refuse_columns(spec: Spec, action: str, remedy: str) -> None:
    """Raise an error if the model of `spec` needs feature columns next to its images.

    Args:
        spec: Spec of an image model.
        action: what works on images alone, such as "export"; the error starts with it.
        remedy: what to do instead, as a sentence.

    Raises:
        InputError: the model has feature columns.
    """
    if spec.feature_columns:
        names = ", ".join(printable(column.name) for column in spec.feature_columns[:8])
        raise InputError(
            f"cannot {action}: expected a model of images alone, got one with the feature columns {names}. {remedy}"
        )


def with_views(network: nn.Module, spec: Spec, tta: bool | None = None) -> nn.Module:
    """Wrap an image network to average its predictions over the views of `crop_zoom_flip.tta_views`, if asked to.

    Args:
        network: an image model.
        spec: its Spec.
        tta: average over the views; None for the value of the Spec.
    """
    is_averaged = spec.tta if tta is None else tta
    return Averaged(network, partial(_views, mirrored=spec.mirrored), spec.task) if is_averaged else network


def count_views(spec: Spec | TableSpec | None, tta: bool | None = None) -> int:
    """Return the number of views that `with_views` averages over: 1 for a single one."""
    if not isinstance(spec, Spec) or not (spec.tta if tta is None else tta):
        return 1
    return num_tta_views(spec.size, spec.mirrored)


def describe_views(views: int) -> list[str]:
    """Return the console line about predictions that are the mean over several views; none for a single view."""
    return [f"predictions: mean over {views} views of each image"] if views > 1 else []


def _views(x: Tensor | ImageRows, mirrored: bool) -> list[Any]:
    """Return the views of a batch, each with the feature columns of its images."""
    if isinstance(x, ImageRows):
        return [ImageRows(view, x.rows) for view in tta_views(x.images, mirrored=mirrored)]
    return list(tta_views(x, mirrored=mirrored))


def row_outputs(network: nn.Module, spec: TableSpec, x: np.ndarray) -> np.ndarray:
    """Compute probabilities or numbers (N, K), see `OutputSpec.values`, for encoded rows x (N, F).

    A row has outputs that are not finite if those of the network are not.
    """
    parameter = next(network.parameters())
    with evaluation(network), without_tf32(), torch.inference_mode():
        parts = [network(part.to(parameter.device, parameter.dtype)) for part in torch.from_numpy(x).split(_ROWS)]
        return _values(spec, torch.cat(parts).cpu().double() if parts else torch.empty(0, spec.num_outputs))


def _values(spec: Spec | TableSpec, outputs: Tensor) -> np.ndarray:
    """Convert outputs (N, K) on the CPU to values, NaN for a sample with outputs that are not finite."""
    is_finite = outputs.isfinite().all(1, keepdim=True)  # the sigmoid of infinity is 1
    return spec.values(outputs).masked_fill(~is_finite, math.nan).numpy()


def as_table(inputs: Any, layout: TableLayout = DETECTED) -> Table:
    """Convert a DataFrame, a matrix (N, F) of numbers, the path of a table file, or a Table to a Table.

    Args:
        inputs: the rows.
        layout: lines of text tables and workbooks that are set; the others are detected.

    Raises:
        InputError: the rows cannot be read.
    """
    if isinstance(inputs, str | os.PathLike):
        return read_table(Path(inputs), layout)
    layout.refuse_unused("these rows", "objects")
    if isinstance(inputs, Table):
        return inputs
    if is_frame(inputs):
        return frame_table(inputs)
    if isinstance(inputs, np.ndarray | Tensor) and inputs.ndim == 2:
        return matrix_table(inputs)
    raise InputError(
        "predict: expected a DataFrame, a matrix (N, F) or the path of a .csv or .parquet file, got "
        f"{type(inputs).__name__}. Pass one of these."
    )


def prepare_image(
    source: Any,
    spec: Spec,
    root: Path | None = None,
    *,
    suffix: str = "",
    on_note: Callable[[str], None] | None = None,
) -> np.ndarray:
    """Read one image as the stored pixels (S, S, C) that the network of `spec` expects.

    Args:
        source: a path, a PIL image, a tensor (C, H, W) or an array. The array is uint8, or holds real numbers if the
            Spec has a value range. A callable returns an array, the bytes of a file, or the reason why it has none.
        spec: conversion of the image to pixels.
        root: folder that links in the path must not leave.
        suffix: suffix of the file that a callable reads; a path has its own.
        on_note: called with a note on an image that is nearly black or lacks values. Defaults to a warning.

    Raises:
        InputError: the image cannot be read.
    """
    name = "an array" if isinstance(source, np.ndarray | Tensor | Image) else printable(source)
    try:
        item = image_item(source) if isinstance(source, Image | Tensor) else source
        is_path = isinstance(item, str | os.PathLike)
        data: Content = read_image_file(Path(str(item)), root) if is_path else read_content(item)
        if isinstance(data, InputError):
            raise data
        if isinstance(data, np.ndarray):
            image = _decode_checked(data, spec)
        else:
            image = decode(data, **spec.decode_options, suffix=Path(str(item)).suffix if is_path else suffix)
    except BadImage as error:
        raise InputError(f"cannot use {name}: {error}") from None
    for note in image.notes:
        if note in REPORTED_NOTES and on_note is not None:
            on_note(note)
        elif note in REPORTED_NOTES:
            warnings.warn(f"{name}: {note}", stacklevel=2)
    start = crop_offset(spec.presize, spec.size)
    return image.pixels[start : start + spec.size, start : start + spec.size]


def holds_many(array: np.ndarray, channels: int) -> bool:
    """Return True if the first axis counts images: (N, H, W) or (N, H, W, C), but not one image (H, W, C)."""
    return array.ndim == 4 or array.dtype == object or (array.ndim == 3 and array.shape[2] not in (1, 3, channels))


def _decode_checked(source: np.ndarray, spec: Spec) -> DecodedImage:
    if spec.value_range or spec.channels not in (1, 3):
        is_readable = bool(spec.value_range) or source.dtype == np.uint8
    else:
        is_image = source.ndim > 1 and 0 not in source.shape and source.shape[2:] in ((), (1,), (3,))
        is_readable = is_image and source.dtype == np.uint8
    if not is_readable:
        raise InputError(
            f"image array: expected uint8 of shape (H, W), (H, W, 1) or (H, W, {max(3, spec.channels)}), got "
            f"{source.dtype} of shape {source.shape}. Convert the array."
        )
    return decode_array(source, **spec.decode_options)
