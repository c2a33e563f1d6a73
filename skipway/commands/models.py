"""List the architectures that can be created by name."""

from collections.abc import Iterator
from typing import Any

from skipway.errors import InputError, printable
from skipway.model_factory import list_models
from skipway.models import registry
from skipway.utils.format_text import count_of, join_sizes

__all__ = ["model_facts", "model_table"]


def model_table(pattern: str = "*") -> Iterator[str]:
    """Return an iterator over one line for each architecture: its parameters and its structure.

    Args:
        pattern: shell pattern of names, such as "resnet1*".

    Raises:
        InputError: no name matches the pattern.
    """
    names = _names(pattern)
    return (_line(name, max(map(len, names))) for name in names)


def model_facts(pattern: str = "*") -> list[dict[str, Any]]:
    """Return the parameter count and the plan of each registered name.

    Raises:
        InputError: no name matches the pattern.
    """
    plans = {name: registry.plan_of(name) for name in _names(pattern)}
    return [{"name": name, "parameters": registry.count_parameters(plan), "plan": plan} for name, plan in plans.items()]


def _names(pattern: str) -> list[str]:
    """Return the registered names that match a shell pattern."""
    names = list_models(pattern)
    if not names:
        raise InputError(f"no architecture matches {printable(pattern)!r}. List all names with `skipway models`.")
    return names


def _line(name: str, width: int) -> str:
    plan = registry.plan_of(name)
    return f"{name:<{width}}  {registry.count_parameters(plan):>11,} parameters  {_describe(plan)}"


def _describe(plan: dict[str, Any]) -> str:
    """Describe an architecture: family or block, layers, stem, unusual options and classes."""
    usual = registry.FAMILIES[plan["family"]].plan().as_dict()
    in_any_line = ("block", "layers", "stem", "num_classes")
    unusual = [f"{k} {join_sizes(plan[k])}" for k in usual if k not in in_any_line and plan[k] != usual[k]]
    kind = f"{plan.get('block', plan['family'])} {join_sizes(plan['layers'])}"
    stem = [f"{plan['stem']} stem"] if "stem" in plan else []
    return ", ".join([kind, *stem, *unusual, count_of(plan["num_classes"], "class", "classes")])
