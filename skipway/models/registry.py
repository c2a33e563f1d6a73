"""The registry: map a name and options to a plan, and a plan to a network."""

import fnmatch
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from skipway.errors import InputError, did_you_mean, printable
from skipway.models import convnext, densenet, inverted_residual, mlp, resnet, resnet9
from skipway.models.architecture_plan import Plan
from skipway.models.option_aliases import translate_options
from skipway.nn.chain import Chain
from skipway.nn.reversible import Reversible

__all__ = ["FAMILIES", "ROWS", "build", "count_parameters", "names", "plan_of", "rebuild"]


class Family(NamedTuple):
    """A family of networks: its plan class, its builder, its named models, and if its stages repeat one block."""

    plan: type[Plan]
    build: Callable[[Any], Chain]
    rows: dict[str, dict[str, Any]]
    repeats: bool = False


FAMILIES: dict[str, Family] = {
    family.plan.FAMILY: family
    for family in (
        Family(resnet.ResNetPlan, resnet.resnet, resnet.NETWORKS, repeats=True),
        Family(
            inverted_residual.InvertedResidualPlan,
            inverted_residual.inverted_residual,
            inverted_residual.NETWORKS,
            repeats=True,
        ),
        Family(convnext.ConvNeXtPlan, convnext.convnext, convnext.NETWORKS, repeats=True),
        Family(densenet.DenseNetPlan, densenet.densenet, densenet.NETWORKS),
        Family(mlp.ResMLPPlan, mlp.resmlp, mlp.NETWORKS),
        Family(resnet9.ResNet9Plan, resnet9.resnet9, resnet9.NETWORKS),
    )
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {}
for _kind, _family in FAMILIES.items():
    ROWS.update({name: (_kind, row) for name, row in _family.rows.items()})


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)  # the name becomes part of file names


def names(pattern: str = "*") -> list[str]:
    """Return the registered names that match a shell pattern, in natural order.

    >>> names("resnet18*")
    ['resnet18', 'resnet18d']
    """
    return sorted(fnmatch.filter(ROWS, pattern), key=_natural)


def plan_of(name: str, **options: Any) -> dict[str, Any]:
    """Return the plan of a named model, a dictionary of plain values.

    Args:
        name: a registered name.
        options: values that replace those of the name, also in the words of timm and torchvision: see
            `option_aliases`.

    Raises:
        InputError: the name, an option or a value is invalid.

    >>> plan_of("resnet18", num_classes=10)["num_classes"]
    10
    """
    if name not in ROWS:
        raise InputError(
            f"unknown architecture {name!r}{did_you_mean(name, ROWS)}. List all names with `skipway models`."
        )
    family, row = ROWS[name]
    allowed = FAMILIES[family].plan.options()
    options = translate_options(name, options, allowed)
    for option in options:
        if option not in allowed:
            raise InputError(
                f"{name}: unknown option {option!r}{did_you_mean(option, allowed)}: expected one of "
                f"{', '.join(allowed)}. Change the option."
            )
    return {"name": name, "family": family, **FAMILIES[family].plan(**{**row, **options}).as_dict()}


def build(name: str, **options: Any) -> tuple[Chain, dict[str, Any]]:
    """Return a named network with random initial weights, and its plan: see `plan_of`."""
    plan = plan_of(name, **options)
    return rebuild(plan), plan


def rebuild(plan: dict[str, Any]) -> Chain:
    """Build the network of a plan with random initial weights.

    Raises:
        InputError: the plan is invalid.
    """
    values = dict(plan)
    name = values.pop("name", None)
    if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InputError(
            "cannot read the plan: expected a name of up to 100 letters, digits, '_', '-' and '.', "
            f"got {printable(repr(name)[:100])}. Write the file again."
        )
    family = values.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"cannot read the plan: expected a family of {', '.join(FAMILIES)}, got {family!r}. Upgrade skipway."
        )
    return FAMILIES[family].build(FAMILIES[family].plan.of(values))


def count_parameters(plan: dict[str, Any]) -> int:
    """Count the parameters of the network of `plan`; repeated blocks are counted without building them."""
    short_plan = dict(plan)
    repeats = {}
    if FAMILIES[plan["family"]].repeats and not plan.get("inner_widths"):  # no two blocks of a pruned network are equal
        short_plan["layers"] = [min(count, 2) for count in plan["layers"]]
        repeats = {f"stage{i}": count - 2 for i, count in enumerate(plan["layers"], 1) if count > 2}
    with torch.device("meta"):
        network = rebuild(short_plan)
    return _numel(network) + sum(count * _numel(_last_block(network[stage])) for stage, count in repeats.items())


def _last_block(stage: Chain) -> nn.Module:
    """Return the block of `stage` that its further blocks repeat."""
    last: nn.Module = stage[-1]
    return last[-1] if isinstance(last, Reversible) else last


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _natural(name: str) -> list[str | int]:
    """Split a name into text and numbers, so that resnet18 sorts before resnet101."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
