"""timm's configuration of a model (`pretrained_cfg`): its preprocessing, and the names of its first and last layer."""

from typing import Any

from skipway.data.image_spec import Spec
from skipway.data.tables.table_spec import TableSpec

__all__ = ["pretrained_config"]

_CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # timm's names, by resize_mode
# timm's defaults for a model without weights.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_SIZE, _CROP_PCT, _INTERPOLATION = 224, 0.875, "bicubic"
_SMALL_SIZE = 32
_LARGE_STEMS = ("large", "deep", "tiered", "deep_conv")  # the others keep the size of small images


def pretrained_config(
    plan: dict[str, Any], spec: Spec | TableSpec | None, *, num_classes: int, first_conv: str | None, classifier: str
) -> dict[str, Any]:
    """Return the configuration of a network with timm's keys.

    Args:
        plan: plan of the network.
        spec: its Spec, which defines the preprocessing. Without one, it is that of timm: images of 224 pixels, or 32
            pixels for a stem that keeps the size, with the mean and standard deviation of ImageNet.
        num_classes: number of outputs.
        first_conv: path of the first convolution, None for a table.
        classifier: name of the classifier.

    Returns:
        Plain values, such as "input_size", which is (C, H, W), or (F,) for a table.

    >>> config = pretrained_config({"in_chans": 1}, None, num_classes=10, first_conv="stem.conv", classifier="head")
    >>> config["input_size"], config["num_classes"]
    ((1, 224, 224), 10)
    """
    names = {} if spec is None else {"label_names": spec.class_names}
    return {
        "architecture": plan.get("name"),
        "num_classes": num_classes,
        **names,
        **_input_values(plan, spec),
        "fixed_input_size": False,
        "first_conv": first_conv,
        "classifier": classifier,
    }


def _input_values(plan: dict[str, Any], spec: Spec | TableSpec | None) -> dict[str, Any]:
    if isinstance(spec, Spec):
        return {
            "input_size": spec.input_shape,
            "crop_pct": spec.size / spec.presize,
            "crop_mode": _CROP_MODES[spec.resize_mode],
            "interpolation": spec.interpolation,
            "mean": spec.mean,
            "std": spec.std,
        }
    if spec is not None or "in_features" in plan:
        return {"input_size": (plan.get("in_features"),)}
    channels, large = plan.get("in_chans", 3), plan.get("stem", "large") in _LARGE_STEMS
    return {
        "input_size": (channels, *[_SIZE if large else _SMALL_SIZE] * 2),
        "crop_pct": _CROP_PCT if large else 1.0,
        "crop_mode": "center",
        "interpolation": _INTERPOLATION,
        "mean": _per_channel(_MEAN, channels),
        "std": _per_channel(_STD, channels),
    }


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return ImageNet's values for RGB, and their average for every channel of other images."""
    return values if channels == len(values) else (sum(values) / len(values),) * channels
