"""The preprocessing of a model in the words of timm, as in its `pretrained_cfg`."""

from typing import Any

from skipway.data.image_spec import Spec
from skipway.data.tables.table_spec import TableSpec
from skipway.models.architecture_plan import SMALL_STEMS

__all__ = ["CROP_MODES", "IMAGENET_MEAN", "IMAGENET_STD", "pretrained_config"]

CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # timm's names, by resize_mode
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# timm's defaults for a model without weights.
_SIZE, _CROP_PCT, _INTERPOLATION = 224, 0.875, "bicubic"
_SMALL_SIZE = 32


def pretrained_config(plan: dict[str, Any], spec: Spec | TableSpec | None, channels: int | None) -> dict[str, Any]:
    """Return the preprocessing of a model with timm's keys.

    Args:
        plan: plan of the network.
        spec: its Spec, which defines the preprocessing. Without one, it is that of timm: images of 224 pixels, or 32
            pixels for a stem that keeps the size, with the mean and standard deviation of ImageNet.
        channels: channels of the images, None for a table.

    Returns:
        Plain values, such as "input_size", which is (C, H, W), or (F,) for a table.

    >>> config = pretrained_config({"stem": "small"}, None, channels=1)
    >>> config["input_size"], config["crop_pct"]
    ((1, 32, 32), 1.0)
    """
    common: dict[str, Any] = {"architecture": plan.get("name"), "fixed_input_size": False}
    if spec is not None:
        common["label_names"] = spec.class_names
    if channels is None:
        return {**common, "input_size": (plan.get("in_features"),)}
    if isinstance(spec, Spec):
        return {
            **common,
            "input_size": spec.input_shape,
            "crop_pct": spec.size / spec.presize,
            "crop_mode": CROP_MODES[spec.resize_mode],
            "interpolation": spec.interpolation,
            "mean": spec.mean,
            "std": spec.std,
        }
    is_large = plan.get("stem") not in SMALL_STEMS
    return {
        **common,
        "input_size": (channels, *[_SIZE if is_large else _SMALL_SIZE] * 2),
        "crop_pct": _CROP_PCT if is_large else 1.0,
        "crop_mode": "center",
        "interpolation": _INTERPOLATION,
        "mean": _per_channel(IMAGENET_MEAN, channels),
        "std": _per_channel(IMAGENET_STD, channels),
    }


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return ImageNet's values for RGB, and their average for every channel of other images."""
    return values if channels == len(values) else (sum(values) / len(values),) * channels
