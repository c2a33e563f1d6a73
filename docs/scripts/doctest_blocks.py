"""A griffe extension: examples (`>>>`) of a docstring become code blocks, although no section holds them."""

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!$).*)*", re.M)


class DoctestBlocks(Extension):
    """Put the examples of every docstring into a code block."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite one docstring, after all of a module is loaded."""
        if obj.docstring and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(docstring: str) -> str:
    """Return a docstring with fences around each example at its left edge.

    >>> fenced("Add.\\n\\n>>> 1 + 1\\n2")
    'Add.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    return EXAMPLE.sub(lambda match: f"```pycon\n{match.group()}\n```", docstring)
