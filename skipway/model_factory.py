"""Create models by name, from pretrained weights, or from a trained run.

Shapes: (B, C, H, W) -> (B, K) for images of C channels and K classes.
"""

import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, overload

from skipway.data.image_spec import Spec
from skipway.data.images.choose_decode_settings import SMALL
from skipway.errors import InputError
from skipway.models import registry
from skipway.models.architecture_plan import SMALL_STEMS
from skipway.models.feature_extraction import Features
from skipway.models.head import pool_name
from skipway.models.network import Network, build_network
from skipway.weights.factory_options import FactoryOptions
from skipway.weights.hub_download import download_to
from skipway.weights.model_name import read_name
from skipway.weights.pretrained import pretrained_network, refit
from skipway.weights.timm_tags import weight_tags

__all__ = ["auto_model", "create_model", "input_shape", "list_models", "options_for", "row_shapes"]


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
    out_indices: int | Sequence[int] | None = None,
    **options: Any,
) -> Network | Features:
    """Create a model by name, with random initial weights or with pretrained ones.

    Args:
        name: model name, one of `list_models()`. A name with weights, as in timm, selects them for
            `pretrained=True`: "resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k" or "local-dir:FOLDER" with the files
            of such a repository. Without `pretrained`, only the architecture is used.
        num_classes: number of outputs; 0 for no classifier, so that the outputs are the pooled features. Defaults to
            that of the weights, or of the paper: 1000, or 10 for the CIFAR networks. Required for weights without a
            classifier.
        in_chans: channels of the images, 3 by default. `resmlp` takes `in_features` instead.
        stem: "large", "small", "deep" or another stem of the family. Defaults to that of the named model.
        pretrained: source of the weights. True uses an installed pip package if it has `name`, else timm's default
            weights on the Hugging Face Hub. Also accepted: "package" (pip packages only), a tag ("a1_in1k"), a
            repository ("timm/resnet50.a1_in1k"), a run folder, or a file. Files may come from skipway, torchvision,
            timm, fastai, Flax, lukemelas or akamaster's CIFAR networks, and may be checkpoints of a training script
            with a prefix before the names of the network, such as "model.".
        class_names: names of the outputs. A pretrained head for the same task keeps the rows of equal names. A model
            without a Spec uses only their number.
        features_only: return a `Features` backbone, which outputs feature maps instead of logits: as in timm, the last
            one of each resolution.
        out_indices: indices of the feature maps to return, with `features_only=True`. An integer n returns the last n.
            Defaults to all.
        options: other values of the family's plan, such as `layers`, `widths`, `block`, `shortcut` or `drop_path`: see
            `ResNetPlan`, `InvertedResidualPlan`, `DenseNetPlan` and the other plans in `skipway.models`. timm's
            `checkpoint_path` (a file to load strictly), `cache_dir` and `pretrained_cfg` (a tag, or {"file": path})
            are accepted too, and `task`, the meaning of `class_names`: "classification" (default), "multilabel" or
            "regression".

    Returns:
        A `Network`, or `Features` if `features_only` is True. A pretrained model is in evaluation mode, its stem is
        adapted to other `in_chans`, and its head is new for other classes. Its `origin` reports which weights were
        reused, and which tensors of a file were ignored.

    Raises:
        InputError: the name, an option or the weights cannot be used.

    >>> create_model("resnet18", num_classes=10).plan["layers"]
    [2, 2, 2, 2]
    """
    if stem is not None:
        options["stem"] = stem
    if out_indices is not None and not features_only:
        raise InputError("cannot set out_indices: expected features_only=True, got False. Set features_only=True too.")
    for size, value in (("num_classes", num_classes), ("in_chans", in_chans)):
        if isinstance(value, bool):
            raise InputError(
                f"{size}: expected a number, got {value} (did you mean pretrained={value}?). Pass pretrained by name."
            )
    factory = FactoryOptions.split(options, pretrained)
    with download_to(factory.cache_dir):
        model = read_name(name, factory.pretrained)
        given = registry.own_options(model.architecture, {**model.options, **factory.options})
        if class_names is not None:
            num_classes = _count_classes(class_names, num_classes)
        sizes = {size: given.pop(size, None) for size in ("num_classes", "in_chans")}
        sizes |= {k: v for k, v in {"num_classes": num_classes, "in_chans": in_chans}.items() if v is not None}
        # Built first, to reject a wrong name or option before any file of weights is read.
        headless = {**sizes, "num_classes": 0} if features_only and sizes["num_classes"] is None else sizes
        # With its classifier, a fresh network draws the same initial weights as without features_only.
        fresh = headless if pool_name(given.get("global_pool")) == "none" else sizes
        plan = registry.plan_of(model.architecture, **{k: v for k, v in fresh.items() if v is not None}, **given)
        if model.pretrained is False:
            network = build_network(plan)
        else:
            network = pretrained_network(model.architecture, model.pretrained, given, headless["num_classes"])
            if factory.is_strict:
                _require_sizes(network, sizes)
            network = refit(network, sizes["num_classes"], sizes["in_chans"], class_names, given, factory.task)
    return Features(network, out_indices, every_stage=False) if features_only else network


