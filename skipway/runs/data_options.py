"""DataOptions: the options of a Recipe about its data, as plain values.

It does not import torch, so that `skipway --help` is fast.
"""

from dataclasses import dataclass
from typing import Literal

from skipway.data.column_roles import ColumnRoles
from skipway.data.image_limits import MAX_SIZE
from skipway.data.table_layout import TableLayout
from skipway.runs.option_field import option

__all__ = ["DataOptions"]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data of a training run, and what its columns mean."""

    data: str | None = option("Data", None, "Image folder, archive, table, Parquet files, built-in or Hub dataset.")
    target: str | None = option(
        "Data", None, "Table columns to predict, separated by commas.", effective="none; required for table files"
    )
    task: Literal["auto", "classification", "multilabel", "regression"] = option(
        "Data", "auto", "Task; auto infers it from the targets of a table."
    )
    features: str | None = option(
        "Data", None, "Table columns to learn from, separated by commas.", effective="all; none of images"
    )
    ignore: str | None = option("Data", None, "Table columns to leave out, separated by commas.", effective="none")
    id: str | None = option("Data", None, "Table columns that name rows; predict copies them.", effective="none")
    skip_rows: int | None = option(
        "Data", None, "Lines above the header of a text table or worksheet.", effective="detected", minimum=0
    )
    header: bool | None = option(
        "Data", None, "Column names in the first line of a text table.", effective="yes; a line like a row is an error"
    )
    categorical: str | None = option(
        "Data", None, "Table columns to read as categories, separated by commas.", effective="inferred"
    )
    numeric: str | None = option(
        "Data", None, "Table columns to read as numbers, separated by commas.", effective="inferred"
    )
    date: str | None = option(
        "Data", None, "Table columns to read as dates, separated by commas.", effective="inferred"
    )
    missing: str | None = option(
        "Data", None, "Further texts for missing values, as VALUE or COLUMN=VALUE.", effective="none"
    )
    columns: str | None = option(
        "Data", None, "YAML file with the kind of each column, as check writes it.", effective="none"
    )
    label_sep: str | None = option("Data", None, "Text between several labels in the target column.", effective="none")
    image_column: str | None = option("Data", None, "Table column with names of image files.", effective="detected")
    image_root: str | None = option(
        "Data", None, "Folder of the image files of a table.", effective="the table's folder"
    )
    label_regex: str | None = option(
        "Data", None, "Pattern in file names whose first group is the class.", effective="none"
    )
    split_column: str | None = option(
        "Data", None, "Table column with train, val and test.", effective="detected for images"
    )
    split_by: str | None = option("Data", None, "Column of times or numbers; the last rows validate.", effective="none")
    group_column: str | None = option("Data", None, "Table column of groups that stay in one split.", effective="none")
    group_regex: str | None = option(
        "Data", None, "Pattern in image paths whose first group stays in one split.", effective="none"
    )
    weight_column: str | None = option("Data", None, "Table column of sample weights.", effective="none")
    img_size: int | str | None = option(
        "Data",
        None,
        "Input height and width, or FIRST:FULL for progressive resizing, such as 128:224.",
        effective="images up to 96 px: their own; larger: 32:48 to 64:128 from scratch, 128 to 288 pretrained",
        minimum=1,
        maximum=MAX_SIZE,
    )
    resize_mode: Literal["auto", "squash", "crop", "pad"] = option(
        "Data", "auto", "Conversion of images to squares; auto decides by their aspect ratios."
    )
    val_fraction: float = option(
        "Data",
        0.2,
        "Validation share without a validation split, at most 5,000 samples.",
        minimum=0.001,
        maximum=0.9,
    )
    folds: int | None = option(
        "Data",
        None,
        "Number of cross-validation folds, which share --time-limit.",
        effective="none",
        minimum=2,
        maximum=1000,
    )
    fold: int | None = option(
        "Data", None, "Single fold of --folds to train, counted from 1.", effective="all", minimum=1, maximum=1000
    )
    cache_size: float | None = option(
        "Data",
        None,
        "Cache limit in GB; larger image sets are decoded per batch.",
        effective="SKIPWAY_CACHE_SIZE or 20; 0 disables",
        minimum=0,
        maximum=1_000_000,
    )

    @property
    def roles(self) -> ColumnRoles:
        """Roles of the columns of a table, as these options set them."""
        return ColumnRoles.of(vars(self))

    @property
    def layout(self) -> TableLayout:
        """Lines of a text table, as these options set them."""
        return TableLayout(skip_rows=self.skip_rows, header=self.header)
