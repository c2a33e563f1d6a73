"""The registry: a name and options become a network with its plan, and a plan becomes the network again."""

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any

from skipway.errors import InputError, did_you_mean
from skipway.models import resnet, resnet9
from skipway.skip import Chain

__all__ = ["build", "names", "rebuild"]

Builder = Callable[..., tuple[Chain, dict[str, Any]]]

FAMILIES: dict[str, Builder] = {"resnet": resnet.resnet, "resnet9": resnet9.resnet9}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (family, row)
    for family, rows in (("resnet", resnet.NETWORKS), ("resnet9", resnet9.NETWORKS))
    for name, row in rows.items()
}


def names(pattern: str = "*") -> list[str]:
    """The registered names that match a shell pattern, shallow before deep."""
    return sorted(fnmatch.filter(ROWS, pattern), key=_natural)


def build(name: str, **options: Any) -> tuple[Chain, dict[str, Any]]:
    """The network called `name`, with the row's values replaced by `options`, and its plan (JSON-able)."""
    if name not in ROWS:
        raise InputError(f"no network is called {name!r}{did_you_mean(name, ROWS)}; `skipway models` lists all names")
    family, row = ROWS[name]
    allowed = list(inspect.signature(FAMILIES[family]).parameters)
    for option in options:
        if option not in allowed:
            raise InputError(
                f"{name} has no option {option!r}{did_you_mean(option, allowed)}; it takes {', '.join(allowed)}"
            )
    network, values = FAMILIES[family](**{**row, **options})
    return network, {"name": name, "family": family, **values}


def rebuild(plan: dict[str, Any]) -> Chain:
    """The network that a plan describes, with fresh weights."""
    values = dict(plan)
    values.pop("name", None)
    family = values.pop("family", None)
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(
            f"the plan's family is {family!r}, but this skipway knows {', '.join(FAMILIES)}; upgrade skipway"
        )
    allowed = set(inspect.signature(FAMILIES[family]).parameters)
    if set(values) - allowed:
        unknown = ", ".join(sorted(set(values) - allowed))
        raise InputError(f"the plan has fields this skipway does not know ({unknown}); upgrade skipway")
    return FAMILIES[family](**values)[0]


def _natural(name: str) -> tuple[str, int, str]:
    letters = name.rstrip("0123456789")
    digits = name[len(letters) :]
    return letters, int(digits or 0), name
