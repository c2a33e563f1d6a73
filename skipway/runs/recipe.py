"""Recipe: every option of a training run in one flat dataclass, behind flags, YAML and keyword arguments.

It does not import torch, so that `skipway --help` is fast.
"""

import os
import re
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import yaml

from skipway.data.column_roles import LISTS, names_as_text
from skipway.data.image_limits import MAX_SIZE
from skipway.errors import InputError, did_you_mean, printable
from skipway.runs.data_options import DataOptions
from skipway.runs.option_field import GROUPS, option
from skipway.runs.option_values import TEXTS, option_problem
from skipway.utils.format_text import short_repr
from skipway.utils.read_yaml import read_yaml
from skipway.utils.run_schema import refuse_unknown_schema, with_schema

__all__ = ["GROUPS", "UNUSED_BY_FIND_LR", "Recipe"]

# Options without effect on an LR range test, which neither ends, evaluates nor writes a run.
UNUSED_BY_FIND_LR = frozenset(
    ("epochs", "lr", "schedule", "ema", "patience", "time_limit", "tta", "folds", "fold", "grow", "watch", "fsdp")
    + ("deterministic", "compile", "head", "freeze_epochs", "freeze_until", "views", "save_every", "output", "name")
    + ("ensemble_with",)
)


@dataclass(frozen=True, kw_only=True)
class Recipe(DataOptions):
    """Data, model and hyperparameters of a training run, as plain values; `config.yaml` has all of them.

    >>> Recipe(data="digits", epochs=3).changed()
    {'data': 'digits', 'epochs': 3}
    """

    model: str = option(
        "Model", "auto", "Architecture from `skipway models`; auto selects it by data and time.", alias="-m"
    )
    stem: Literal["large", "small", "deep", "tiered", "deep_conv", "whitening"] | None = option(
        "Model", None, "First layers of the network.", effective="small up to 96 px, else the architecture's"
    )
    grow: str | None = option(
        "Model",
        None,
        "Architectures to grow through, with epochs, such as resnet20:4,resnet32:4,resnet56:8.",
        effective="none",
    )
    ensemble_with: Literal["boosting"] | None = option(
        "Model", None, "Second model for tables, blended in if held-out rows gain.", effective="none"
    )
    epochs: int = option(
        "Optimization",
        10,
        "Passes over the training set.",
        effective="10; photographs from scratch 3 to 60, tables 30 to 200, by number of samples",
        alias="-e",
        minimum=1,
        maximum=100_000,
    )
    batch_size: int | None = option(
        "Optimization",
        None,
        "Samples per batch.",
        effective="8 to 256 for images, 128 to 1024 for tables, by number of samples",
        alias="-b",
        minimum=2,
        maximum=1_000_000,
    )
    lr: float | Literal["auto"] | None = option(
        "Optimization",
        None,
        "Peak learning rate; auto runs an LR range test.",
        effective="by family and optimizer, as 0.2 for a ResNet with SGD",
        minimum=1e-9,
        maximum=1e4,
    )
    optimizer: Literal["auto", "sgd", "adamw", "muon"] = option(
        "Optimization", "auto", "Optimizer; auto: muon for ResNet-9, adamw for ConvNeXt and tables, else sgd."
    )
    momentum: float | None = option(
        "Optimization",
        None,
        "Momentum of sgd and muon, beta1 of adamw.",
        effective="0.9; muon 0.95; ResNet-9 0.6 to 0.9",
        minimum=0,
        maximum=0.9999,
    )
    weight_decay: float | None = option(
        "Optimization",
        None,
        "Weight decay; norms and biases have none.",
        effective="0.05 with adamw and muon, tables 0.2; 4e-5 to 1.3e-3 with sgd",
        minimum=0,
        maximum=10,
    )
    bias_lr_mult: float | None = option(
        "Optimization",
        None,
        "Learning-rate multiplier of norms and biases.",
        effective="1; ResNet-9 with sgd 16",
        minimum=0,
        maximum=1e4,
    )
    schedule: Literal["one-cycle", "cosine", "steps", "flat-cosine", "constant"] = option(
        "Optimization", "one-cycle", "Learning-rate schedule."
    )
    grad_accum_steps: int = option(
        "Optimization", 1, "Batches accumulated per optimizer step.", minimum=1, maximum=100_000
    )
    clip_grad: float | None = option("Optimization", None, "Maximum gradient norm.", effective="none", minimum=1e-9)
    ema: float | None = option(
        "Optimization", None, "EMA decay of the weights, per step.", effective="none", minimum=0, maximum=0.999999
    )
    balance: Literal["none", "weights", "sampling"] = option(
        "Optimization", "none", "Class-imbalance handling: class weights in the loss, or weighted sampling."
    )
    patience: int | None = option(
        "Optimization", None, "Epochs without improvement before early stopping.", effective="none", minimum=1
    )
    time_limit: float | None = option(
        "Optimization",
        None,
        "Seconds for the whole run; sets epochs of images unless passed.",
        effective="none",
        minimum=0,
    )
    seed: int = option(
        "Optimization",
        0,
        "Random seed of initialization, sample order and augmentation.",
        minimum=0,
        maximum=2**32 - 1,
    )
    augment: str = option(
        "Augmentation",
        "auto",
        "none, light, medium, strong, or operations joined by +, as flip+color.",
    )
    mixup: float = option("Augmentation", 0.0, "MixUp alpha (arXiv:1710.09412); 0.2 is common.", minimum=0, maximum=100)
    cutmix: float = option("Augmentation", 0.0, "CutMix alpha (arXiv:1905.04899); 1 is common.", minimum=0, maximum=100)
    tta: bool | None = option(
        "Augmentation",
        None,
        "Test-time augmentation of the model, in evaluation and prediction.",
        effective="on for many small images with a time limit, else off",
    )
    label_smoothing: float | None = option(
        "Regularization", None, "Label smoothing.", effective="0.1; ResNet-9 0.2; tables 0", minimum=0, maximum=0.99
    )
    dropout: float | None = option(
        "Regularization",
        None,
        "Dropout rate inside blocks.",
        effective="that of the weights, or 0; tables 0.3 for classes, 0 or 0.1 for numbers",
        minimum=0,
        maximum=0.99,
    )
    drop_path: float | None = option(
        "Regularization",
        None,
        "Stochastic-depth rate of the deepest block.",
        effective="that of the weights, or 0",
        minimum=0,
        maximum=0.99,
    )
    l1: float = option("Regularization", 0.0, "L1 penalty on the weights.", minimum=0, maximum=10)
    l2: float = option(
        "Regularization", 0.0, "L2 penalty on the weights, in addition to weight decay.", minimum=0, maximum=10
    )
    pretrained: str = option(
        "Transfer", "auto", "Pretrained weights: auto (for photographs), none, a Hub tag, run or file."
    )
    head: Literal["auto", "regression", "train"] = option(
        "Transfer", "auto", "Head of a pretrained model: regression on its features, or training."
    )
    freeze_epochs: int | None = option(
        "Transfer",
        None,
        "Epochs in which only the head of a pretrained model trains.",
        effective="1 if the head is trained, else 0",
        minimum=0,
        maximum=100_000,
    )
    freeze_until: str = option(
        "Transfer", "auto", "Last frozen layer (as stage6) or none; auto: before the last stage."
    )
    views: int = option(
        "Transfer", 4, "Cached augmented views per training image with frozen layers.", minimum=1, maximum=1000
    )
    layer_decay: float | None = option(
        "Transfer",
        None,
        "Layer-wise learning-rate decay, per stage.",
        effective="0.5 if pretrained, else 1",
        minimum=1e-3,
        maximum=1,
    )
    device: str = option("Hardware", "auto", "Compute device: auto, cpu, cuda, cuda:1, xpu or mps.")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = option(
        "Hardware", "auto", "Compute precision; auto: bf16, on GPUs without it fp16, else fp32."
    )
    deterministic: bool = option("Hardware", False, "Bit-exact resume on CUDA, with slower algorithms.")
    compile: Literal["auto", "on", "off"] = option(
        "Hardware", "auto", "Compile training steps by torch.compile; auto: for long runs on CUDA."
    )
    threads: int | None = option("Hardware", None, "CPU threads.", effective="available cores", minimum=1, maximum=1024)
    recompute: int | Literal["none", "auto", "stages"] = option(
        "Hardware",
        "none",
        "Activation checkpointing: blocks per group, whole stages, or auto for least memory.",
        minimum=1,
        maximum=100_000,
    )
    fsdp: bool = option("Hardware", False, "Shard weights and optimizer state across processes (FSDP).")
    output: str = option("Output", "runs", "Parent folder of run folders.", alias="-o")
    name: str | None = option(
        "Output", None, "Name of the run folder.", effective="DATA-MODEL, with a number if it exists"
    )
    watch: bool = option("Output", False, "Plots of signal flow before training and after every epoch.")
    save_every: float = option("Safety", 120.0, "Seconds between checkpoints within an epoch.", minimum=0)
    max_unreadable: float = option("Safety", 0.01, "Maximum share of unreadable images.", minimum=0, maximum=1)
    max_pixels: int = option("Safety", 50_000_000, "Maximum pixels of an image to decode.", minimum=1)
    follow_links: bool = option("Safety", False, "Read images behind symbolic links that leave the folder.")
    allow_empty_classes: bool = option("Safety", False, "Skip class folders without images.")
    allow_duplicates: bool = option("Safety", False, "Train although splits share identical images.")

    def __post_init__(self) -> None:
        problems = [*self._field_problems(), *self._text_problems(), *self._size_problems(), *self._fold_problems()]
        if problems:
            raise InputError("invalid options: " + "; ".join(problems) + ".")

    def _field_problems(self) -> list[str]:
        """Return the fields whose type, range or choice is wrong, each with the expected and the actual value."""
        hints = get_type_hints(type(self))
        problems = (option_problem(f, getattr(self, f.name), hints[f.name]) for f in fields(self))
        return [problem for problem in problems if problem]

    def _text_problems(self) -> list[str]:
        """Return the fields whose text has the wrong form."""
        values = {name: getattr(self, name) for name in TEXTS}
        has_own_error = (*TEXTS, "name")
        empty = [f.name for f in fields(self) if f.name not in has_own_error and getattr(self, f.name) == ""]
        return [f"{name}: expected a text with characters, got none; leave it out" for name in empty] + [
            f"{name}: expected {TEXTS[name].words}, got {short_repr(value)}"
            for name, value in values.items()
            if isinstance(value, str) and not re.fullmatch(TEXTS[name].pattern, value)
        ]

    def _size_problems(self) -> list[str]:
        """Return the problem of two image sizes if one is too large; a single size is checked as a number."""
        if not isinstance(self.img_size, str) or not re.fullmatch(TEXTS["img_size"].pattern, self.img_size):
            return []
        if max(map(int, self.img_size.split(":"))) <= MAX_SIZE:
            return []
        return [f"img_size: expected sizes from 1 to {MAX_SIZE:,}, got {self.img_size}"]

    def _fold_problems(self) -> list[str]:
        """Return the contradictions between the fields of cross-validation, and between those of weights."""
        problems = []
        if self.weight_column is not None and self.balance == "sampling":
            problems.append(
                "balance: expected none or weights with weight_column, got sampling, which repeats samples; use weights"
            )
        if isinstance(self.fold, int) and isinstance(self.folds, int) and self.fold > self.folds:
            problems.append(f"fold: expected a number from 1 to {self.folds}, the number of folds, got {self.fold}")
        if self.folds is not None and self.split_by is not None:
            problems.append(
                "split_by: expected no value with folds, which would validate on samples before the training ones; "
                "drop one of them"
            )
        if self.folds is not None and "val_fraction" in self.changed():
            problems.append(
                "val_fraction: expected no value with folds, which hold out their own share; drop one of them"
            )
        return problems

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all fields."""
        return [f.name for f in fields(cls)]

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Recipe":
        """Return a Recipe from plain values; the error for an unknown name suggests the nearest one."""
        unknown = [name for name in values if name not in cls.names()]
        if unknown:
            names = "; ".join(f"{short_repr(name)}{did_you_mean(str(name)[:80], cls.names())}" for name in unknown[:5])
            raise InputError(f"unknown option {names}. See `skipway train --help` for all options.")
        lists = {name: names_as_text(values[name], name) for name in LISTS if name in values}
        paths = {name: os.fspath(value) for name, value in values.items() if isinstance(value, os.PathLike)}
        return cls(**_with_first_network({**values, **lists, **paths}))

    @staticmethod
    def read(path: Path, *, need_schema: bool = False) -> dict[str, Any]:
        """Return the fields that a YAML file sets; `1e-3` is read as a number, although YAML 1.1 reads it as text.

        Args:
            path: the file.
            need_schema: require the schema number, as in the config.yaml of a run. A file written by hand needs none.

        Raises:
            InputError: the file cannot be read, is not a YAML mapping, or has another schema.
        """
        values = read_yaml(path)
        number = values.pop("schema", None)
        if need_schema or number is not None:
            refuse_unknown_schema(printable(path), number)
        numeric = _numeric_fields()
        return {name: _number(value) if name in numeric else value for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return every field with its value, including defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def as_yaml(self, *, epochs_are_open: bool = False) -> str:
        """Return every field as YAML with the schema number, for `read`; epochs that are still open are left out."""
        values = {name: value for name, value in self.as_dict().items() if name != "epochs" or not epochs_are_open}
        return yaml.safe_dump(with_schema(values), sort_keys=False, allow_unicode=True)

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def _with_first_network(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the first model and the total epochs of `grow`, if it is set."""
    stages = values.get("grow")
    if not isinstance(stages, str) or not re.fullmatch(TEXTS["grow"].pattern, stages):
        return values
    first, total = stages.partition(":")[0], sum(int(part.rpartition(":")[2]) for part in stages.split(","))
    model, epochs = values.get("model", "auto"), values.get("epochs", total)
    if model not in ("auto", first):
        raise InputError(f"cannot grow: expected --model {first}, as in --grow, got {short_repr(model)}. Drop --model.")
    if isinstance(epochs, int) and epochs < total:
        raise InputError(f"cannot grow: expected at least {total} epochs, as in --grow, got {epochs}. Drop --epochs.")
    return {**values, "model": first, "epochs": epochs}


def _numeric_fields() -> set[str]:
    return {name for name, hint in get_type_hints(Recipe).items() if float in (hint, *get_args(hint))}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


assert all(f.default is not MISSING for f in fields(Recipe))
