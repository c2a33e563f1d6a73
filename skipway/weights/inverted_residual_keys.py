"""Inverted-residual rules of `key_maps`: keys in timm, torchvision and EfficientNet-PyTorch (lukemelas).

Sources: timm 1.0, torchvision 0.28, lukemelas/EfficientNet-PyTorch 0.7.
"""

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["HOLDS", "LACKS", "LUKEMELAS", "TIMM", "TORCHVISION_EFFICIENTNET", "TORCHVISION_MOBILENET", "own_name"]

Rules = tuple[tuple[str, str], ...]

_BODY = r"stage(?P<stage>\d+)\.(?P<block>\d+)\.body\."

TIMM: Rules = (
    (r"stem\.conv", "conv_stem"),
    (r"stem\.norm", "bn1"),
    (_BODY + r"expand", "blocks.{stage-1}.{block}.conv_pw"),
    (_BODY + r"expand_norm", "blocks.{stage-1}.{block}.bn1"),
    (_BODY + r"depthwise", "blocks.{stage-1}.{block}.conv_dw"),
    (_BODY + r"depthwise_norm", "blocks.{stage-1}.{block}.bn{expanded+1}"),
    (_BODY + r"attention\.squeeze", "blocks.{stage-1}.{block}.se.conv_reduce"),
    (_BODY + r"attention\.excite", "blocks.{stage-1}.{block}.se.conv_expand"),
    (_BODY + r"project", "blocks.{stage-1}.{block}.{project}"),
    (_BODY + r"project_norm", "blocks.{stage-1}.{block}.bn{expanded+2}"),
    (r"final\.conv", "conv_head"),
    (r"final\.norm", "bn2"),
    (r"head", "classifier"),
)
TORCHVISION_MOBILENET: Rules = (
    (r"stem\.conv", "features.0.0"),
    (r"stem\.norm", "features.0.1"),
    (_BODY + r"expand", "features.{index+1}.conv.0.0"),
    (_BODY + r"expand_norm", "features.{index+1}.conv.0.1"),
    (_BODY + r"depthwise", "features.{index+1}.conv.{expanded}.0"),
    (_BODY + r"depthwise_norm", "features.{index+1}.conv.{expanded}.1"),
    (_BODY + r"project", "features.{index+1}.conv.{expanded+1}"),
    (_BODY + r"project_norm", "features.{index+1}.conv.{expanded+2}"),
    (r"final\.conv", "features.{blocks+1}.0"),
    (r"final\.norm", "features.{blocks+1}.1"),
    (r"head", "classifier.1"),
)
TORCHVISION_EFFICIENTNET: Rules = (
    (r"stem\.conv", "features.0.0"),
    (r"stem\.norm", "features.0.1"),
    (_BODY + r"expand", "features.{stage}.{block}.block.0.0"),
    (_BODY + r"expand_norm", "features.{stage}.{block}.block.0.1"),
    (_BODY + r"depthwise", "features.{stage}.{block}.block.{expanded}.0"),
    (_BODY + r"depthwise_norm", "features.{stage}.{block}.block.{expanded}.1"),
    (_BODY + r"attention\.squeeze", "features.{stage}.{block}.block.{expanded+1}.fc1"),
    (_BODY + r"attention\.excite", "features.{stage}.{block}.block.{expanded+1}.fc2"),
    (_BODY + r"project", "features.{stage}.{block}.block.{expanded+2}.0"),
    (_BODY + r"project_norm", "features.{stage}.{block}.block.{expanded+2}.1"),
    (r"final\.conv", "features.{stages+1}.0"),
    (r"final\.norm", "features.{stages+1}.1"),
    (r"head", "classifier.1"),
)
LUKEMELAS: Rules = (
    (r"stem\.conv", "_conv_stem"),
    (r"stem\.norm", "_bn0"),
    (_BODY + r"expand", "_blocks.{index}._expand_conv"),
    (_BODY + r"expand_norm", "_blocks.{index}._bn0"),
    (_BODY + r"depthwise", "_blocks.{index}._depthwise_conv"),
    (_BODY + r"depthwise_norm", "_blocks.{index}._bn1"),
    (_BODY + r"attention\.squeeze", "_blocks.{index}._se_reduce"),
    (_BODY + r"attention\.excite", "_blocks.{index}._se_expand"),
    (_BODY + r"project", "_blocks.{index}._project_conv"),
    (_BODY + r"project_norm", "_blocks.{index}._bn2"),
    (r"final\.conv", "_conv_head"),
    (r"final\.norm", "_bn1"),
    (r"head", "_fc"),
)

_TIMM: dict[str, tuple[Any, ...]] = {"stem": ("large",), "norm": ("batch",)}
_PLAIN: dict[str, tuple[Any, ...]] = {**_TIMM, "output_stride": (None,)}
_TORCH: dict[str, tuple[Any, ...]] = {**_PLAIN, "padding": ("torch",)}
_TENSORFLOW: dict[str, tuple[Any, ...]] = {**_PLAIN, "padding": ("same",), "norm_eps": (1e-3,)}
# Values of the plan that each library supports, by kind of network.
HOLDS: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "timm": {"mobilenet": _TIMM, "efficientnet": _TIMM},
    "torchvision": {
        "mobilenet": {**_TORCH, "activation": ("relu6",), "norm_eps": (1e-5,)},
        "efficientnet": {**_TORCH, "activation": ("silu",), "norm_eps": (1e-5, 1e-3), "attention_ratio": (0.25,)},
    },
    "lukemelas": {
        "mobilenet": {**_TENSORFLOW, "activation": ("relu6",)},
        "efficientnet": {**_TENSORFLOW, "activation": ("silu",)},
    },
}
LACKS: dict[str, tuple[tuple[str, Callable[[Mapping[str, Any]], bool]], ...]] = {
    "mobilenet": (("kernels other than 3", lambda plan: set(plan["kernels"]) != {3}),),
}


def own_name(library: str, name: str) -> tuple[str, dict[str, Any]]:
    """Return our name and options for the model `name` of `library`."""
    if library == "lukemelas":
        return name.replace("-", "_"), {"padding": "same", "norm_eps": 1e-3}
    if name in ("efficientnet_b5", "efficientnet_b6", "efficientnet_b7"):
        return name, {"norm_eps": 1e-3}
    return ("mobilenetv2_100" if name == "mobilenet_v2" else name), {}
