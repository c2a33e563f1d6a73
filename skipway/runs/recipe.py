"""Recipe: everything a training run can be told, as one flat dataclass behind flags, YAML and keyword arguments.

It knows no room of the house and imports no torch, so that `skipway --help` is quick.
"""

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_type_hints

import yaml

from skipway.data.image_spec import MAX_SIZE
from skipway.errors import InputError, did_you_mean, printable
from skipway.utils.format_text import short_repr
from skipway.utils.run_schema import refuse_unknown_schema, with_schema

__all__ = ["Recipe"]


def _option(
    default: Any, help: str, *, alias: str = "", minimum: float | None = None, maximum: float | None = None
) -> Any:
    """Return a field with its help text, its short flag, and the range that its value must lie in."""
    return field(default=default, metadata={"help": help, "alias": alias, "minimum": minimum, "maximum": maximum})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to train on what, and how. Every value is plain, and `config.yaml` holds all of them."""

    data: str | None = _option(None, "A built-in name, a folder of class folders, parquet files, hf:org/name, a table.")
    model: str = _option("auto", "A name from `skipway models`, or auto: picked by the data.", alias="-m")
    grow: str | None = _option(
        None, "Networks to grow through, with the epochs of each: resnet20:4,resnet32:4,resnet56:8."
    )
    target: str | None = _option(None, "Column of a table to predict.")
    task: str = _option("auto", "What a table's target is: classification, regression; auto: read off its values.")
    ignore: str | None = _option(None, "Columns of a table to leave out, separated by commas.")
    epochs: int = _option(
        10, "Passes over the samples; for tables, unless told: by their rows.", alias="-e", minimum=1, maximum=100_000
    )
    batch_size: int | None = _option(
        None, "Pictures in a step; default: picked by the data.", alias="-b", minimum=2, maximum=1_000_000
    )
    lr: float | str | None = _option(
        None, "Highest learning rate, or auto: by a range test; default: the network's own.", minimum=1e-9, maximum=1e4
    )
    optimizer: str = _option("auto", "sgd (Nesterov), adamw, or muon (adamw for all but the matrices); auto picks.")
    momentum: float | None = _option(
        None, "Momentum of sgd, first beta of adamw; default: the network's own.", minimum=0, maximum=0.9999
    )
    weight_decay: float | None = _option(
        None, "Decay of weights, not of norms and biases; default: the network's own.", minimum=0, maximum=10
    )
    schedule: str = _option(
        "one-cycle", "Course of the learning rate: one-cycle, cosine, steps, flat-cosine, constant."
    )
    pretrained: str = _option(
        "auto", "Weights to begin with: a tag of the Hub, a run, a file; auto: for photographs, where at hand; none."
    )
    head: str = _option(
        "auto", "How a pretrained network begins: regression (of its features), train, or auto: regression if it can."
    )
    freeze_epochs: int | None = _option(
        None,
        "Epochs in which the head of a pretrained network learns alone; default: decided.",
        minimum=0,
        maximum=100_000,
    )
    freeze_until: str = _option(
        "auto",
        "Layer up to which a pretrained network stays as it is, such as stage6: its outputs are computed once for each "
        "of --views; none; auto: for photographs all but the last stage.",
    )
    views: int = _option(4, "Augmented views of each training image, for --freeze-until.", minimum=1, maximum=1000)
    layer_decay: float | None = _option(
        None,
        "Learning rate of each stage over that of the next; default: below 1 for pretrained ones.",
        minimum=1e-3,
        maximum=1,
    )
    label_smoothing: float | None = _option(
        None, "Share of each label spread over all classes; default: the network's own.", minimum=0, maximum=0.99
    )
    bias_lr_mult: float | None = _option(
        None,
        "Learning rate of norms and biases over that of weights; default: the network's own.",
        minimum=0,
        maximum=1e4,
    )
    l1: float = _option(0.0, "Penalty on the sum of the weights' sizes.", minimum=0, maximum=10)
    l2: float = _option(0.0, "Penalty on the sum of their squares, beside weight_decay.", minimum=0, maximum=10)
    dropout: float = _option(0.0, "Chance to leave out a value inside the blocks.", minimum=0, maximum=0.99)
    balance: str = _option("none", "Classes of unlike sizes: none, weights (in the loss) or sampling.")
    mixup: float = _option(0.0, "How evenly pictures are blended in pairs; 0.2 is usual.", minimum=0, maximum=100)
    cutmix: float = _option(
        0.0, "The same for rectangles cut from one into the other; 1 is usual.", minimum=0, maximum=100
    )
    tta: bool = _option(False, "Judge at the end by the mean over several views of each picture.")
    ema: float | None = _option(None, "Decay per step of an average of the weights.", minimum=0, maximum=0.999999)
    clip_grad: float | None = _option(
        None, "Largest gradient norm; longer gradients are shortened to it.", minimum=1e-9
    )
    grad_accum_steps: int = _option(1, "Batches whose gradients are summed into one step.", minimum=1, maximum=100_000)
    patience: int | None = _option(None, "Epochs without a better validation accuracy before stopping.", minimum=1)
    time_limit: float | None = _option(
        None, "Seconds for the whole run; on images it sets the epochs, unless --epochs does.", minimum=0
    )
    seed: int = _option(0, "Makes the run: order, augmentation, initial weights.", minimum=0, maximum=2**32 - 1)
    img_size: int | str | None = _option(
        None,
        "Height and width the network is given, or 128:224 to grow on the way; default: picked by the data.",
        minimum=1,
        maximum=MAX_SIZE,
    )
    resize_mode: str = _option(
        "auto", "How a picture becomes square: squash, crop or pad; auto: by the shapes of the data."
    )
    augment: str = _option(
        "auto",
        "Changes to training images: none, light, light+erase, medium, strong, or parts of flip, shift, zoom, affine, "
        "color, trivial, erase joined by +.",
    )
    stem: str | None = _option(
        None, "First layers of the network: large, small, deep, tiered, deep_conv, whitening; default: by picture size."
    )
    drop_path: float = _option(0.0, "Chance to leave out the deepest block while training.", minimum=0, maximum=0.99)
    val_fraction: float = _option(
        0.2,
        "Share of training pictures held out where there is no validation set, at most 5,000.",
        minimum=0.001,
        maximum=0.9,
    )
    folds: int | None = _option(
        None,
        "Cross-validate: networks to train, each validated on another fold; each has its share of --time-limit.",
        minimum=2,
        maximum=1000,
    )
    fold: int | None = _option(None, "Train on one of --folds alone, from 1 on.", minimum=1, maximum=1000)
    precision: str = _option("auto", "bf16, fp32, or auto: bf16 where the hardware has it.")
    device: str = _option("auto", "cpu, cuda, or auto.")
    fsdp: bool = _option(False, "Split weights and optimiser over several processes (FSDP), where one is too small.")
    recompute: int | str = _option(
        "none",
        "Blocks of which only the input is kept while training, to save memory; auto; stages: all of each; none.",
        minimum=1,
        maximum=100_000,
    )
    watch: bool = _option(False, "Measure and draw how signals flow through it, before training and after every epoch.")
    threads: int | None = _option(None, "CPU threads; default: as many as available cores.", minimum=1, maximum=1024)
    save_every: float = _option(120.0, "Seconds between checkpoints inside an epoch.", minimum=0)
    max_unreadable: float = _option(
        0.01, "Largest share of unreadable pictures to go on without.", minimum=0, maximum=1
    )
    max_pixels: int = _option(50_000_000, "Largest picture that is decoded, in pixels.", minimum=1)
    follow_links: bool = _option(False, "Read pictures behind links that lead out of the folder.")
    allow_empty_classes: bool = _option(False, "Leave class folders without pictures out instead of refusing.")
    allow_duplicates: bool = _option(False, "Go on when the same picture stands in two splits.")
    output: str = _option("runs", "Folder that run folders are made in.", alias="-o")
    name: str | None = _option(None, "Name of the run folder; default: data-model, numbered where taken.")

    def __post_init__(self) -> None:
        problems = [*self._field_problems(), *self._text_problems(), *self._size_problems(), *self._fold_problems()]
        if problems:
            raise InputError("the recipe does not work: " + "; ".join(problems))

    def _field_problems(self) -> list[str]:
        """Return what is wrong with the types, ranges and choices of the fields."""
        hints = get_type_hints(type(self))
        problems = {f.name: _problem(f, getattr(self, f.name), hints[f.name]) for f in fields(self)}
        messages = [problem for problem in problems.values() if problem]
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not problems[name] and value not in choices:
                known = [choice for choice in choices if choice]
                hint = did_you_mean(value, known)
                messages.append(f"{name} is one of {', '.join(known)}, not {short_repr(value)}{hint}")
        return messages

    def _text_problems(self) -> list[str]:
        """Return which fields hold a text of another form than they take."""
        values = {name: getattr(self, name) for name in TEXTS}
        return [
            f"{name} is {TEXTS[name].words}, not {short_repr(value)}"
            for name, value in values.items()
            if isinstance(value, str) and not re.fullmatch(TEXTS[name].pattern, value)
        ]

    def _size_problems(self) -> list[str]:
        """Return which of two image sizes is too large; a single one is a number with a range."""
        if not isinstance(self.img_size, str) or not re.fullmatch(TEXTS["img_size"].pattern, self.img_size):
            return []
        if max(map(int, self.img_size.split(":"))) <= MAX_SIZE:
            return []
        return [f"img_size must be from 1 to {MAX_SIZE:,} in both numbers, not {self.img_size}"]

    def _fold_problems(self) -> list[str]:
        """Return which fields of cross-validation do not fit to one another."""
        problems = []
        if isinstance(self.fold, int) and isinstance(self.folds, int) and self.fold > self.folds:
            problems.append(f"fold is from 1 to {self.folds}, the number of folds, not {self.fold}")
        if self.folds is not None and "val_fraction" in self.changed():
            problems.append("folds and val_fraction exclude each other, since folds hold their own share out")
        return problems

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of all fields."""
        return [f.name for f in fields(cls)]

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Recipe":
        """Return a Recipe from plain values; an unknown name is refused with the nearest known one."""
        unknown = [name for name in values if name not in cls.names()]
        if unknown:
            names = "; ".join(f"{short_repr(name)}{did_you_mean(str(name)[:80], cls.names())}" for name in unknown[:5])
            raise InputError(f"a recipe has no field {names}; `skipway train --help` lists them all")
        return cls(**_with_first_network(values))

    @staticmethod
    def read(path: Path, *, need_schema: bool = False) -> dict[str, Any]:
        """Return the fields that a YAML file sets; `1e-3` is a number there, which YAML 1.1 takes for text.

        Args:
            path: the file.
            need_schema: refuse a file without the schema number that a run writes into its config.yaml; a file
                written by hand needs none. Any other number is refused in both.

        Raises:
            InputError: it cannot be read, is no mapping in YAML, or has another schema.
        """
        values = _read_yaml(path)
        number = values.pop("schema", None)
        if need_schema or number is not None:
            refuse_unknown_schema(printable(path), number)
        numeric = _numeric_fields()
        return {name: _number(value) if name in numeric else value for name, value in values.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return every field with its value, defaults too."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def as_yaml(self, *, epochs_are_open: bool = False) -> str:
        """Return every field as YAML, after the schema number, fit for `read`; without epochs that are still open."""
        values = {name: value for name, value in self.as_dict().items() if name != "epochs" or not epochs_are_open}
        return yaml.safe_dump(with_schema(values), sort_keys=False, allow_unicode=True)

    def changed(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


_MAX_CHARACTERS = 100_000  # of a config; all fields take two thousand
_KIND_WORDS = {int: "whole number", str: "text", bool: "yes or no (true, false)"}
CHOICES: dict[str, tuple[Any, ...]] = {
    "task": ("auto", "classification", "regression"),
    "optimizer": ("auto", "sgd", "adamw", "muon"),
    "head": ("auto", "regression", "train"),
    "schedule": ("one-cycle", "cosine", "steps", "flat-cosine", "constant"),
    "balance": ("none", "weights", "sampling"),
    "resize_mode": ("auto", "squash", "crop", "pad"),
    "stem": (None, "large", "small", "deep", "tiered", "deep_conv", "whitening"),
    "precision": ("auto", "bf16", "fp32"),
    "device": ("auto", "cpu", "cuda"),
}
_STAGE = r"[\w.-]+:[1-9]\d{0,4}"
_PART = "(?:flip|shift|zoom|affine|color|trivial|erase)"


class TextForm(NamedTuple):
    """The form of a text in a field: a regular expression, and words for an error."""

    pattern: str
    words: str


TEXTS = {
    "lr": TextForm("auto", "a number, or auto"),
    "grow": TextForm(
        rf"{_STAGE}(?:,{_STAGE})+", "two or more networks with the epochs of each, as resnet20:4,resnet56:8"
    ),
    "recompute": TextForm("auto|stages|none", "a whole number, auto, stages or none"),
    "img_size": TextForm(r"[1-9]\d{0,3}:[1-9]\d{0,3}", "a whole number, or two of them as 128:224"),
    "augment": TextForm(
        rf"auto|none|light(?:\+erase)?|medium|strong|(?!.*(?:shift.*zoom|zoom.*shift))(?!.*\b(\w+)\b.*\b\1\b){_PART}(?:\+{_PART})*",
        "auto, none, light, light+erase, medium, strong, or some of flip, shift (or zoom), affine, color, trivial and "
        "erase joined by +, each once",
    ),
}


def _with_first_network(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with the model that `grow` begins with and with its epochs, if `grow` is set."""
    stages = values.get("grow")
    if not isinstance(stages, str) or not re.fullmatch(TEXTS["grow"].pattern, stages):
        return values
    first, total = stages.partition(":")[0], sum(int(part.rpartition(":")[2]) for part in stages.split(","))
    model, epochs = values.get("model", "auto"), values.get("epochs", total)
    if model not in ("auto", first):
        raise InputError(f"grow begins with {first}, but the model is {short_repr(model)}; give one of them")
    if isinstance(epochs, int) and epochs < total:
        raise InputError(f"grow takes {total} epochs, but there are {epochs}; leave epochs out, or give more")
    return {**values, "model": first, "epochs": epochs}


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return what a YAML file maps."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_CHARACTERS + 1)
        if len(text) > _MAX_CHARACTERS:
            raise ValueError(f"it is longer than {_MAX_CHARACTERS:,} characters")
        values = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"cannot read the config {printable(path)}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise InputError(f"the config {printable(path)} is not plain YAML: {reason}") from None
    if not isinstance(values, dict):
        raise InputError(f"the config {printable(path)} must hold `field: value` lines, such as `epochs: 20`")
    return values


def _problem(f: Any, value: Any, hint: Any) -> str:
    """Return what is wrong with the type or the range of one field's value, or nothing."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return ""
    accepts_int = float in kinds and isinstance(value, int) and not isinstance(value, bool)
    if type(value) not in kinds and not accepts_int:
        words = "number" if float in kinds else next(_KIND_WORDS[kind] for kind in kinds if kind is not NoneType)
        return f"{f.name} is a {words}, not {short_repr(value)}"
    minimum, maximum = f.metadata["minimum"], f.metadata["maximum"]
    if minimum is None or isinstance(value, str):
        return ""
    bound = math.inf if maximum is None else maximum
    if minimum <= value <= bound and value < math.inf:
        return ""
    reach = f"at least {minimum:,}, and finite" if maximum is None else f"from {minimum:,} to {maximum:,}"
    return f"{f.name} must be {reach}, not {short_repr(value)}"


def _numeric_fields() -> set[str]:
    return {name for name, hint in get_type_hints(Recipe).items() if float in (hint, *get_args(hint))}


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


assert all(f.default is not MISSING for f in fields(Recipe))
