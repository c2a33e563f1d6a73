"""Plans of networks that others can grow to: with more blocks in their stages, or wider ones.

Shapes: those that the plans describe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from skipway.errors import InputError
from skipway.models import registry
from skipway.models.network import build_meta_network
from skipway.utils.text import join_sizes

__all__ = ["counted", "deeper", "like", "reached", "stages", "wider", "widths_of", "with_blocks"]

# What the widths of a family's networks follow, the one that is told first.
_WIDTHS = {
    "resnet": ("widths", "stem_channels"),
    "densenet": ("growth", "stem_channels"),
    "resmlp": ("width", "growth"),
    "resnet9": ("widths",),
}


def like(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """The plan of the network called `to`, with what was told of that of `plan` beside its name."""
    usual, target = registry.plan_of(plan["name"]), registry.plan_of(to)
    told = {
        key: value
        for key, value in plan.items()
        if key not in ("name", "family", "layers") and key in target and usual[key] == target[key] != value
    }
    return registry.plan_of(to, **told)


def deeper(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """The plan of the network called `to`, which may differ in its layers alone, and must have more of them."""
    target = need_like(like(plan, to), plan, "layers")
    have, wanted = (list(stages(p).values()) for p in (plan, target))
    if len(have) != len(wanted) or have == wanted or any(a > b for a, b in zip(have, wanted, strict=True)):
        raise InputError(
            f"{to} has {join_sizes(wanted)} blocks in its stages, which are not more than the {join_sizes(have)} of "
            f"this {plan['name']} in as many stages; name a deeper network of the same kind"
        )
    return target


def reached(plan: Mapping[str, Any], to: str) -> dict[str, Any]:
    """The plan of the network called `to`, which one of `plan` can grow to: deeper, wider, or both."""
    target = like(plan, to)
    widths = [key for key in widths_of(plan) if key in target and target[key] != plan[key]]
    need_like(target, plan, "layers", *widths)
    if widths:
        wider(plan, None, target[widths[0]])
    if not widths or target["layers"] != plan["layers"]:
        deeper({**plan, **{key: target[key] for key in widths}}, to)
    return target


def need_like(target: dict[str, Any], plan: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """`target`, refused where it differs from `plan` in anything else than its name and `but`."""
    different = [key for key in target if key not in ("name", *but) and target[key] != plan.get(key)]
    if different:
        said = ", ".join(f"{key} {plan.get(key)!r} would become {target[key]!r}" for key in different[:3])
        raise InputError(
            f"{plan['name']} cannot grow to {target['name']}: {said}; growing adds blocks and channels, name a "
            "network that has more of the same"
        )
    return target


def with_blocks(plan: Mapping[str, Any], blocks: Mapping[str | int, int]) -> dict[str, Any]:
    """The plan with so many more blocks in each stage."""
    counts = stages(plan)
    told: dict[str, str | int] = {}
    for stage, count in blocks.items():
        path = f"stage{stage}" if isinstance(stage, int) or str(stage).isdigit() else stage
        if path not in counts:
            raise InputError(f"{plan['name']} has no stage {stage!r}; it has {', '.join(counts)}")
        if path in told:
            raise InputError(f"deepen was given {path} twice, as {told[path]!r} and as {stage!r}; give it once")
        told[path] = stage
        counts[path] += counted(stage, count)
    if not blocks:
        raise InputError('deepen was given no blocks; give a stage and a number, as in blocks={"stage2": 4}')
    layers = list(counts.values())
    return _made({**plan, "layers": layers if isinstance(plan["layers"], list) else layers[0]})


def wider(plan: Mapping[str, Any], factor: float | None, widths: Any) -> dict[str, Any]:
    """The plan with widths `factor` times as large, or with those that are given."""
    first, *others = widths_of(plan)
    old = {key: plan[key] for key in (first, *others) if plan[key] is not None}
    if factor is not None:
        new = {key: _times(value, factor) for key, value in old.items()}
    else:
        given = list(widths) if isinstance(plan[first], list) and isinstance(widths, Sequence) else widths
        new = {**old, first: given}
    made = _made({**plan, **new})
    pairs = [(a, b) for key in old for a, b in zip(_as_list(old[key]), _as_list(made[key]), strict=False)]
    if len(_as_list(old[first])) != len(_as_list(made[first])) or any(a > b for a, b in pairs) or made == plan:
        raise InputError(
            f"widen makes {first} larger, and as many of them, than {plan[first]}, not {made[first]}; give larger ones"
        )
    kinds = [{path: type(m) for path, m in build_meta_network(dict(p)).named_modules()} for p in (plan, made)]
    if other := [path for path in (kinds[0] | kinds[1]) if kinds[0].get(path) is not kinds[1].get(path)]:
        raise InputError(
            f"with {first} {made[first]} the network would have other layers at {', '.join(other[:3])}; widen the stem "
            "too, all widths by one factor"
        )
    return made


def _made(plan: dict[str, Any]) -> dict[str, Any]:
    """The plan as the registry would make it, its values checked."""
    options = {key: value for key, value in plan.items() if key not in ("name", "family")}
    return registry.plan_of(plan["name"], **options)


def widths_of(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """What the widths of a plan's network follow."""
    return _WIDTHS[plan["family"]]


def stages(plan: Mapping[str, Any]) -> dict[str, int]:
    """Blocks in each stage, by its path; a family with one row of blocks has one stage."""
    if plan["family"] == "resnet9":
        raise InputError(
            f"{plan['name']} cannot be deepened: its bodies end with an activation, in front of which zeros would "
            "never learn; widen it, or train a resnet20"
        )
    return {f"stage{i}": count for i, count in enumerate(_as_list(plan["layers"]), 1)}


def counted(stage: str | int, count: Any) -> int:
    """The number of blocks that a stage is to get."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"deepen adds whole numbers of blocks, at least 1, not {count!r} to {stage}")
    return count


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _times(value: Any, factor: float) -> Any:
    return [round(v * factor) for v in value] if isinstance(value, list) else round(value * factor)
