"""What a recipe leaves open is decided here: batch size, optimiser, learning rate, precision, device.

The rules are tables; `--help` says "the network's own" where they hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skipway.distributed import collectives
from skipway.errors import InputError
from skipway.runs.recipe import Recipe
from skipway.training.trainer import Settings, has_bf16

__all__ = [
    "FAMILY_DEFAULTS",
    "TABLE",
    "FamilyDefaults",
    "batch_size_for",
    "device_for",
    "settings_for",
    "table_batch_size",
    "table_epochs",
]


@dataclass(frozen=True)
class FamilyDefaults:
    """How a family trains by default: `lr` is for `batch` pictures in a step and goes with the root of their number.

    The root bears small sets, whose batches are small, better than the linear rule (Krizhevsky 2014, arXiv:1404.5997).
    """

    lr: float
    batch: int
    momentum: float
    weight_decay: float
    label_smoothing: float = 0.1
    bias_lr_mult: float = 1.0


FAMILY_DEFAULTS = {
    ("resnet", "sgd"): FamilyDefaults(lr=0.2, batch=128, momentum=0.9, weight_decay=5e-4),
    ("resnet", "adamw"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("densenet", "sgd"): FamilyDefaults(lr=0.2, batch=128, momentum=0.9, weight_decay=5e-4),
    ("densenet", "adamw"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("resmlp", "sgd"): FamilyDefaults(lr=0.05, batch=128, momentum=0.9, weight_decay=5e-4),
    ("resmlp", "adamw"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.9, weight_decay=0.05),
    ("resnet", "muon"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("densenet", "muon"): FamilyDefaults(lr=2e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("resmlp", "muon"): FamilyDefaults(lr=1e-3, batch=128, momentum=0.95, weight_decay=0.05),
    ("resnet9", "muon"): FamilyDefaults(lr=0.015, batch=256, momentum=0.6, weight_decay=0.05, label_smoothing=0.2),
    # Fixed norm scales and partial identities bear rates far above He's (Jordan 2024, arXiv:2404.00498).
    ("resnet9", "sgd"): FamilyDefaults(
        lr=1.0, batch=512, momentum=0.85, weight_decay=1.3e-3, label_smoothing=0.2, bias_lr_mult=16.0
    ),
    ("resnet9", "adamw"): FamilyDefaults(lr=5e-3, batch=512, momentum=0.9, weight_decay=0.05, label_smoothing=0.2),
}
_USUAL = {"resnet9": "muon"}  # sgd elsewhere; in few epochs muon is ahead of it by a point or two, at a tenth more time

# Fitting weights that are trained already: the head learns alone for an epoch, then all with rates that fall towards
# the stem (Howard and Ruder 2018, arXiv:1801.06146).
_FINE_LR, _FINE_DECAY, _FROZEN = 0.1, 0.5, 1


# Tables, which are small and noisy beside pictures: see benchmarks/tables.py.
TABLE: dict[str, Any] = {"layers": 2, "width": 64, "dropout": 0.2}
TABLE_OWN = FamilyDefaults(lr=5e-4, batch=32, momentum=0.9, weight_decay=0.05, label_smoothing=0.1)
_TABLE_STEPS = 300


def table_batch_size(count: int) -> int:
    """How many of `count` training rows make a step, unless told."""
    return 32 if count < 5_000 else 128 if count < 50_000 else 512


def table_epochs(count: int, batch_size: int) -> int:
    """How many passes over `count` training rows, unless told: enough for small tables to be learnt."""
    return min(200, max(30, round(_TABLE_STEPS * batch_size / count)))


def _class_weights(counts: Sequence[int]) -> tuple[float, ...]:
    """What a sample of each class counts, so that all classes count alike and a sample 1 on average."""
    total, classes = sum(counts), sum(1 for count in counts if count)
    return tuple(total / (classes * count) if count else 0.0 for count in counts)


def batch_size_for(recipe: Recipe, count: int) -> int:
    """The recipe's batch size, or one that gives `count` training pictures steps enough to learn from."""
    return recipe.batch_size or (32 if count < 5_000 else 128 if count < 20_000 else 256)


def settings_for(
    recipe: Recipe,
    plan: dict[str, Any],
    batch_size: int,
    *,
    fine: bool = False,
    counts: Sequence[int] = (),
    table: bool = False,
) -> Settings:
    """Everything that `fit` needs to know, with nothing left open, for the network of `plan`.

    Args:
        fine: whether its weights are trained already, so that they are only to be fitted.
        counts: training samples of each class.
        table: whether the samples are rows of a table.
    """
    usual = "adamw" if table else _USUAL.get(plan["family"], "sgd")
    optimizer = usual if recipe.optimizer == "auto" else recipe.optimizer
    own = TABLE_OWN if table and optimizer == "adamw" else FAMILY_DEFAULTS[plan["family"], optimizer]
    share = batch_size * recipe.grad_accum_steps / own.batch
    device = device_for(recipe.device)
    if recipe.fsdp:
        _refuse_unshared(recipe)
    bf16 = has_bf16(device) and not table  # small layers gain nothing, and measured numbers lose their digits

    def first(value: float | None, otherwise: float) -> float:
        return otherwise if value is None else value

    return Settings(
        epochs=recipe.epochs,
        lr=first(
            None if isinstance(recipe.lr, str) else recipe.lr, own.lr * min(share**0.5, 4.0) * (_FINE_LR if fine else 1)
        ),
        optimizer=optimizer,
        momentum=first(recipe.momentum, own.momentum),
        weight_decay=first(recipe.weight_decay, own.weight_decay),
        bias_lr_mult=first(recipe.bias_lr_mult, own.bias_lr_mult),
        schedule=recipe.schedule,
        freeze_epochs=(_FROZEN if fine and recipe.epochs > 2 else 0)
        if recipe.freeze_epochs is None
        else recipe.freeze_epochs,
        layer_decay=first(recipe.layer_decay, _FINE_DECAY if fine else 1.0),
        label_smoothing=first(recipe.label_smoothing, own.label_smoothing),
        class_weights=_class_weights(counts) if recipe.balance == "weights" else None,
        l1=recipe.l1,
        l2=recipe.l2,
        ema=recipe.ema,
        clip_grad=recipe.clip_grad,
        grad_accum_steps=recipe.grad_accum_steps,
        patience=recipe.patience,
        time_limit=recipe.time_limit,
        seed=recipe.seed,
        precision=recipe.precision if recipe.precision != "auto" else "bf16" if bf16 else "fp32",
        device=device,
        save_every=recipe.save_every,
        fsdp=recipe.fsdp,
        recompute=recipe.recompute,
    )


def _refuse_unshared(recipe: Recipe) -> None:
    if collectives.world_size() == 1:
        raise InputError(
            "--fsdp splits a network over several processes, but this is one; add --nproc 2, or leave it out"
        )
    if recipe.l1 or recipe.l2:
        raise InputError("--l1 and --l2 need all weights in one place, which --fsdp splits; use --weight-decay instead")
    if recipe.recompute != "none":
        raise InputError(
            "--recompute and --fsdp do not go together: gradients of split weights would be lost; use one of them"
        )


def device_for(asked: str) -> str:
    """What `asked` stands for here: "cpu" or "cuda"."""
    found = torch.cuda.is_available()
    if asked == "cuda" and not found:
        raise InputError(
            "--device cuda was asked for, but torch sees no GPU here; leave it out or install torch for CUDA"
        )
    return asked if asked != "auto" else "cuda" if found else "cpu"
