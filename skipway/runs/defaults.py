"""Defaults of options that a recipe leaves open: batch size, optimizer, learning rate, precision, device.

The rules are tables; `--help` summarizes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from skipway.data.output_spec import TaskName
from skipway.distributed import collectives
from skipway.errors import InputError
from skipway.runs.recipe import Recipe
from skipway.runs.small_sets import FEW_IMAGES, small_batch_size
from skipway.runs.table_defaults import TABLE_NETWORK
from skipway.training.compiled_model import compile_obstacle
from skipway.training.trainer import KeptEpoch, Settings
from skipway.utils.devices import device_for, device_kind, device_name, has_bf16, has_fp16

__all__ = [
    "FAMILY_DEFAULTS",
    "FamilyDefaults",
    "TargetCounts",
    "batch_size_for",
    "class_weights_for",
    "head_for",
    "positive_weights_for",
    "precision_for",
    "settings_for",
]


@dataclass(frozen=True)
class FamilyDefaults:
    """Hyperparameters of a family. `lr` is for `batch` samples per step and scales with the root of the batch size.

    Square-root scaling suits the small batches of small datasets better than linear scaling (Krizhevsky 2014,
    arXiv:1404.5997).
    """

    lr: float
    batch: int
    momentum: float
    weight_decay: float
    label_smoothing: float = 0.1
    bias_lr_mult: float = 1.0


@dataclass(frozen=True)
class TargetCounts:
    """Task of a run and counts of its samples.

    Attributes:
        task: task of the run.
        count: number of training samples.
        of_classes: number of training samples with each class or label; empty for a regression.
        validation: number of validation samples.
    """

    task: TaskName = "classification"
    count: int = 0
    of_classes: tuple[int, ...] = ()
    validation: int = 0

    def loss_weights(self) -> tuple[float, ...]:
        """Return the weights of the loss that balance the classes, or the samples with and without each label."""
        if self.task == "multilabel":
            return positive_weights_for(self.of_classes, self.count)
        return class_weights_for(self.of_classes)


FAMILY_DEFAULTS = {
    ("resnet", "sgd"): FamilyDefaults(lr=0.2, batch=128, momentum=0.9, weight_decay=5e-4),
    ("resnet", "adamw"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("densenet", "sgd"): FamilyDefaults(lr=0.2, batch=128, momentum=0.9, weight_decay=5e-4),
    ("densenet", "adamw"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("convnext", "sgd"): FamilyDefaults(lr=0.05, batch=128, momentum=0.9, weight_decay=5e-4),
    ("convnext", "adamw"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("convnext", "muon"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.95, weight_decay=0.05),
    # Depthwise filters have few weights: the weight decay is that of MobileNetV2 (arXiv:1801.04381).
    ("inverted_residual", "sgd"): FamilyDefaults(lr=0.2, batch=128, momentum=0.9, weight_decay=4e-5),
    ("inverted_residual", "adamw"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("inverted_residual", "muon"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("resmlp", "sgd"): FamilyDefaults(lr=0.05, batch=128, momentum=0.9, weight_decay=5e-4),
    ("resmlp", "adamw"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("resnet", "muon"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("densenet", "muon"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("resmlp", "muon"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("resnet9", "muon"): FamilyDefaults(lr=0.015, batch=256, momentum=0.6, weight_decay=0.05, label_smoothing=0.2),
    # Fixed norm scales and partial identities allow far higher rates than He et al. (Jordan 2024, arXiv:2404.00498).
    ("resnet9", "sgd"): FamilyDefaults(
        lr=1.0, batch=512, momentum=0.85, weight_decay=1.3e-3, label_smoothing=0.2, bias_lr_mult=16.0
    ),
    ("resnet9", "adamw"): FamilyDefaults(lr=5e-3, batch=512, momentum=0.9, weight_decay=0.05, label_smoothing=0.2),
}
# Other families: sgd. In a few epochs muon is one or two points better, for 10% more time.
_FAMILY_OPTIMIZERS = {"resnet9": "muon", "convnext": "adamw"}

# Pretrained weights: only the head trains for an epoch, then all layers with rates that decrease towards the stem
# (Howard and Ruder 2018, arXiv:1801.06146).
_PRETRAINED_LR_FACTOR = 0.1
_PRETRAINED_LAYER_DECAY = 0.5
_PRETRAINED_FREEZE_EPOCHS = 1
# The last layers on 3,000 photographs: rates from 3e-4 to 1e-3 gave equal results, SGD at 0.02 diverged.
_LAST_LAYERS = FamilyDefaults(lr=1e-3, batch=64, momentum=0.9, weight_decay=0.05)
_NO_LINEAR_HEAD = ("resnet9", "resmlp")  # families whose head is not one linear layer on image features
_MOST_FOR_REGRESSION = 200_000  # training images: the features of more take minutes and gigabytes

_TABLE_DEFAULTS = FamilyDefaults(lr=8e-3, batch=128, momentum=0.9, weight_decay=0.2, label_smoothing=0.0)
_HUBER = 1.0  # standard deviations
_SMALL_SET = 5_000  # training samples
_MANY = 20_000  # training images
_SMALL_SHARE = 0.05  # of the training images
_DECAYING = ("one-cycle", "cosine")  # schedules that end at a rate of 0
_MOST_POSITIVE = 100.0  # factor of the loss of samples with a rare label


def batch_size_for(recipe: Recipe, count: int) -> int:
    """Return the recipe's batch size, or a default by the number of training images."""
    if recipe.batch_size:
        return recipe.batch_size
    if count < FEW_IMAGES:
        return small_batch_size(count)
    if count < _SMALL_SET:
        return 32
    return 128 if count < _MANY else 256


