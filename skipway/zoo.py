"""The zoo: a name, a file or a run becomes a network that carries its plan and its Spec.

Shapes: (B, C, H, W) -> (B, K) for pictures of C channels and K classes.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

from skipway.data.pack import SMALL
from skipway.models import registry
from skipway.network import Network, planned
from skipway.pretrained import pretrained_network, refit
from skipway.spec import Spec

__all__ = ["auto_model", "create_model", "input_shape", "list_models", "options_for"]


def create_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int | None = None,
    *,
    stem: str | None = None,
    pretrained: str | os.PathLike[str] | bool = False,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> Network:
    """The network called `name`, with fresh weights or with those of `pretrained`.

    Args:
        name: one of `list_models()`.
        num_classes: outputs; the default is that of the network's paper (1000, or 10 for the CIFAR networks).
        in_chans: channels of the pictures, 3 by default; `resmlp` has in_features instead.
        stem: "large", "small", "deep" and others; the default is the network's own.
        pretrained: True (timm's choice for `name` on the Hub), a tag ("a1_in1k"), a repository
            ("timm/resnet50.a1_in1k"), a run, or a file: ours, or one of torchvision, timm, fastai, Flax or akamaster's
            CIFAR networks. The stem is fitted to other `in_chans`; the head is new for other classes.
        class_names: what the outputs mean. Of a pretrained head that knows its classes, those of the same name stay.
        options: any other value of the family's plan, such as `layers`, `widths`, `block`, `shortcut`, `drop_path`:
            see `ResNetPlan`, `ResNet9Plan`, `DenseNetPlan` and `ResMLPPlan` in `skipway.models`.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    if stem is not None:
        options["stem"] = stem
    if pretrained:
        registry.plan_of(name, **options)  # refuses the name and the options before anything is read
        return refit(pretrained_network(name, pretrained, options), num_classes, in_chans, class_names)
    if class_names is not None:
        num_classes = len(class_names)
    sizes = {"num_classes": num_classes, "in_chans": in_chans}
    return planned(registry.plan_of(name, **{k: v for k, v in sizes.items() if v is not None}, **options))


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` knows, by shell pattern."""
    return registry.names(pattern)


def options_for(name: str, spec: Spec, given: dict[str, Any]) -> dict[str, Any]:
    """`given` and what else fits the network called `name` to `spec`; small pictures keep their size in the stem."""
    plan = registry.plan_of(name)
    if "in_features" in plan:
        return {"num_classes": spec.num_classes, "in_features": math.prod(spec.input_shape), **given}
    stem = {"stem": "small"} if "stem" in plan and spec.size <= SMALL else {}
    return {"num_classes": spec.num_classes, "in_chans": spec.channels, **stem, **given}


def input_shape(plan: dict[str, Any], size: int) -> tuple[int, ...]:
    """One input of the network of `plan`, with its batch, at pictures of `size`."""
    return (1, plan["in_features"]) if "in_features" in plan else (1, plan["in_chans"], size, size)


def auto_model(size: int, count: int) -> tuple[str, dict[str, Any]]:
    """What `--model auto` picks for `count` training pictures of `size` pixels: (name, options)."""
    if size < 4:
        return "resnet20", {"layers": [2, 2], "widths": [32, 64]}
    if size <= 16:
        return "resnet9", {"stem": "small", "widths": [32, 64, 128], "layers": [1, 1]}
    if size <= SMALL:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 128, 256], "layers": [1, 1, 1]}
    return ("resnet18", {}) if count >= 2000 else ("resnet10", {})
