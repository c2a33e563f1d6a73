"""DecodedImages: the images of a dataset as one array, with their targets and a record of the decoding.

Shapes: N images, P the stored size; `pixels` is (N, P, P, C).
"""

from collections import Counter
from dataclasses import astuple, dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from skipway.data.image_spec import Interpolation, ResizeMode, Spec
from skipway.data.images.stored_pixels import Pixels
from skipway.data.output_spec import TaskName, join_labels
from skipway.data.sources.image_source import Skipped, Source
from skipway.data.sources.table import Table
from skipway.data.strata import strata_of
from skipway.data.tables.join_tables import join_tables, select_rows
from skipway.data.value_range import ValueRange

__all__ = ["DecodeSettings", "DecodedImages", "take_values"]


@dataclass(frozen=True)
class DecodeSettings:
    """Settings for decoding images to (stored_size, stored_size, channels), for models with input size `size`.

    `max_pixels` limits the pixels of a source image; the other fields are those of `decode`.
    """

    size: int
    stored_size: int
    channels: int
    resize_mode: ResizeMode = "squash"
    max_pixels: int = 50_000_000
    interpolation: Interpolation = "bilinear"
    value_range: ValueRange = ()

    @classmethod
    def of(cls, spec: Spec, max_pixels: int) -> "DecodeSettings":
        """Return the settings that decode images as a Spec describes."""
        return cls(
            spec.size,
            spec.presize,
            spec.channels,
            spec.resize_mode,
            max_pixels=max_pixels,
            interpolation=spec.interpolation,
            value_range=spec.value_range,
        )

    @property
    def decode_options(self) -> dict[str, Any]:
        """Keyword arguments of `decode`."""
        return {
            "size": self.stored_size,
            "crop_size": self.size,
            "channels": self.channels,
            "resize_mode": self.resize_mode,
            "interpolation": self.interpolation,
            "value_range": self.value_range,
        }

    @property
    def identity(self) -> tuple[Any, ...]:
        """Values that change the decoded pixels; those of images of 8 bits are equal to those of earlier versions."""
        values = astuple(replace(self, max_pixels=0))
        return values if self.value_range else values[:-1]


@dataclass
class DecodedImages:
    """Decoded images of all splits in one array, with their targets and a record of the decoding.

    `pixels` is (N, P, P, C) uint8, or uint16 of deep images, `keys` the N names used in messages and CSV files.
    `skipped` lists the images that are left out, `notes` counts conversions, `sizes` describes the original sizes. The
    targets and the values of each sample (groups, weights, columns, order) are those of a `Source`, for all splits.
    """

    name: str
    class_names: tuple[str, ...]
    settings: DecodeSettings
    pixels: Pixels
    targets: np.ndarray
    keys: list[str]
    digests: list[str]  # SHA-256 of the image files
    splits: dict[str, np.ndarray]  # indices of the images of each split
    skipped: list[Skipped]
    notes: Counter[str]
    sizes: str
    mirrored: bool  # flips preserve the classes
    warnings: list[str] = field(default_factory=list)
    task: TaskName = "classification"
    target_names: tuple[str, ...] = ()
    label_sep: str = ""
    groups: list[str] | None = None
    weights: np.ndarray | None = None
    columns: Table | None = None
    sums: np.ndarray | None = None  # (N, 2, C) sum and sum of squares of each image's channels
    order: Table | None = None

    @property
    def strata(self) -> np.ndarray:
        """(N,) int64 strata for a stratified split of the training images: see `strata_of`."""
        return strata_of(self.task, self.targets, self.splits["train"])

    def target_text(self, i: int) -> str:
        """Return the target of image i as text: its class, its labels joined by "|", or its numbers."""
        target = self.targets[i]
        if self.task == "classification":
            return self.class_names[target]
        if self.task == "multilabel":
            return join_labels(self.class_names, target)
        return "|".join(f"{number:.9g}" for number in target)

    def output_fields(self) -> dict[str, Any]:
        """Return the fields of OutputSpec for these targets, with statistics of the training images."""
        fields: dict[str, Any] = {
            "task": self.task,
            "class_names": self.class_names,
            "target_names": self.target_names,
            "label_sep": self.label_sep,
        }
        if self.task == "regression":
            targets = self.targets[self.splits["train"]]
            std = targets.std(axis=0)
            fields["target_mean"] = tuple(targets.mean(axis=0).tolist())
            fields["target_std"] = tuple(np.where(std > 0, std, 1.0).tolist())
        return fields


def take_values(
    images: DecodedImages,
    source: Source,
    splits: list[str],
    usable: np.ndarray,
    unreadable: list[tuple[int, Skipped]],
) -> None:
    """Take the targets, groups, weights and columns of the readable images, at the positions `usable`."""
    targets = np.concatenate([source.targets[split] for split in splits])
    images.targets = targets[usable]
    for position, skipped in unreadable:
        label = targets[position]
        class_name = images.class_names[label] if images.task == "classification" else ""
        images.skipped.append(replace(skipped, class_name=class_name))
    if source.groups:
        groups = list(chain.from_iterable(source.groups[split] for split in splits))
        images.groups = [groups[i] for i in usable]
    if source.weights:
        images.weights = np.concatenate([source.weights[split] for split in splits])[usable]
    if source.columns:
        images.columns = select_rows(join_tables([source.columns[split] for split in splits]), usable)
    if source.order:
        images.order = select_rows(join_tables([source.order[split] for split in splits]), usable)