def settings_for(
    recipe: Recipe,
    plan: dict[str, Any],
    batch_size: int,
    *,
    pretrained: bool = False,
    targets: TargetCounts = TargetCounts(),  # noqa: B008 (frozen)
    is_table: bool = False,
    freeze_until: str | None = None,
) -> Settings:
    """Return the training settings for the architecture of `plan`, with every default resolved.

    Args:
        recipe: options of the run.
        plan: the plan of the network.
        batch_size: samples per batch.
        pretrained: the network has pretrained weights.
        targets: task and training samples of the run.
        is_table: the samples are rows of a table.
        freeze_until: the last frozen layer, or None.

    Raises:
        InputError: the device is missing, or another option excludes FSDP.
    """
    device = device_for(recipe.device, rows=targets.count if is_table else None)
    if recipe.fsdp:
        _refuse_unshared(recipe)
    if recipe.compile == "on":
        _refuse_uncompilable(recipe)
    head = head_for(recipe, plan, pretrained=pretrained, count=targets.count)
    is_later_part = freeze_until is not None
    optimizer, defaults = _optimizer_and_defaults(recipe, plan, is_table, is_later_part)
    return Settings(
        epochs=recipe.epochs,
        lr=_learning_rate(recipe, defaults, batch_size, pretrained and not is_later_part),
        optimizer=optimizer,
        momentum=_value_or(recipe.momentum, defaults.momentum),
        weight_decay=_value_or(recipe.weight_decay, defaults.weight_decay),
        bias_lr_mult=_value_or(recipe.bias_lr_mult, defaults.bias_lr_mult),
        schedule=recipe.schedule,
        head=head,
        freeze_epochs=_PRETRAINED_FREEZE_EPOCHS if head == "regression" else _freeze_epochs(recipe, pretrained),
        freeze_until=freeze_until,
        layer_decay=_value_or(recipe.layer_decay, _PRETRAINED_LAYER_DECAY if pretrained and not is_later_part else 1.0),
        label_smoothing=_label_smoothing(recipe, _TABLE_DEFAULTS if is_table else defaults, targets.task),
        class_weights=targets.loss_weights() if recipe.balance == "weights" else None,
        huber=_HUBER if is_table and targets.task == "regression" else None,
        l1=recipe.l1,
        l2=recipe.l2,
        ema=recipe.ema,
        clip_grad=recipe.clip_grad,
        grad_accum_steps=recipe.grad_accum_steps,
        patience=recipe.patience,
        time_limit=recipe.time_limit,
        seed=recipe.seed,
        precision=precision_for(recipe, device, is_table),
        device=device,
        save_every=recipe.save_every,
        kept_epoch=_kept_epoch(recipe, targets, is_table=is_table, pretrained=pretrained),
        calibrate=is_table and targets.task == "classification",
        fsdp=recipe.fsdp,
        recompute=recipe.recompute,
    )


