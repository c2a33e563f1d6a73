"""Plans of networks that others can grow to: with more blocks in their stages, or wider ones.

Shapes: those that the plans describe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from skipway.errors import InputError
from skipway.models import registry
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

# The options that set the widths of a family's networks, the main one first.
_WIDTHS = {
    "resnet": ("widths", "stem_channels"),
    "densenet": ("growth", "stem_channels"),
    "convnext": ("widths",),
    "inverted_residual": ("widths", "stem_channels", "final_channels"),
    "resmlp": ("width", "growth"),
    "resnet9": ("widths",),
}


def plan_like(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return the plan of the network called `to`, with the options of `plan` that differ from its name's defaults."""
    usual, target = registry.plan_of(plan["name"]), registry.plan_of(to)
    options = {
        key: value
        for key, value in plan.items()
        if key not in ("name", "family", "layers") and key in target and usual[key] == target[key] != value
    }
    return registry.plan_of(to, **options)


def deeper_plan(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """The plan of the network called `to`, which may differ in its layers alone, and must have more of them."""
    target = check_options(plan_like(plan, to), plan, "layers")
    old, new = list(blocks_by_stage(plan).values()), list(blocks_by_stage(target).values())
    if len(old) != len(new) or old == new or any(a > b for a, b in zip(old, new, strict=True)):
        raise InputError(
            f"{to} has {join_sizes(new)} blocks in its stages, which are not more than the {join_sizes(old)} of "
            f"this {plan['name']} in as many stages; name a deeper network of the same kind"
        )
    return target


def reachable_plan(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """The plan of the network called `to`, which one of `plan` can grow to: deeper, wider, or both."""
    target = plan_like(plan, to)
    widths = [key for key in width_options(plan) if key in target and target[key] != plan[key]]
    check_options(target, plan, "layers", *widths)
    if widths:
        wider_plan(plan, None, target[widths[0]])
    if not widths or target["layers"] != plan["layers"]:
        deeper_plan({**plan, **{key: target[key] for key in widths}}, to)
    return target


def check_options(target: dict[str, Any], plan: Mapping[str, Any], *except_for: str) -> dict[str, Any]:
    """Return `target`; refuse it if it differs from `plan` in more than its name and the options `except_for`."""
    different = [key for key in target if key not in ("name", *except_for) and target[key] != plan.get(key)]
    if different:
        changes = ", ".join(f"{key} {plan.get(key)!r} would become {target[key]!r}" for key in different[:3])
        raise InputError(
            f"{plan['name']} cannot grow to {target['name']}: {changes}; growing adds blocks and channels, name a "
            "network that has more of the same"
        )
    return target


def plan_with_blocks(plan: Mapping[str, Any], blocks: Mapping[str | int, int]) -> dict[str, Any]:
    """The plan with so many more blocks in each stage."""
    counts = blocks_by_stage(plan)
    named_as: dict[str, str | int] = {}
    for stage, count in blocks.items():
        path = f"stage{stage}" if isinstance(stage, int) or str(stage).isdigit() else stage
        if path not in counts:
            raise InputError(f"{plan['name']} has no stage {stage!r}; it has {', '.join(counts)}")
        if path in named_as:
            raise InputError(f"deepen was given {path} twice, as {named_as[path]!r} and as {stage!r}; give it once")
        named_as[path] = stage
        counts[path] += check_block_count(stage, count)
    if not blocks:
        raise InputError('deepen was given no blocks; give a stage and a number, as in blocks={"stage2": 4}')
    layers = list(counts.values())
    return _checked_plan({**plan, "layers": layers if isinstance(plan["layers"], list) else layers[0]})


def wider_plan(plan: Mapping[str, Any], factor: float | None, widths: Any) -> dict[str, Any]:
    """The plan with widths `factor` times as large, or with those that are given."""
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
            f"widen makes {first} larger, and as many of them, than {plan[first]}, not {target[first]}; give "
            "larger ones"
        )
    before, after = _layer_types(plan), _layer_types(target)
    if changed := [path for path in (before | after) if before.get(path) is not after.get(path)]:
        raise InputError(
            f"with {first} {target[first]} the network would have other layers at {', '.join(changed[:3])}; widen "
            "the stem too, all widths by one factor"
        )
    return target


def _checked_plan(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as the registry would make it, its values checked."""
    options = {key: value for key, value in plan.items() if key not in ("name", "family")}
    return registry.plan_of(plan["name"], **options)


def width_options(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the options that set the widths of a plan's network."""
    return _WIDTHS[plan["family"]]


def blocks_by_stage(plan: Mapping[str, Any]) -> dict[str, int]:
    """Blocks in each stage, by its path; a family with one row of blocks has one stage."""
    if plan["family"] == "resnet9":
        raise InputError(
            f"{plan['name']} cannot be deepened: its bodies end with an activation, in front of which zeros would "
            "never learn; widen it, or train a resnet20"
        )
    return {f"stage{i}": count for i, count in enumerate(_as_list(plan["layers"]), 1)}


def check_block_count(stage: str | int, count: Any) -> int:
    """Return the number of blocks to add to a stage, if it is one."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"deepen adds whole numbers of blocks, at least 1, not {count!r} to {stage}")
    return count


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _is_narrower(widths: Any, old: Any) -> bool:
    return any(a > b for a, b in zip(_as_list(old), _as_list(widths), strict=False))


def _layer_types(plan: Mapping[str, Any]) -> dict[str, type]:
    return {path: type(module) for path, module in build_meta_network(dict(plan)).named_modules()}


def _scaled(value: Any, factor: float) -> Any:
    return [round(v * factor) for v in value] if isinstance(value, list) else round(value * factor)
