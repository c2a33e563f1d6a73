"""ImageRows: a batch of images with the encoded columns of a table next to them.

Shapes: images (B, C, S, S) float; rows (B, F + K) float: F numbers, then the indices of K categories.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.sources.table import Table
from skipway.data.tables.columns import Column, fit_column, infer_cell_style
from skipway.data.tables.input_kinds import infer_input_kind
from skipway.data.tables.join_tables import select_rows
from skipway.data.tables.table_spec import Encoded
from skipway.errors import InputError, printable
from skipway.nn.extra_inputs import NamedInputs

__all__ = ["ImageRows", "encode_columns", "fit_feature_columns"]


@dataclass(frozen=True)
class ImageRows(NamedInputs):
    """Inputs of a network for images with columns; it is moved, sliced and counted like a tensor.

    Attributes:
        images: (B, C, S, S).
        rows: (B, F + K).
    """

    images: Tensor
    rows: Tensor

    def split_inputs(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the images, and the rows as the argument `rows` of the layer that takes them."""
        return self.images, {"rows": self.rows}

    def to(self, *args: Any, **kwargs: Any) -> "ImageRows":
        """Move both tensors as `Tensor.to` does. Rows keep their dtype, because bf16 cannot hold all categories."""
        images = self.images.to(*args, **kwargs)
        return ImageRows(images, self.rows.to(images.device))

    def __getitem__(self, samples: Any) -> "ImageRows":
        return ImageRows(self.images[samples], self.rows[samples])

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> torch.Size:
        """Shape of the images."""
        return self.images.shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the images."""
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        """Device of the images."""
        return self.images.device


register_pytree_node(ImageRows, lambda x: ([x.images, x.rows], None), lambda tensors, _: ImageRows(*tensors))


def encode_columns(images: DecodedImages, spec: Spec) -> Encoded:
    """Return the feature columns of all images, encoded as (N, F + K) float32.

    Raises:
        InputError: the images have no columns, a column is missing, or a cell cannot be used.
    """
    if images.columns is None:
        names = ", ".join(printable(column.name) for column in spec.feature_columns[:8])
        raise InputError(
            f"cannot use {printable(images.name)}: expected the columns {names} next to the images, got none. Pass the "
            "table of the images, with --features."
        )
    return spec.row_spec.encode_strict(images.columns, allow_odd=True)


def fit_feature_columns(images: DecodedImages) -> tuple[Column, ...]:
    """Fit the encoders of the feature columns to the training images; constant columns are left out with a warning.

    Kinds and styles are those of the columns of the training and validation images, which are the same in all folds.

    Returns:
        The encoders; empty if the images have no columns.

    Raises:
        InputError: no column varies.
    """
    if images.columns is None:
        return ()
    train = select_rows(images.columns, images.splits["train"])
    whole = [images.splits[split] for split in ("train", "val") if split in images.splits]
    table = select_rows(images.columns, np.sort(np.concatenate(whole)))
    columns = []
    for name, cells in train.columns.items():
        kind, remark = infer_input_kind(name, table)
        if remark:
            images.warnings.append(f"feature column {printable(name)!r}: {remark}{'' if kind else ', left out'}")
        if kind:
            style = infer_cell_style(kind, table.columns[name], table)
            columns.append(fit_column(name, kind, cells, style)[0])
    if "test" in images.splits:
        images.warnings += _odd_cells(columns, select_rows(images.columns, images.splits["test"]))
    if not columns:
        names = ", ".join(map(printable, train.columns))
        raise InputError(
            f"cannot use the features {names}: expected columns whose values vary, got none. Choose other --features."
        )
    return tuple(columns)


def _odd_cells(columns: list[Column], test: Table) -> list[str]:
    """Return warnings about cells of the test images that are no plain values."""
    warnings = []
    for column in columns:
        if column.kind != "category":
            cells = column.read_cells(test.columns[column.name])
            texts = sum(problem.is_text for problem in cells.problems)
            lines = [*cells.remarks, *([f"texts in {printable(column.name)!r}: {texts:,}"] if texts else [])]
            warnings += [f"test images: {line}" for line in lines]
    return warnings
