"""ConvNeXt rules of `key_maps`: keys and shapes in timm and torchvision.

Sources: timm 1.0, torchvision 0.28.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["HOLDS", "LACKS", "TIMM", "TORCHVISION", "timm_leaf", "timm_value", "torchvision_leaf", "torchvision_value"]

Rules = tuple[tuple[str, str], ...]

_BLOCK = r"stage(?P<stage>\d+)\.(?P<block>\d+)\."
_BODY = _BLOCK + r"body\."

TIMM: Rules = (
    (r"stem\.conv", "stem.0"),
    (r"stem\.norm", "stem.1"),
    (_BODY + r"depthwise", "stages.{stage-1}.blocks.{block}.conv_dw"),
    (_BODY + r"norm", "stages.{stage-1}.blocks.{block}.norm"),
    (_BODY + r"expand", "stages.{stage-1}.blocks.{block}.mlp.fc1"),
    (_BODY + r"project", "stages.{stage-1}.blocks.{block}.mlp.fc2"),
    (_BLOCK + r"join", "stages.{stage-1}.blocks.{block}"),
    (r"transition(?P<stage>\d+)\.norm", "stages.{stage}.downsample.0"),
    (r"transition(?P<stage>\d+)\.conv", "stages.{stage}.downsample.1"),
    (r"norm", "head.norm"),
    (r"head", "head.fc"),
)
TORCHVISION: Rules = (
    (r"stem\.conv", "features.0.0"),
    (r"stem\.norm", "features.0.1"),
    (_BODY + r"depthwise", "features.{twice-1}.{block}.block.0"),
    (_BODY + r"norm", "features.{twice-1}.{block}.block.2"),
    (_BODY + r"expand", "features.{twice-1}.{block}.block.3"),
    (_BODY + r"project", "features.{twice-1}.{block}.block.5"),
    (_BLOCK + r"join", "features.{twice-1}.{block}"),
    (r"transition(?P<stage>\d+)\.norm", "features.{twice}.0"),
    (r"transition(?P<stage>\d+)\.conv", "features.{twice}.1"),
    (r"norm", "classifier.0"),
    (r"head", "classifier.2"),
)
HOLDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "timm": {"stem": ("large",), "join": ("layerscale", "add"), "expansion": (4,)},
    "torchvision": {
        "stem": ("large",),
        "join": ("layerscale",),
        "expansion": (4,),
        "kernel": (7,),
        "activation": ("gelu",),
        "output_stride": (None,),
    },
}
LACKS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("layers in other than 4 stages", lambda plan: len(plan["layers"]) != 4),
)
_CONVOLUTIONAL = ("convnext_atto", "convnext_femto", "convnext_pico", "convnext_nano")  # 1x1 convolutions in timm


def timm_leaf(path: str, leaf: str, dims: int) -> str:
    """Return timm's key, in which the scale of a join is a parameter of the block."""
    return f"{path}.gamma" if leaf == "scale" else f"{path}.{leaf}"


def torchvision_leaf(path: str, leaf: str, dims: int) -> str:
    """Return torchvision's key, in which the scale of a join is a parameter of the block."""
    return f"{path}.layer_scale" if leaf == "scale" else f"{path}.{leaf}"


def timm_value(plan: Mapping[str, Any], key: str, value: Tensor, outward: bool) -> Tensor:
    """Convert a 1x1 convolution from or to a linear layer, which all but the smallest models use."""
    if not key.endswith((".mlp.fc1.weight", ".mlp.fc2.weight")):
        return value
    return _pointwise(value, outward and plan["name"] not in _CONVOLUTIONAL)


def torchvision_value(plan: Mapping[str, Any], key: str, value: Tensor, outward: bool) -> Tensor:
    """Convert a 1x1 convolution from or to a linear layer, and a scale from or to (C, 1, 1)."""
    if key.endswith(".layer_scale"):
        return value.view(-1, 1, 1) if outward else value.flatten()
    is_pointwise = key.endswith((".block.3.weight", ".block.5.weight"))
    return _pointwise(value, outward) if is_pointwise else value


def _pointwise(value: Tensor, to_linear: bool) -> Tensor:
    """Return the weights as a linear layer or as a 1x1 convolution."""
    if to_linear:
        return value[:, :, 0, 0]
    return value[:, :, None, None] if value.dim() == 2 else value
