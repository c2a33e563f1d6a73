"""Examples of use under the help of a command."""

__all__ = ["examples"]


def examples(*lines: str) -> str:
    """Return the lines as a paragraph of examples."""
    return "\n".join(["Examples:", *(f"  {line}" for line in lines)])
