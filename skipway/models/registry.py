"""The registry: map a name and options to a plan, and a plan to a network."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import nn

from skipway.errors import InputError, did_you_mean, printable
from skipway.models import convnext, densenet, inverted_residual, mlp, resnet, resnet9
from skipway.models.architecture_plan import Plan
from skipway.models.feature_columns import add_feature_columns
from skipway.models.option_aliases import translate_options
from skipway.models.tree_ensemble import TREES, add_trees
from skipway.nn.chain import Chain
from skipway.nn.reversible import Reversible
from skipway.utils.natural_order import natural_key

__all__ = [
    "FAMILIES",
    "ROWS",
    "as_list",
    "build",
    "count_parameters",
    "modules",
    "names",
    "own_options",
    "plan_of",
    "rebuild",
    "select",
]


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


_TIMM_MODULES = {"inverted_residual": "efficientnet"}  # by family, if the names differ
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", re.ASCII)  # the name becomes part of file names


def names(pattern: str | Iterable[str] = "*") -> list[str]:
    """Return the registered names that match a shell pattern, in natural order.

    >>> names("resnet18*")
    ['resnet18', 'resnet18d']
    """
    return select(ROWS, pattern)


def select(candidates: Iterable[str], include: str | Iterable[str], exclude: str | Iterable[str] = "") -> list[str]:
    """Return the names that match a shell pattern of `include` and none of `exclude`, in natural order.

    Args:
        candidates: names to select from.
        include: one or more shell patterns; empty for all names.
        exclude: one or more shell patterns; empty for none.

    >>> select(["resnet18", "resnet34", "resnet18d"], "resnet*", exclude=["*d"])
    ['resnet18', 'resnet34']
    """
    wanted, unwanted = as_list(include) or ["*"], as_list(exclude)
    chosen = (name for name in dict.fromkeys(candidates) if _matches(name, wanted) and not _matches(name, unwanted))
    return sorted(chosen, key=natural_key)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def as_list(texts: str | Iterable[str] | None) -> list[str]:
    """Return one text or several as a list; an empty text is none.

    >>> as_list("resnet*"), as_list(("a", "b")), as_list("")
    (['resnet*'], ['a', 'b'], [])
    """
    return [text for text in ([texts] if isinstance(texts, str) else texts or ()) if text]


def modules(name: str) -> set[str]:
    """Return the modules that a named model is listed in: its family, and the module of timm that has such models.

    >>> sorted(modules("efficientnet_b0")), sorted(modules("resnetv2_50"))
    (['efficientnet', 'inverted_residual'], ['resnet', 'resnetv2'])
    """
    family, row = ROWS[name]
    timm = "resnetv2" if str(row.get("block", "")).startswith("preact") else _TIMM_MODULES.get(family, family)
    return {family, timm}


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
    options = own_options(name, options)
    family, row = ROWS[name]
    return {"name": name, "family": family, **FAMILIES[family].plan(**{**row, **options}).as_dict()}


def own_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a named model in the words of its plan.

    None leaves an option at its default, unless None is the default itself, and is ignored for an unknown option, as in
    timm, whose scripts pass many options as None.

    Args:
        name: a registered name.
        options: values that replace those of the name.

    Raises:
        InputError: the name or an option is unknown.

    >>> own_options("resnet18", {"drop_path": None, "stem_channels": None})
    {'stem_channels': None}
    """
    if name not in ROWS:
        raise InputError(
            f"unknown architecture {name!r}{did_you_mean(name, ROWS)}. List all names with `skipway models`."
        )
    plan = FAMILIES[ROWS[name][0]].plan
    allowed = plan.options()
    options = translate_options(name, options, allowed)
    for option, value in options.items():
        if option not in allowed and value is not None:
            raise InputError(
                f"{name}: unknown option {option!r}{did_you_mean(option, allowed)}: expected one of "
                f"{', '.join(allowed)}. Change the option."
            )
    optional = {field.name for field in fields(plan) if field.default is None}
    return {option: value for option, value in options.items() if value is not None or option in optional}


def build(name: str, **options: Any) -> tuple[Chain, dict[str, Any]]:
    """Return a named network with random initial weights, and its plan: see `plan_of`."""
    plan = plan_of(name, **options)
    return rebuild(plan), plan


def rebuild(plan: dict[str, Any]) -> Chain:
    """Build the network of a plan with random initial weights.

    It has feature columns if the plan has the key `columns`, and is joined with boosted trees if it has `trees`.

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
    columns, trees = values.pop("columns", None), values.pop(TREES, None)
    network = FAMILIES[family].build(FAMILIES[family].plan.of(values))
    if trees is not None:
        network = add_trees(network, trees, plan)
    return network if columns is None else add_feature_columns(network, columns)


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