def _kept_epoch(recipe: Recipe, targets: TargetCounts, *, is_table: bool, pretrained: bool) -> KeptEpoch:
    """Return the epoch whose weights a run keeps.

    On few validation samples, the best of many epochs is a matter of chance, and looks better than it is. Rows of
    tables are always few in this sense, and so are validation images that are a small share of many images: the last
    epoch of a decaying learning rate is then the better choice.
    """
    if recipe.patience is not None:
        return "best"
    is_small_share = targets.count >= _MANY and 0 < targets.validation <= _SMALL_SHARE * targets.count
    ends_low = recipe.schedule in _DECAYING and not pretrained
    return "last" if is_table or (is_small_share and ends_low) else "best"


def _optimizer_and_defaults(
    recipe: Recipe, plan: dict[str, Any], is_table: bool, is_later_part: bool
) -> tuple[str, FamilyDefaults]:
    """Return the optimizer of the recipe or the family, and its default hyperparameters."""
    family = plan["family"]
    optimizer: str = recipe.optimizer
    if optimizer == "auto":
        optimizer = "adamw" if is_table or is_later_part else _FAMILY_OPTIMIZERS.get(family, "sgd")
    if optimizer == "adamw" and is_table:
        # Adam's rate decreases with the inputs of a layer (Yang et al. 2022, arXiv:2203.03466).
        width = max(plan.get("width", 0), TABLE_NETWORK["width"])
        return optimizer, replace(_TABLE_DEFAULTS, lr=_TABLE_DEFAULTS.lr * TABLE_NETWORK["width"] / width)
    if optimizer == "adamw" and is_later_part:
        return optimizer, _LAST_LAYERS
    return optimizer, FAMILY_DEFAULTS[family, optimizer]


def _value_or(value: float | None, default: float) -> float:
    return default if value is None else value


def _label_smoothing(recipe: Recipe, defaults: FamilyDefaults, task: TaskName) -> float:
    """Return the recipe's smoothing, or that of the family for classes; a binary cross-entropy has none by default."""
    return _value_or(recipe.label_smoothing, defaults.label_smoothing if task == "classification" else 0.0)


def _learning_rate(recipe: Recipe, defaults: FamilyDefaults, batch_size: int, pretrained: bool) -> float:
    """Return the recipe's rate, or the family's scaled by the square root of the samples per step."""
    if recipe.lr is not None and not isinstance(recipe.lr, str):
        return recipe.lr
    share = batch_size * recipe.grad_accum_steps / defaults.batch
    return defaults.lr * min(share**0.5, 4.0) * (_PRETRAINED_LR_FACTOR if pretrained else 1)


def _freeze_epochs(recipe: Recipe, pretrained: bool) -> int:
    if recipe.freeze_epochs is not None:
        return recipe.freeze_epochs
    return _PRETRAINED_FREEZE_EPOCHS if pretrained and recipe.epochs > 2 else 0


