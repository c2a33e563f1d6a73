"""Inputs of predict that a table names: an image for each row, with its feature columns if the model has them."""

import os
from pathlib import Path
from typing import Any

from skipway.commands.prediction_inputs import PredictionInput, list_inputs
from skipway.data.image_spec import Spec
from skipway.data.image_tables.read_tables import is_table_file, read_file
from skipway.data.image_tables.unlabeled_images import unlabeled_images
from skipway.data.sources.in_memory import is_frame
from skipway.data.sources.parquet_columns import packs_images
from skipway.data.sources.read_table import frame_table
from skipway.data.table_layout import DETECTED, TableLayout
from skipway.errors import InputError, printable
from skipway.utils.console import Console

__all__ = ["list_image_inputs"]


def list_image_inputs(
    sources: Any, spec: Spec, console: Console, layout: TableLayout = DETECTED
) -> list[PredictionInput]:
    """List the inputs of an image model, in order; a table becomes the images that its rows name.

    Args:
        sources: tables or DataFrames of images, or what `list_inputs` accepts.
        spec: Spec of the model; its feature columns must be in each table.
        console: prints remarks.
        layout: lines of text tables and workbooks that are set; the others are detected.

    Raises:
        InputError: the only table names no images or lacks a column, or the model has feature columns and gets no
            table.
    """
    is_one = isinstance(sources, str | os.PathLike) or is_frame(sources)
    parts = [sources] if is_one else sources
    are_tables = list(map(_is_table, parts)) if isinstance(parts, list | tuple) else [False]
    if spec.feature_columns and not all(are_tables):
        names = ", ".join(printable(column.name) for column in spec.feature_columns[:8])
        raise InputError(
            f"cannot predict: expected a table that names images, with the columns {names}, got images alone. Pass a "
            ".csv file or a DataFrame."
        )
    if not any(are_tables):
        layout.refuse_unused("these inputs", "images without a table")
        return list_inputs(sources, console, spec.channels)
    inputs: list[PredictionInput] = []
    for part, is_table in zip(parts, are_tables, strict=True):
        try:
            inputs += _rows_of(part, spec, console, layout) if is_table else list_inputs([part], console, spec.channels)
        except InputError as error:
            if len(parts) == 1 or not isinstance(part, str | os.PathLike):
                raise
            inputs.append(PredictionInput(os.fspath(part), error))
    return inputs


def _is_table(source: Any) -> bool:
    if not isinstance(source, str | os.PathLike):
        return is_frame(source)
    path = Path(source)
    if path.is_file() and packs_images(path):
        raise InputError(
            f"cannot predict {printable(path)}: expected image files or a table that names them, got a Parquet file of "
            "images. Evaluate it with `skipway evaluate`, or write its images to files."
        )
    return is_table_file(path.name)


def _rows_of(source: Any, spec: Spec, console: Console, layout: TableLayout) -> list[PredictionInput]:
    """List the images of a table, each with its encoded feature columns."""
    table = frame_table(source) if is_frame(source) else read_file(Path(source), layout)
    root = Path() if is_frame(source) else Path(source).parent
    images = unlabeled_images(table, root)
    if not spec.feature_columns:
        return [PredictionInput(image.name, image.content) for image in images]
    encoded = spec.row_spec.encode(table)
    for line in [*table.notes, *encoded.remarks()]:
        console.print(f"{printable(table.name)}: {line}")
    errors, remarks = encoded.errors(), encoded.row_remarks()
    return [
        PredictionInput(
            image.name, InputError(errors[i]) if i in errors else image.content, encoded.x[i], remarks.get(i, "")
        )
        for i, image in enumerate(images)
    ]
