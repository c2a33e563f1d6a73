"""TextReport: a report that prints as text and also has its facts as plain values."""

from dataclasses import dataclass
from typing import Any

__all__ = ["TextReport"]


@dataclass(frozen=True)
class TextReport:
    """Text of a report, and the same facts as plain values."""

    text: str
    facts: dict[str, Any]

    def __str__(self) -> str:
        return self.text

    def as_dict(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return self.facts
