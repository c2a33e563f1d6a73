"""Create models by name, from pretrained weights, or from a trained run.

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

SMALL_STEMS = "small", "whitening"  # stems that keep the size of small images


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
    """Create a model by name, with random initial weights or with pretrained ones.

    Args:
        name: model name, one of `list_models()`.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features. Defaults to
            that of the paper: 1000, or 10 for the CIFAR networks.
        in_chans: channels of the images, 3 by default. `resmlp` takes `in_features` instead.
        stem: "large", "small", "deep" or another stem of the family. Defaults to that of the named model.
        pretrained: source of the weights. True uses an installed pip package if it has `name`, else timm's default
            weights on the Hugging Face Hub. Also accepted: "package" (pip packages only), a tag ("a1_in1k"), a
            repository ("timm/resnet50.a1_in1k"), a run folder, or a file. Files may come from skipway, torchvision,
            timm, fastai, Flax, lukemelas or akamaster's CIFAR networks.
        class_names: names of the outputs. A pretrained head with class names keeps the rows of equal names. A model
            without a Spec uses only their number.
        features_only: return a `Features` backbone, which outputs feature maps instead of logits.
        out_indices: indices of the feature maps to return, with `features_only=True`. Defaults to all.
        options: other values of the family's plan, such as `layers`, `widths`, `block`, `shortcut` or `drop_path`: see
            `ResNetPlan`, `InvertedResidualPlan`, `DenseNetPlan` and the other plans in `skipway.models`.

    Returns:
        A `Network`, or `Features` if `features_only` is True. A pretrained model is in evaluation mode, its stem is
        adapted to other `in_chans`, and its head is new for other classes. Its `origin` reports which weights were
        reused.

    Raises:
        InputError: the name, an option or the weights cannot be used.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    if stem is not None:
        options["stem"] = stem
    if out_indices is not None and not features_only:
        raise InputError("cannot set out_indices: expected features_only=True, got False. Set features_only=True too.")
    if class_names is not None:
        num_classes = _count_classes(class_names, num_classes)
    sizes = {"num_classes": num_classes, "in_chans": in_chans}
    # Built first, to reject a wrong name or option before any file is read.
    plan = registry.plan_of(name, **{k: v for k, v in sizes.items() if v is not None}, **options)
    if pretrained is None or pretrained is False:
        network = build_network(plan)
    else:
        kept = {option: value for option, value in options.items() if option != "global_pool"}
        weights = pretrained_network(name, pretrained, kept)
        network = refit(weights, num_classes, in_chans, class_names, options.get("global_pool"))
    return Features(network, out_indices) if features_only else network


def _count_classes(class_names: Sequence[str], num_classes: int | None) -> int:
    """Count the class names, and check that `num_classes` agrees if it is set."""
    if isinstance(class_names, str) or len(set(class_names)) != len(class_names):
        raise InputError(
            "class_names: expected a list of distinct names, one per class, got a single string or "
            "duplicates. Pass one name per class."
        )
    if num_classes not in (None, len(class_names)):
        raise InputError(
            f"num_classes: expected {len(class_names)}, the number of class_names, got {num_classes}. "
            "Set only one of them."
        )
    return len(class_names)


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered models, in natural order.

    Args:
        pattern: shell pattern that the names must match, such as "resnet*". Defaults to all models.

    >>> list_models("resnet18*")
    ['resnet18', 'resnet18d']
    """
    return registry.names(pattern)


def options_for(name: str, spec: Spec, options: dict[str, Any]) -> dict[str, Any]:
    """Return plan options that fit the model `name` to a dataset.

    Args:
        name: model name.
        spec: Spec of the images.
        options: options of the user, which take precedence.

    Returns:
        `options` with the number of classes and channels (or features) added. Small images get a stem that keeps their
        size.
    """
    plan = registry.plan_of(name)
    if "in_features" in plan:
        return {"num_classes": spec.num_classes, "in_features": math.prod(spec.input_shape), **options}
    too_large = spec.size <= SMALL and plan.get("stem", SMALL_STEMS[0]) not in SMALL_STEMS
    stem = {"stem": "small"} if too_large else {}
    return {"num_classes": spec.num_classes, "in_chans": spec.channels, **stem, **options}


def input_shape(plan: dict[str, Any], size: int) -> tuple[int, ...]:
    """Return the shape of one input, batch of 1 included, of the model of `plan` for images of `size` pixels."""
    return (1, plan["in_features"]) if "in_features" in plan else (1, plan["in_chans"], size, size)


def auto_model(size: int, count: int) -> tuple[str, dict[str, Any]]:
    """Choose the model for `--model auto`: return (name, options) for `count` training images of `size` pixels."""
    if size < 4:
        return "resnet20", {"layers": [2, 2], "widths": [32, 64]}
    if size <= 16:
        return "resnet9", {"stem": "small", "widths": [32, 64, 128], "layers": [1, 1]}
    if size <= 64:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 128, 256], "layers": [1, 1, 1]}
    if size <= 128:
        return "resnet9", {"stem": "whitening", "widths": [24, 48, 96, 192, 256], "layers": [1, 1, 1, 1]}
    return ("resnet18", {}) if count >= 2000 else ("resnet10", {})