def head_for(recipe: Recipe, plan: dict[str, Any], *, pretrained: bool, count: int) -> str:
    """Return how the head is fitted in the first epoch: "regression" or "train".

    Raises:
        InputError: the recipe asks for regression, but the network or another option excludes it.
    """
    if recipe.head == "train":
        return "train"
    obstacles = {
        f"a {plan['family']} network": plan["family"] in _NO_LINEAR_HEAD,
        f"{collectives.world_size()} processes": collectives.world_size() > 1,
        "--grow": recipe.grow is not None,
        "--freeze-epochs": recipe.freeze_epochs is not None,
        "--features": recipe.features is not None,
    }
    present = [name for name, is_there in obstacles.items() if is_there]
    if recipe.head == "regression":
        if present:
            raise InputError(
                f"cannot fit the head by regression: expected a network of images with a linear head in one process, "
                f"got {' and '.join(present)}. Use --head train."
            )
        return "regression"
    return "regression" if pretrained and not present and count <= _MOST_FOR_REGRESSION else "train"


def precision_for(recipe: Recipe, device: str, is_table: bool) -> str:
    """Return the precision of a run on `device`: "bf16", "fp16" or "fp32".

    Raises:
        InputError: the device does not support the precision of the recipe.
    """
    if recipe.precision != "auto":
        _refuse_precision(recipe, device)
        return recipe.precision
    if is_table:  # small layers gain no speed, and measurements lose digits
        return "fp32"
    if has_bf16(device):
        return "bf16"
    return "fp16" if has_fp16(device) and not recipe.fsdp else "fp32"


def _refuse_precision(recipe: Recipe, device: str) -> None:
    """Raise InputError for bf16 on a GPU that would emulate it, and for fp16 without a GPU or with sharded weights."""
    is_gpu = device_kind(device) == "cuda"
    if recipe.precision == "bf16" and device_kind(device) in ("cuda", "xpu") and not has_bf16(device):
        raise InputError(
            f"cannot use --precision bf16 on {device_name(device)}: expected a GPU that computes in "
            f"bf16, got one that emulates it. Use --precision {'fp16' if has_fp16(device) else 'fp32'}."
        )
    if recipe.precision == "fp16" and (not is_gpu or recipe.fsdp):
        place = "--fsdp" if is_gpu else f"device {device}"
        raise InputError(
            f"cannot use --precision fp16: expected a CUDA device without --fsdp, got {place}. Use --precision bf16 or "
            "fp32."
        )


def class_weights_for(counts: Sequence[int]) -> tuple[float, ...]:
    """Return the loss weight of each class, inverse to its frequency and 1 on average over the samples."""
    total, classes = sum(counts), sum(1 for count in counts if count)
    return tuple(total / (classes * count) if count else 0.0 for count in counts)


def positive_weights_for(counts: Sequence[int], total: int) -> tuple[float, ...]:
    """Return the factor of the loss of samples with each label, by which they weigh as much as those without it.

    It is at most 100, so that a few samples do not dominate the loss, and 1 for a label without samples.
    """
    return tuple(min((total - count) / count, _MOST_POSITIVE) if count else 1.0 for count in counts)


def _refuse_uncompilable(recipe: Recipe) -> None:
    """Raise InputError if another option excludes torch.compile."""
    obstacle = compile_obstacle(fsdp=recipe.fsdp, recompute=recipe.recompute, deterministic=recipe.deterministic)
    if obstacle:
        raise InputError(f"cannot use --compile on: expected no {obstacle}, got {obstacle}. Drop one of them.")


def _refuse_unshared(recipe: Recipe) -> None:
    """Raise InputError if the weights cannot be sharded here, or not with the other options."""
    if collectives.world_size() == 1:
        raise InputError("cannot use --fsdp: expected several processes, got one. Add --nproc 2, or drop --fsdp.")
    if recipe.l1 or recipe.l2:
        raise InputError(
            "cannot use --l1 or --l2 with --fsdp: they need unsharded weights. Use --weight-decay instead."
        )
    if recipe.recompute != "none":
        raise InputError(
            "cannot use --recompute with --fsdp: gradients of sharded weights would be lost. Drop one of them."
        )
