"""Spec: what a network expects to be given and what its outputs mean.

It travels with every file that leaves a run, so that an image met years later is prepared as in training.
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
MAX_SIZE = 4096  # pixels of a side, of what is trained and of what a file may ask for: memory goes with its square
MAX_PRESIZE = 4710  # the same with the room to crop from that training stores
_MAX_CLASSES = 100_000
_MAX_NAME_BYTES = 1024


@dataclass(frozen=True)
class Spec:
    """Inputs (B, channels, size, size) made from images, and the meaning of the (B, len(class_names)) outputs.

    An image is brought to `presize` x `presize` by `resize_mode` and `interpolation` (antialiased), its centre
    `size` x `size` is cut out, divided by 255, and normalised with `mean` and `std` per channel. `mirrored` says that
    an image seen in a mirror is still of its class, so that a prediction may look at both.
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
            raise InputError("a Spec's class names are a list of texts, one for each class")
        for name in ("mean", "std", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list would not equal the same as a tuple
        if self.channels not in (1, 3):
            raise InputError(f"a Spec has 1 or 3 channels, not {self.channels}")
        if not 1 <= self.size <= self.presize:
            raise InputError(f"a Spec needs 1 <= size <= presize, not size {self.size} and presize {self.presize}")
        if self.size > MAX_SIZE or self.presize > MAX_PRESIZE:
            raise InputError(
                f"cannot use a Spec of these sizes: expected size up to {MAX_SIZE} and presize up to {MAX_PRESIZE}, "
                f"got {self.size} and {self.presize}. Train on smaller images."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise InputError(f"a Spec with {self.channels} channels needs as many means and standard deviations")
        if not all(math.isfinite(m) for m in self.mean) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise InputError("a Spec needs finite means and positive standard deviations")
        if self.resize_mode not in RESIZE_MODES:
            raise InputError(f"a Spec's resize_mode is one of {', '.join(RESIZE_MODES)}, not {self.resize_mode!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"a Spec's interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}"
            )
        if not 1 <= len(self.class_names) <= _MAX_CLASSES:
            raise InputError(f"a Spec holds 1 to {_MAX_CLASSES} class names, not {len(self.class_names)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise InputError("a Spec's class names must differ from each other")
        for name in self.class_names:
            if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
                raise InputError(f"the class name {printable(name[:40])}... is longer than {_MAX_NAME_BYTES} bytes")

    @property
    def num_classes(self) -> int:
        """How many classes the outputs tell apart."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one prepared image."""
        return (self.channels, self.size, self.size)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @property
    def decode_options(self) -> dict[str, Any]:
        """Return how an image becomes pixels of `presize`, as the arguments of `decode`."""
        return {
            "size": self.presize,
            "crop_size": self.size,
            "channels": self.channels,
            "resize_mode": self.resize_mode,
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """The Spec that `as_dict` wrote."""
        names = {field.name for field in fields(cls)}
        older = {"interpolation": "bilinear", "mirrored": False}  # which files once lacked
        values = {**older, **values} if isinstance(values, dict) else {}
        if set(values) != names:
            raise InputError(f"a Spec has the fields {', '.join(sorted(names))}; the file's differ")
        try:
            plain = {name: operator.index(values[name]) for name in ("channels", "size", "presize")}
            means, stds = (tuple(float(v) for v in values[name]) for name in ("mean", "std"))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"a Spec's sizes, means and deviations are numbers: {printable(error)}") from None
        return cls(
            **plain,
            mean=means,
            std=stds,
            class_names=values["class_names"],
            resize_mode=cast(ResizeMode, str(values["resize_mode"])),
            interpolation=cast(Interpolation, str(values["interpolation"])),
            mirrored=values["mirrored"] is True,
        )
