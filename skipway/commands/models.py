"""List the architectures that can be created by name."""

from collections.abc import Iterable, Iterator
from typing import Any

from skipway.errors import InputError, printable
from skipway.model_factory import list_models
from skipway.models import registry
from skipway.utils.format_text import count_of, join_names, join_sizes
from skipway.weights.model_name import read_name

__all__ = ["model_facts", "model_table"]


def model_table(
    patterns: str | Iterable[str] = "*", exclude: str | Iterable[str] = "", pretrained: bool = False
) -> Iterator[str]:
    """Return an iterator over one line for each architecture: its parameters and its structure.

    Args:
        patterns: one or more shell patterns of names, such as "resnet1*".
        exclude: shell patterns of names to leave out.
        pretrained: list pretrained weights, as "resnet18.a1_in1k", instead of architectures.

    Raises:
        InputError: no name matches the patterns.
    """
    names = _names(patterns, exclude, pretrained)
    return (_line(name, max(map(len, names))) for name in names)


def model_facts(
    patterns: str | Iterable[str] = "*", exclude: str | Iterable[str] = "", pretrained: bool = False
) -> list[dict[str, Any]]:
    """Return the parameter count and the plan of each name of `model_table`.

    Raises:
        InputError: no name matches the patterns.
    """
    plans = {name: _plan(name) for name in _names(patterns, exclude, pretrained)}
    return [{"name": name, "parameters": registry.count_parameters(plan), "plan": plan} for name, plan in plans.items()]


def _names(patterns: str | Iterable[str], exclude: str | Iterable[str], pretrained: bool) -> list[str]:
    """Return the names that match the patterns."""
    patterns = registry.as_list(patterns)
    names = list_models(patterns, pretrained=pretrained, exclude_filters=exclude)
    if not names:
        kind = "pretrained weights" if pretrained else "an architecture"
        text = join_names((printable(pattern) for pattern in patterns), limit=5)
        raise InputError(
            f"cannot list models: expected a pattern that matches {kind}, got {text!r}. List all names with "
            "`skipway models`."
        )
    return names


def _plan(name: str) -> dict[str, Any]:
    """Return the plan of a name, which may have a tag."""
    model = read_name(name, pretrained=False)
    return registry.plan_of(model.architecture, **model.options)


def _line(name: str, width: int) -> str:
    plan = _plan(name)
    return f"{name:<{width}}  {registry.count_parameters(plan):>11,} parameters  {_describe(plan)}"


def _describe(plan: dict[str, Any]) -> str:
    """Describe an architecture: family or block, layers, stem, unusual options and classes."""
    usual = registry.FAMILIES[plan["family"]].plan().as_dict()
    in_any_line = ("block", "layers", "stem", "num_classes")
    unusual = [f"{k} {join_sizes(plan[k])}" for k in usual if k not in in_any_line and plan[k] != usual[k]]
    kind = f"{plan.get('block', plan['family'])} {join_sizes(plan['layers'])}"
    stem = [f"{plan['stem']} stem"] if "stem" in plan else []
    return ", ".join([kind, *stem, *unusual, count_of(plan["num_classes"], "class", "classes")])
