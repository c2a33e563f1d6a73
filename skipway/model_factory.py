"""The zoo: a name, a file or a run becomes a network that carries its plan and its Spec.

Shapes: (B, C, H, W) -> (B, K) for images of C channels and K classes.
"""

import math
import os
from collections.abc import Sequence
from typing import Any, Literal, overload

from skipway.data.image_spec import Spec
from skipway.data.images.decoded_cache import SMALL
from skipway.errors import InputError
from skipway.models import registry
from skipway.models.feature_extraction import Features
from skipway.models.network import Network, build_network
from skipway.weights.pretrained import pretrained_network, refit

__all__ = ["SMALL_STEMS", "auto_model", "create_model", "input_shape", "list_models", "options_for"]

SMALL_STEMS = "small", "whitening"  # stems of networks for small images: they keep their size


@overload
def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    *,
    features_only: Literal[False] = False,
    **options: Any,
) -> Network: ...
@overload
def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    *,
    features_only: Literal[True],
    **options: Any,
) -> Features: ...
def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    *,
    stem: str | None = None,
    pretrained: str | os.PathLike[str] | bool | None = False,
    class_names: Sequence[str] | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **options: Any,
) -> Network | Features:
    """The network called `name`, with fresh weights or with those of `pretrained`.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the default is that of the network's paper (1000, or 10 for the CIFAR networks).
        in_chans: channels of the images, 3 by default; `resmlp` has in_features instead.
        stem: "large", "small", "deep" and others; the default is the network's own.
        pretrained: True (weights of an installed pip package, else timm's choice for `name` on the Hub), "package" (the
            former alone), a tag ("a1_in1k"), a repository ("timm/resnet50.a1_in1k"), a run, or a file: ours, or one of
            torchvision, timm, fastai, Flax, lukemelas or akamaster's CIFAR networks. The stem is fitted to other
            `in_chans`; the head is new for other classes. The network is in evaluation mode, and `.origin` says what
            was kept.
        class_names: what the outputs mean. Of a pretrained head that knows its classes, those of the same name stay;
            a network that has no Spec takes only their number.
        features_only: give the outputs of the stem and the stages in place of the head's: see `Features`.
        out_indices: which of these outputs; None for all.
        options: any other value of the family's plan, such as `layers`, `widths`, `block`, `shortcut`, `drop_path`:
            see `ResNetPlan`, `InvertedResidualPlan`, `DenseNetPlan` and the other plans in `skipway.models`.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    if stem is not None:
        options["stem"] = stem
    if out_indices is not None and not features_only:
        raise InputError("out_indices choose among the outputs that features_only=True gives; set that too")
    if class_names is not None:
        num_classes = _count_classes(class_names, num_classes)
    sizes = {"num_classes": num_classes, "in_chans": in_chans}
    # Made first, so that the name and the options are refused before any file is read.
    plan = registry.plan_of(name, **{k: v for k, v in sizes.items() if v is not None}, **options)
    if pretrained is None or pretrained is False:
        network = build_network(plan)
    else:
        network = refit(pretrained_network(name, pretrained, options), num_classes, in_chans, class_names)
    return Features(network, out_indices) if features_only else network


def _count_classes(class_names: Sequence[str], num_classes: int | None) -> int:
    """Count the class names; `num_classes` may be given as well, if it is equal."""
    if isinstance(class_names, str) or len(set(class_names)) != len(class_names):
        raise InputError("class_names is a list of texts that differ from each other, one for each class")
    if num_classes not in (None, len(class_names)):
        raise InputError(f"num_classes is {num_classes}, but there are {len(class_names)} class names; give one")
    return len(class_names)


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, by shell pattern."""
    return registry.names(pattern)


def options_for(name: str, spec: Spec, options: dict[str, Any]) -> dict[str, Any]:
    """Return `options` with those that fit the network called `name` to `spec`; a stem keeps small images' size."""
    plan = registry.plan_of(name)
    if "in_features" in plan:
        return {"num_classes": spec.num_classes, "in_features": math.prod(spec.input_shape), **options}
    too_large = spec.size <= SMALL and plan.get("stem", SMALL_STEMS[0]) not in SMALL_STEMS
    stem = {"stem": "small"} if too_large else {}
    return {"num_classes": spec.num_classes, "in_chans": spec.channels, **stem, **options}


def input_shape(plan: dict[str, Any], size: int) -> tuple[int, ...]:
    """One input of the network of `plan`, with its batch, at images of `size`."""
    return (1, plan["in_features"]) if "in_features" in plan else (1, plan["in_chans"], size, size)


def auto_model(size: int, count: int) -> tuple[str, dict[str, Any]]:
    """What `--model auto` picks for `count` training images of `size` pixels: (name, options)."""
    if size < 4:
        return "resnet20", {"layers": [2, 2], "widths": [32, 64]}
    if size <= 16:
        return "resnet9", {"stem": "small", "widths": [32, 64, 128], "layers": [1, 1]}
    if size <= 64:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 128, 256], "layers": [1, 1, 1]}
    if size <= 128:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 96, 192, 256], "layers": [1, 1, 1, 1]}
    return ("resnet18", {}) if count >= 2000 else ("resnet10", {})
