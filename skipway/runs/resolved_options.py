"""Resolved options: the value that a run uses for every option, and the reason of each automatic choice.

The values are fit for `--config`: a run with them equals the run that they were resolved for. So an option stays open
if setting it would ask for something else. `model: auto` is such a case if its network has no name of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import yaml

from skipway.data.image_spec import Spec
from skipway.data.images.choose_decode_settings import SMALL
from skipway.data.tables.table_spec import TableSpec
from skipway.models.network import Network
from skipway.runs.datamodule import DataModule
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.recipe import GROUPS, Recipe
from skipway.runs.table_datamodule import TableDataModule
from skipway.training.compiled_model import compile_obstacle
from skipway.training.trainer import Settings
from skipway.utils.console import duration
from skipway.utils.devices import LARGE_TABLE, available_threads, device_counts, device_kind
from skipway.utils.format_text import count_of

__all__ = ["ResolvedOption", "ResolvedOptions", "resolved_options"]

_OPEN = (None, "auto")
_COMMENT_COLUMN = 32
# Options whose default comes from the table of families.
_OF_FAMILY = ("momentum", "weight_decay", "bias_lr_mult", "label_smoothing")
_UNSET = object()  # the value of an option that must stay out of the config


@dataclass(frozen=True)
class ResolvedOption:
    """An option with its value, and the reason for it: "set", "default" or "auto: ..."."""

    name: str
    value: Any
    reason: str

    @property
    def is_unset(self) -> bool:
        """True if the run has yet to find the value, so that a config leaves it out."""
        return self.value is _UNSET

    def __str__(self) -> str:
        if self.is_unset:
            return f"# {self.name}: {self.reason}"
        line = yaml.safe_dump({self.name: self.value}, allow_unicode=True, width=10_000).strip()
        return f"{line:<{_COMMENT_COLUMN - 2}}  # {self.reason}"


@dataclass(frozen=True)
class ResolvedOptions:
    """The options of a run. Its text is YAML for `--config`, with the reasons as comments."""

    options: tuple[ResolvedOption, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, without options that the run still has to find."""
        return {option.name: option.value for option in self.options if not option.is_unset}

    def __str__(self) -> str:
        groups = {field.name: field.metadata["group"] for field in fields(Recipe)}
        lines = []
        for group in GROUPS:
            lines += ["", f"# {group}", *(str(option) for option in self.options if groups[option.name] == group)]
        return "\n".join(lines[1:])


def resolved_options(
    requested: Mapping[str, Any], datamodule: DataModule, network: Network, settings: Settings, batch_size: int
) -> ResolvedOptions:
    """Return the options of a run that is about to start.

    Args:
        requested: options that were passed or are in the config file, by name.
        datamodule, network, settings, batch_size: those of the run.
    """
    automatic = _automatic_values(datamodule, network, settings, batch_size)
    unused = datamodule.unused_options() if isinstance(datamodule, TableDataModule) else ()
    options = []
    for field in fields(Recipe):
        name, value = field.name, requested.get(field.name, field.default)
        is_open = name not in requested or value in _OPEN
        if name in unused:
            continue
        if is_open and name in automatic:
            value, reason = automatic[name]
            options.append(ResolvedOption(name, value, f"auto: {reason}"))
        else:
            options.append(ResolvedOption(name, value, "set" if name in requested else "default"))
    return ResolvedOptions(tuple(options))


def _automatic_values(
    datamodule: DataModule, network: Network, settings: Settings, batch_size: int
) -> dict[str, tuple[Any, str]]:
    """Return the value and the reason of every option that is resolved if it is left open."""
    recipe, plan = datamodule.recipe, network.plan
    family = "tables" if datamodule.noun == "rows" else plan["family"]
    if settings.freeze_until is not None:
        family = "the last layers of a pretrained model"
    by_family = f"default of {family}"
    automatic: dict[str, tuple[Any, str]] = {
        "optimizer": (settings.optimizer, by_family),
        **{name: (getattr(settings, name), f"{by_family} with {settings.optimizer}") for name in _OF_FAMILY},
        "batch_size": (batch_size, _training_samples(datamodule)),
        "epochs": _epochs(datamodule, settings),
        "device": (settings.device, _device_reason(settings, is_table=datamodule.noun == "rows")),
        "precision": (settings.precision, _precision_reason(settings, is_table=datamodule.noun == "rows")),
        "compile": _compile(settings, is_table=datamodule.noun == "rows", deterministic=recipe.deterministic),
        "threads": _threads(is_table=datamodule.noun == "rows"),
        "head": (settings.head, _head_reason(network, settings)),
        "freeze_until": (settings.freeze_until or "none", _freezing_reason(network)),
        "layer_decay": (
            settings.layer_decay,
            "pretrained weights" if network.is_pretrained else "no pretrained weights",
        ),
    }
    automatic |= {name: (plan[name], f"default of {plan['name']}") for name in ("dropout", "drop_path") if name in plan}
    if recipe.lr == "auto":
        automatic["lr"] = "auto", "LR range test before epoch 1"
    else:
        automatic["lr"] = settings.lr, f"{by_family} with {settings.optimizer}, scaled to batch {batch_size}"
    if isinstance(datamodule, ImageDataModule):
        automatic |= _image_values(datamodule, network, settings)
    elif isinstance(network.spec, TableSpec):
        automatic["task"] = network.spec.task, f"values of {network.spec.target}"
        automatic["model"] = "auto", f"{plan['name']}, the network for tables"
    return automatic


