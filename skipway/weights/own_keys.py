"""The layout of skipway itself: states of a `Network` or of a `Features` that another script saved without a plan."""

from collections.abc import Mapping
from typing import Any

from skipway.weights.key_maps import LIBRARIES, Library

__all__ = ["LAYOUTS", "OWN"]


class _OwnLayout(Library):
    """Layout with the keys of this package for every plan."""

    def key(self, plan: Mapping[str, Any], own: str, dims: int) -> str | None:
        """Return the key unchanged."""
        return own

    def refusal(self, plan: Mapping[str, Any]) -> str:
        """Return an empty string, because every plan is supported."""
        return ""


OWN = "skipway"
# `Features` joins the names of the stem's layers by "_", because it holds them itself.
_FEATURES = ((r"stem_(\w+)\.(.*)", r"stem.\1.\2"),)
LAYOUTS: dict[str, Library] = {**LIBRARIES, OWN: _OwnLayout(rules={}, holds={}, renamed=_FEATURES)}
