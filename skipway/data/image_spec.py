"""Spec: the preprocessing of a model's input images and the meaning of its outputs.

Every checkpoint and export contains the Spec, so that images are preprocessed at inference as in training.
"""

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast, get_args

from skipway.data.image_limits import MAX_PRESIZE, MAX_SIZE
from skipway.data.output_spec import OUTPUT_FIELDS, OutputSpec, TaskName
from skipway.data.tables.columns import Column, column_to_dict, columns_from_dicts
from skipway.data.tables.table_spec import TableSpec
from skipway.data.value_range import MAX_CHANNELS, ValueRange, checked_range
from skipway.errors import InputError, printable

__all__ = ["INTERPOLATIONS", "RESIZE_MODES", "Interpolation", "ResizeMode", "Spec"]

ResizeMode = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
_INPUT_FIELDS = ("channels", "size", "presize", "mean", "std", "resize_mode", "interpolation", "mirrored")
_OPTIONAL_FIELDS = ("value_range", "tta")  # absent from files if empty or False, as in those of older versions


@dataclass(frozen=True)
class Spec(OutputSpec):
    """Preprocessing of images to inputs (B, channels, size, size), and the meaning of the (B, num_outputs) outputs.

    An image is resized to `presize` x `presize` (antialiased), center-cropped to `size` x `size`, divided by 255 and
    normalized per channel.

    Args:
        channels: 1 (gray), 3 (RGB), or another number of bands up to 16.
        size: height and width of the model's input, in pixels.
        presize: height and width before the center crop, in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        class_names: names of the classes or labels, in the order of the outputs; empty for regression.
        resize_mode: "squash" ignores the aspect ratio, "crop" cuts the longer side, "pad" adds gray bars.
        interpolation: "bilinear" or "bicubic".
        mirrored: True if a horizontally flipped image keeps its class, so that test-time augmentation may flip.
        tta: True if predictions are the mean over the views of `tta_views` (test-time augmentation).
        value_range: (low, high) of each channel, which deep images (16-bit, 32-bit or float) are scaled by, so that
            `low` becomes 0 and `high` becomes 1; empty for images of 8 bits.
        task, target_names, target_mean, target_std, thresholds, label_sep: see `OutputSpec`.
        feature_columns: encoders of the columns next to the images, which are further inputs; empty for none.

    Raises:
        InputError: a value is out of range, or values contradict each other.

    >>> spec = Spec(channels=1, size=8, presize=8, mean=(0.5,), std=(0.5,), class_names=("cat", "dog"))
    >>> spec.input_shape, spec.num_classes
    ((1, 8, 8), 2)
    """

    kind: ClassVar[str] = "a Spec"

    channels: int
    size: int
    presize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bilinear"
    mirrored: bool = False
    value_range: ValueRange = ()
    task: TaskName = "classification"
    target_names: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = ()
    label_sep: str = ""
    feature_columns: tuple[Column, ...] = ()
    tta: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would break equality and hashing
        object.__setattr__(self, "feature_columns", tuple(self.feature_columns))
        self._check_outputs()
        if self.feature_columns:
            self.row_spec.input_shape  # noqa: B018  # refuses columns that cannot be used
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise InputError(
                f"cannot create a Spec: expected 1 to {MAX_CHANNELS} channels, got {self.channels}. Use 1 for gray or "
                "3 for RGB."
            )
        object.__setattr__(self, "value_range", checked_range(self.value_range, self.channels))
        if not 1 <= self.size <= self.presize:
            raise InputError(
                f"cannot create a Spec: expected 1 <= size <= presize, got size {self.size} and presize "
                f"{self.presize}. Set presize to at least size."
            )
        if self.size > MAX_SIZE or self.presize > MAX_PRESIZE:
            raise InputError(
                f"cannot create a Spec of this size: expected size <= {MAX_SIZE} and presize <= {MAX_PRESIZE}, "
                f"got size {self.size} and presize {self.presize}. Use smaller images."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(
                f"cannot create a Spec: expected mean and std of length {self.channels}, got {len(self.mean)} and "
                f"{len(self.std)}. Pass one value per channel."
            )
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise InputError(
                f"cannot create a Spec: expected a finite mean and a positive, finite std, got mean {self.mean} and "
                f"std {self.std}. Compute them from the training images."
            )
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(
                f"cannot create a Spec: expected resize_mode to be one of {', '.join(RESIZE_MODES)}, got "
                f"{printable(self.resize_mode)!r}. Choose one of these."
            )
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"cannot create a Spec: expected interpolation to be one of {', '.join(INTERPOLATIONS)}, got "
                f"{printable(self.interpolation)!r}. Choose one of these."
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one preprocessed image."""
        return (self.channels, self.size, self.size)

    @property
    def row_spec(self) -> TableSpec:
        """Encoder of the feature columns, as a TableSpec with the same outputs.

        Raises:
            InputError: there are no feature columns.
        """
        outputs = {name: getattr(self, name) for name in OUTPUT_FIELDS}
        return TableSpec(self.feature_columns, **{**outputs, "target_names": self.target_names or ("class",)})

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can represent."""
        names = (*_INPUT_FIELDS, *(name for name in _OPTIONAL_FIELDS if getattr(self, name)))
        inputs = {name: getattr(self, name) for name in names}
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in inputs.items()} | self.output_dict()
        if self.feature_columns:
            values["feature_columns"] = [column_to_dict(column) for column in self.feature_columns]
        return values

    @property
    def decode_options(self) -> dict[str, Any]:
        """Keyword arguments of `decode` that resize an image to `presize`."""
        return {
            "size": self.presize,
            "crop_size": self.size,
            "channels": self.channels,
            "resize_mode": self.resize_mode,
            "interpolation": self.interpolation,
            "value_range": self.value_range,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """Create a Spec from the values that `as_dict` returned.

        Args:
            values: the fields; files of older versions lack some.

        Raises:
            InputError: fields are missing or unknown, or a value cannot be used.
        """
        # Files of older versions lack these fields.
        older = {"interpolation": "bilinear", "mirrored": False}
        values = {**older, **values} if isinstance(values, dict) else {}
        expected = {*_INPUT_FIELDS, "class_names"}
        if not expected <= set(values) <= expected | {*OUTPUT_FIELDS, *_OPTIONAL_FIELDS, "feature_columns"}:
            raise InputError(
                f"cannot read a Spec: expected the fields {', '.join(sorted(expected))}, got "
                f"{', '.join(printable(name)[:40] for name in sorted(map(str, values))[:12]) or 'no fields'}. "
                "Use a file saved by skipway."
            )
        try:
            outputs = cls.output_fields(values)
            sizes: dict[str, Any] = {name: operator.index(values[name]) for name in ("channels", "size", "presize")}
            means, stds = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
            columns = columns_from_dicts(values.get("feature_columns", ()))
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"cannot read a Spec: expected numbers for sizes, mean and std, got {printable(error)}. Use a file "
                "saved by skipway."
            ) from None
        return cls(
            **outputs,
            **sizes,
            mean=means,
            std=stds,
            resize_mode=cast(ResizeMode, str(values["resize_mode"])),
            interpolation=cast(Interpolation, str(values["interpolation"])),
            mirrored=values["mirrored"] is True,
            value_range=values.get("value_range", ()),
            tta=values.get("tta") is True,
            feature_columns=columns,
        )