def _require_sizes(network: Network, sizes: dict[str, int | None]) -> None:
    """Raise an InputError if the file of checkpoint_path, which is loaded strictly, has other sizes than requested."""
    for size, value in sizes.items():
        if value not in (None, network.plan.get(size)):
            raise InputError(
                f"checkpoint_path: expected {size} {value}, got {network.plan.get(size)} in the file. Set "
                f"pretrained to the file, which adapts its weights."
            )


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


def list_models(
    filter: str | Iterable[str] = "*",
    module: str | Iterable[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Iterable[str] = "",
    *,
    include_tags: bool | None = None,
) -> list[str]:
    """Return the names of the registered models, in natural order.

    Args:
        filter: one or more shell patterns, such as "resnet*"; a name matches if one of them does. Defaults to all
            models.
        module: one or more modules to select from: a family, such as "resnet", or a module of timm, such as
            "resnetv2". Defaults to all.
        pretrained: list only weights that `create_model` can get, from the Hub or from an installed pip package.
        exclude_filters: one or more shell patterns of names to leave out.
        include_tags: list a name for each of its weights, as "resnet18.a1_in1k". A pattern without a tag then matches
            all tags. Defaults to `pretrained`.

    Returns:
        The names, or an empty list if nothing matches.

    >>> list_models(["resnet18*", "resnet34*"], exclude_filters="*d")
    ['resnet18', 'resnet34']
    >>> list_models("resnet18d", pretrained=True)
    ['resnet18d.ra2_in1k', 'resnet18d.ra4_e3600_r224_in1k']
    """
    modules = set(registry.as_list(module))
    architectures = [name for name in registry.ROWS if not modules or modules & registry.modules(name)]
    if pretrained:
        architectures = [name for name in architectures if weight_tags(name)]
    if not (pretrained if include_tags is None else include_tags):
        return registry.select(architectures, filter, exclude_filters)
    tagged = (f"{name}.{tag}".removesuffix(".") for name in architectures for tag in weight_tags(name) or ("",))
    return registry.select(tagged, _with_tags(filter), _with_tags(exclude_filters))


def _with_tags(patterns: str | Iterable[str]) -> list[str]:
    """Return patterns that match any tag if they have none."""
    texts = registry.as_list(patterns)
    return [*texts, *(f"{text.removesuffix('.')}.*" for text in texts if not text.partition(".")[2])]


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


def row_shapes(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the shape of the feature columns next to one image, as the argument `rows`; empty if there are none."""
    return {"rows": (1, plan["columns"]["in_features"])} if "columns" in plan else {}


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
