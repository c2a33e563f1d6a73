"""Plans of grown networks: with more blocks per stage, or with larger widths."""

from collections.abc import Mapping, Sequence
from typing import Any

from skipway.errors import InputError
from skipway.models import registry
from skipway.models.head import require_classes
from skipway.models.network import build_meta_network
from skipway.utils.format_text import join_sizes

__all__ = [
    "blocks_by_stage",
    "check_block_count",
    "deeper_plan",
    "plan_like",
    "plan_with_blocks",
    "reachable_plan",
    "wider_plan",
    "width_options",
]

# The options that set the widths of each family, main option first.
_WIDTHS = {
    "resnet": ("widths", "stem_channels"),
    "densenet": ("growth", "stem_channels"),
    "convnext": ("widths",),
    "inverted_residual": ("widths", "stem_channels", "final_channels"),
    "resmlp": ("width", "growth"),
    "resnet9": ("widths",),
}


def plan_like(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return the plan of the model named `to`, with the options of `plan` that differ from its defaults."""
    usual, target = registry.plan_of(plan["name"]), registry.plan_of(to)
    options = {
        key: value
        for key, value in plan.items()
        if key not in ("name", "family", "layers") and key in target and usual[key] == target[key] != value
    }
    return {**registry.plan_of(to, **options), **_columns(plan)}


def deeper_plan(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return the plan of the model named `to`, which must differ from `plan` only by more blocks.

    Raises:
        InputError: The model is unknown, not deeper, or differs in another option.
    """
    target = check_options(plan_like(plan, to), plan, "layers")
    old, new = list(blocks_by_stage(plan).values()), list(blocks_by_stage(target).values())
    if len(old) != len(new) or old == new or any(a > b for a, b in zip(old, new, strict=True)):
        raise InputError(
            f"cannot deepen {plan['name']} to {to}: expected more blocks per stage than {join_sizes(old)}, got "
            f"{join_sizes(new)}. Name a deeper architecture of the same family."
        )
    return target


def reachable_plan(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return the plan of the model named `to`, which must be deeper than `plan`, wider, or both.

    Raises:
        InputError: The model is unknown, smaller, or differs in another option.
    """
    target = plan_like(plan, to)
    widths = [key for key in width_options(plan) if key in target and target[key] != plan[key]]
    check_options(target, plan, "layers", *widths)
    if widths:
        wider_plan(plan, None, target[widths[0]])
    if not widths or target["layers"] != plan["layers"]:
        deeper_plan({**plan, **{key: target[key] for key in widths}}, to)
    return target


def check_options(target: dict[str, Any], plan: Mapping[str, Any], *except_for: str) -> dict[str, Any]:
    """Return `target`; raise an InputError if it differs from `plan` in other options than `except_for`."""
    different = [key for key in target if key not in ("name", *except_for) and target[key] != plan.get(key)]
    if different:
        changes = ", ".join(f"{key} from {plan.get(key)!r} to {target[key]!r}" for key in different[:3])
        raise InputError(
            f"{plan['name']} cannot grow to {target['name']}: expected only more blocks or channels, got changes of "
            f"{changes}. Name a larger architecture of the same family."
        )
    return target


def plan_with_blocks(plan: Mapping[str, Any], blocks: Mapping[str | int, int]) -> dict[str, Any]:
    """Return `plan` with additional blocks.

    Args:
        plan: Plan of the network.
        blocks: Number of new blocks by stage, such as {"stage2": 4} or {2: 4}.

    Raises:
        InputError: A stage is unknown or repeated, or a number is not a positive integer.
    """
    counts = blocks_by_stage(plan)
    named_as: dict[str, str | int] = {}
    for stage, count in blocks.items():
        path = f"stage{stage}" if isinstance(stage, int) or str(stage).isdigit() else stage
        if path not in counts:
            raise InputError(f"blocks: expected a stage among {', '.join(counts)}, got {stage!r}. Pass one of these.")
        if path in named_as:
            raise InputError(
                f"blocks: expected each stage once, got {named_as[path]!r} and {stage!r}. Pass one of them."
            )
        named_as[path] = stage
        counts[path] += check_block_count(stage, count)
    if not blocks:
        raise InputError('blocks: expected stages and numbers, got none. Pass them as in blocks={"stage2": 4}.')
    layers = list(counts.values())
    return _checked_plan({**plan, "layers": layers if isinstance(plan["layers"], list) else layers[0]})


def wider_plan(plan: Mapping[str, Any], factor: float | None, widths: Any) -> dict[str, Any]:
    """Return `plan` with its widths multiplied by `factor`, or replaced by `widths`.

    Raises:
        InputError: The widths are not larger, their number differs, or the layers of the network would
            change, or it has no classifier.
    """
    require_classes(plan, "widen")  # without a classifier, the features are the outputs, which keep their number
    if "columns" in plan:
        raise InputError(
            f"cannot widen {plan['name']}: expected a network of images alone, got one with feature columns, which its "
            "features join. Deepen it instead, with blocks or a deeper architecture."
        )
    first, *others = width_options(plan)
    old = {key: plan[key] for key in (first, *others) if plan[key] is not None}
    if factor is not None:
        new = {key: _scaled(value, factor) for key, value in old.items()}
    else:
        as_list = isinstance(plan[first], list) and isinstance(widths, Sequence)
        new = {**old, first: list(widths) if as_list else widths}
    target = _checked_plan({**plan, **new})
    narrower = any(_is_narrower(target[key], value) for key, value in old.items())
    if len(_as_list(old[first])) != len(_as_list(target[first])) or narrower or target == plan:
        raise InputError(
            f"widen: expected {first} larger than {plan[first]}, got {target[first]}. Pass the same number of larger "
            "values."
        )
    before, after = _layer_types(plan), _layer_types(target)
    if changed := [path for path in (before | after) if before.get(path) is not after.get(path)]:
        raise InputError(
            f"widen: expected widths that keep all layers, got {first} {target[first]}, which changes the layers at "
            f"{', '.join(changed[:3])}. Widen by one factor, including the stem."
        )
    return target


def _checked_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """Return the plan rebuilt and validated by the registry."""
    options = {key: value for key, value in plan.items() if key not in ("name", "family", "columns")}
    return {**registry.plan_of(plan["name"], **options), **_columns(plan)}


def _columns(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return the feature columns of a plan, which growth keeps; empty if there are none."""
    return {"columns": plan["columns"]} if "columns" in plan else {}


def width_options(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that set the widths of a plan, main option first."""
    return _WIDTHS[plan["family"]]


def blocks_by_stage(plan: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of blocks by stage path; a family with one sequence of blocks has one stage.

    Raises:
        InputError: The family cannot be deepened.
    """
    if plan["family"] == "resnet9":
        raise InputError(
            f"{plan['name']} cannot be deepened: its bodies end with an activation, and zero weights before it get "
            "no gradient. Widen it, or train a resnet20."
        )
    return {f"stage{i}": count for i, count in enumerate(_as_list(plan["layers"]), 1)}


def check_block_count(stage: str | int, count: Any) -> int:
    """Return `count`; raise an InputError if it is not a positive integer."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"blocks: expected a positive integer for {stage}, got {count!r}. Pass at least 1.")
    return count


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_narrower(widths: Any, old: Any) -> bool:
    return any(a > b for a, b in zip(_as_list(old), _as_list(widths), strict=False))


def _layer_types(plan: Mapping[str, Any]) -> dict[str, type]:
    return {path: type(module) for path, module in build_meta_network(dict(plan)).named_modules()}


def _scaled(value: Any, factor: float) -> Any:
    return [round(v * factor) for v in value] if isinstance(value, list) else round(value * factor)
