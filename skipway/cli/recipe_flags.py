"""Fields of a Recipe as flags of a command."""

from collections.abc import Collection
from dataclasses import fields, make_dataclass
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from skipway.cli.switch_option import shown_default
from skipway.runs.recipe import GROUPS, Recipe

__all__ = ["HELP_GROUPS", "passed", "recipe_flags"]

HELP_GROUPS = {name: Group(name, sort_key=number) for number, name in enumerate(GROUPS)}


def recipe_flags(names: Collection[str], module: str) -> type:
    """Return a class with fields of a Recipe as flags.

    A flag that was not passed is None, so that a config or a run takes precedence over the default.

    Args:
        names: names of the fields.
        module: name of the module that has the command.
    """
    hints = get_type_hints(Recipe)
    attributes = []
    for option in fields(Recipe):
        if option.name not in names:
            continue
        default = option.metadata["effective"] or shown_default(option.default)
        flag = Parameter(
            alias=option.metadata["alias"] or None,
            group=HELP_GROUPS[option.metadata["group"]],
            help=f"{option.metadata['help']} [default: {default}]",
            negative="" if option.default is False else None,
            allow_leading_hyphen=option.name == "missing",  # -999,unknown
            show_default=False,
        )
        attributes.append((option.name, Annotated[hints[option.name] | None, flag], None))
    flags = make_dataclass("Flags", attributes, frozen=True, kw_only=True)
    flags.__module__ = module  # Python 3.11 sets "types", for which cyclopts does not expand the fields
    return flags


def passed(flags: Any) -> dict[str, Any]:
    """Return the flags that were passed, by field name."""
    return {name: value for name, value in vars(flags).items() if value is not None}