def _device_reason(settings: Settings, *, is_table: bool) -> str:
    if settings.device != "cpu":
        return "GPU found"
    if is_table and device_counts():
        return f"tables below {LARGE_TABLE:,} rows train faster on a CPU"
    return "no GPU found"


def _image_values(datamodule: ImageDataModule, network: Network, settings: Settings) -> dict[str, tuple[Any, str]]:
    """Return the values of the options that only images have."""
    recipe, spec, plan = datamodule.recipe, network.require_image_spec(), network.plan
    is_pretrained = network.is_pretrained
    kind = f"images of up to {SMALL} px" if spec.size <= SMALL and not is_pretrained else "photographs"
    origin = network.origin.partition(",")[0]
    source = f"weights of {origin}" if is_pretrained else f"{kind}, from scratch"
    values: dict[str, tuple[Any, str]] = {
        "img_size": (recipe.img_size or spec.size, _size_reason(recipe, is_pretrained=is_pretrained)),
        "resize_mode": (spec.resize_mode, source if is_pretrained else "aspect ratios of the images"),
        "model": (plan["name"] if is_pretrained else "auto", source if is_pretrained else f"{plan['name']}: {source}"),
        "augment": (datamodule.level, _augment_reason(spec)),
        "pretrained": ("auto", origin) if is_pretrained else ("none", "; ".join(datamodule.weights.lines) or kind),
    }
    if recipe.model != "auto" and not is_pretrained:
        values["model"] = recipe.model, "by the time and the number of images"
    if recipe.val_fraction != Recipe.val_fraction:
        values["val_fraction"] = recipe.val_fraction, "few of many images, because test images evaluate the model"
    is_averaged = "by the time and the number of images"
    values["tta"] = spec.tta, is_averaged if spec.tta else "on for many small images with a time limit only"
    if "stem" in plan:
        values["stem"] = None, f"{plan['stem']}, as in {plan['name']}"
    if settings.head == "regression":  # it excludes epochs in which the head alone is trained by gradient steps
        values["freeze_epochs"] = None, "the head is fitted by regression"
    else:
        values["freeze_epochs"] = settings.freeze_epochs, source
    return values


def _epochs(datamodule: DataModule, settings: Settings) -> tuple[Any, str]:
    """Return the epochs, or that the pace of the first steps sets them."""
    recipe = datamodule.recipe
    if settings.freeze_until is not None:
        return settings.epochs, f"1 for the head, the others for the layers after {settings.freeze_until}"
    if datamodule.rows_choose_epochs:
        return _UNSET, "by a test on a fifth of the training rows"
    if recipe.time_limit is not None and datamodule.time_sets_epochs:
        return _UNSET, f"as many as fit in {duration(recipe.time_limit)} at the pace of the first steps"
    if settings.head == "regression":
        return settings.epochs, "1 for the head, by regression on the features"
    return settings.epochs, _training_samples(datamodule)


def _training_samples(datamodule: DataModule) -> str:
    return count_of(datamodule.count("train"), f"training {datamodule.noun[:-1]}")


def _head_reason(network: Network, settings: Settings) -> str:
    if not network.is_pretrained:
        return "no pretrained weights"
    return "pretrained weights" if settings.head == "regression" else "no regression for this network or its options"


def _freezing_reason(network: Network) -> str:
    return "by the time and the number of images" if network.is_pretrained else "no pretrained weights"


def _size_reason(recipe: Recipe, *, is_pretrained: bool) -> str:
    if is_pretrained:
        return "by the size of the weights, the time and the number of images"
    return "median size of the images" if recipe.img_size is None else "by the time and the number of images"


def _augment_reason(spec: Spec) -> str:
    movement = "stored larger, for crops" if spec.presize > spec.size else "stored at the input size"
    return movement if spec.mirrored else f"{movement}, no flips: they change classes"


def _precision_reason(settings: Settings, *, is_table: bool) -> str:
    if is_table:
        return "tables are trained in fp32"
    if settings.precision == "fp16":
        return "fast on this GPU, which has no bf16"
    return "fast on this hardware" if settings.precision == "bf16" else "no fast bf16 on this hardware"


def _compile(settings: Settings, *, is_table: bool, deterministic: bool) -> tuple[str, str]:
    if is_table:
        return "off", "steps of tables are too short to gain"
    if device_kind(settings.device) != "cuda":
        return "off", f"not faster, or not measured, on {settings.device}"
    obstacle = compile_obstacle(fsdp=settings.fsdp, recompute=settings.recompute, deterministic=deterministic)
    if obstacle:
        return "off", f"it excludes {obstacle}"
    return "auto", "by the measured seconds of a step, before epoch 1"


def _threads(*, is_table: bool) -> tuple[int, str]:
    count, available = torch.get_num_threads(), available_threads()
    if is_table:
        return count, "small layers are fastest with one thread"
    if count < available.count:
        return count, "other processes use the cores"
    return count, f"limited by {available.reason}"
