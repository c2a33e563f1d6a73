"""Spec: the preprocessing of a model's input images and the meaning of its outputs.

Every checkpoint and export contains the Spec, so that images are preprocessed at inference as in training.
"""

import math
import operator
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast, get_args

from skipway.errors import InputError, printable

__all__ = ["INTERPOLATIONS", "MAX_PRESIZE", "MAX_SIZE", "RESIZE_MODES", "Interpolation", "ResizeMode", "Spec"]

ResizeMode = Literal["squash", "crop", "pad"]
Interpolation = Literal["bilinear", "bicubic"]
RESIZE_MODES: tuple[ResizeMode, ...] = get_args(ResizeMode)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
MAX_SIZE = 4096  # pixels per side; memory grows with its square, and a file could request any size
MAX_PRESIZE = 4710  # MAX_SIZE with the crop margin that training stores
_MAX_CLASSES = 100_000
_MAX_NAME_BYTES = 1024


@dataclass(frozen=True)
class Spec:
    """Preprocessing of images to inputs (B, channels, size, size), and the classes of the (B, num_classes) logits.

    An image is resized to `presize` x `presize` (antialiased), center-cropped to `size` x `size`, divided by 255 and
    normalized per channel.

    Args:
        channels: 1 (gray) or 3 (RGB).
        size: height and width of the model's input, in pixels.
        presize: height and width before the center crop, in pixels.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        class_names: names of the classes, in the order of the logits.
        resize_mode: "squash" ignores the aspect ratio, "crop" cuts the longer side, "pad" adds gray bars.
        interpolation: "bilinear" or "bicubic".
        mirrored: True if a horizontally flipped image keeps its class, so that test-time augmentation may flip.

    Raises:
        InputError: a value is out of range, or values contradict each other.

    >>> spec = Spec(channels=1, size=8, presize=8, mean=(0.5,), std=(0.5,), class_names=("cat", "dog"))
    >>> spec.input_shape, spec.num_classes
    ((1, 8, 8), 2)
    """

    channels: int
    size: int
    presize: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    resize_mode: ResizeMode = "squash"
    interpolation: Interpolation = "bilinear"
    mirrored: bool = False

    def __post_init__(self) -> None:
        names = self.class_names
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"cannot create a Spec: expected class_names as a list of strings, got {printable(repr(names)[:60])}. "
                "Pass one string per class."
            )
        for name in ("mean", "std", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would break equality and hashing
        if self.channels not in (1, 3):
            raise InputError(
                f"cannot create a Spec: expected 1 or 3 channels, got {self.channels}. Use 1 for gray or 3 for RGB."
            )
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
        if not 1 <= len(self.class_names) <= _MAX_CLASSES:
            raise InputError(
                f"cannot create a Spec: expected 1 to {_MAX_CLASSES:,} class names, got {len(self.class_names):,}. "
                "Pass one name per class."
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise InputError(
                "cannot create a Spec: expected unique class names, got duplicates. Rename or merge equal classes."
            )
        for name in self.class_names:
            if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
                raise InputError(
                    f"cannot create a Spec: expected class names of at most {_MAX_NAME_BYTES} bytes, got "
                    f"{printable(name[:40])}... Shorten it."
                )

    @property
    def num_classes(self) -> int:
        """Number of classes, and of logits per image."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of one preprocessed image."""
        return (self.channels, self.size, self.size)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON can represent."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def decode_options(self) -> dict[str, Any]:
        """Keyword arguments of `decode` that resize an image to `presize`."""
        return {
            "size": self.presize,
            "crop_size": self.size,
            "channels": self.channels,
            "resize_mode": self.resize_mode,
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """Create a Spec from the values that `as_dict` returned.

        Args:
            values: the fields; files of older versions lack `interpolation` and `mirrored`.

        Raises:
            InputError: fields are missing or unknown, or a value cannot be used.
        """
        names = {field.name for field in fields(cls)}
        older = {"interpolation": "bilinear", "mirrored": False}  # files of older versions lack these fields
        values = {**older, **values} if isinstance(values, dict) else {}
        if set(values) != names:
            raise InputError(
                f"cannot read a Spec: expected the fields {', '.join(sorted(names))}, got "
                f"{', '.join(printable(name)[:40] for name in sorted(map(str, values))[:12]) or 'no fields'}. "
                "Use a file saved by skipway."
            )
        try:
            plain = {name: operator.index(values[name]) for name in ("channels", "size", "presize")}
            means, stds = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"cannot read a Spec: expected numbers for sizes, mean and std, got {printable(error)}. Use a file "
                "saved by skipway."
            ) from None
        return cls(
            **plain,
            mean=means,
            std=stds,
            class_names=values["class_names"],
            resize_mode=cast(ResizeMode, str(values["resize_mode"])),
            interpolation=cast(Interpolation, str(values["interpolation"])),
            mirrored=values["mirrored"] is True,
        )
