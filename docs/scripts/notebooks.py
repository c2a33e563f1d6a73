"""Notebooks from the tutorials, so that a tutorial has one source: its Markdown page.

    python docs/scripts/notebooks.py FOLDER

Python blocks become code cells and all else Markdown cells. The first code cell installs skipway, for Colab.
"""

import json
import re
import sys
from itertools import takewhile
from pathlib import Path
from textwrap import dedent
from typing import Any

TUTORIALS = Path(__file__).parents[1] / "tutorials"
INSTALL = """\
try:
    import skipway
except ImportError:
    %pip install --quiet skipway"""
DOWNLOAD = re.compile(r" ?\[Download[^\]]*\]\([^)]*\.ipynb\)\.")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)[^)]+\)")


def tutorials() -> list[Path]:
    """Return the pages that become notebooks."""
    return [path for path in sorted(TUTORIALS.glob("*.md")) if path.stem != "index"]


def cells(markdown: str) -> list[tuple[str, str]]:
    """Return (kind, source) of each cell of a page; kind is "code" or "markdown"."""
    result = [("code", INSTALL)]
    text: list[str] = []
    lines = _flattened(markdown.splitlines())
    while lines:
        line = lines.pop(0)
        if line.startswith("```"):
            block = list(takewhile(lambda each: each != "```", lines))
            lines = lines[len(block) + 1 :]
            if line == "```python":
                result += [("markdown", "\n".join(text)), ("code", "\n".join(block))]
                text = []
            elif "title=" not in line:  # the output of a block, which the notebook computes
                text += [line, *block, "```"]
        elif not line.startswith("!["):
            text.append(LINK.sub(r"\1", DOWNLOAD.sub("", line)))
    result.append(("markdown", "\n".join(text)))
    return [(kind, source.strip("\n")) for kind, source in result if source.strip()]


def _flattened(lines: list[str]) -> list[str]:
    """Return the lines without tabs and admonitions: their content moves to the left, under a plain heading."""
    result: list[str] = []
    while lines:
        line = lines[0]
        match = re.match(r'(===|!!!|\?\?\?)\s+(?:\w+\s+)?"([^"]+)"', line)
        inner = list(takewhile(lambda each: not each.strip() or each.startswith("    "), lines[1:])) if match else []
        if match is None:
            result.append(line)
        else:
            content = dedent("\n".join(inner)).splitlines()
            heading = [] if match[2] == "Python" else ["", f"**{match[2]}**"]
            result += [*heading, *content]
        lines = lines[1 + len(inner) :]
    return result


def notebook(markdown: str) -> dict[str, Any]:
    """Return a page as a notebook of format 4.5."""
    rows = []
    for number, (kind, source) in enumerate(cells(markdown)):
        row: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
        rows.append(row | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": rows, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def text(path: Path) -> str:
    """Return the notebook of a tutorial as JSON."""
    return json.dumps(notebook(path.read_text(encoding="utf-8")), indent=1) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page in tutorials():
        (folder / f"{page.stem}.ipynb").write_text(text(page), encoding="utf-8")
