"""The graph of the packages shows all of them, the lowest at the bottom."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "scripts" / "import_graph.py"


def rows(svg):
    """Package -> height of its row."""
    return {name: int(y) for y, name in re.findall(r'<text x="12" y="(\d+)" class="name">(\w+)</text>', svg)}


def test_the_graph_has_a_row_for_every_package_and_arcs_that_point_down():
    script = runpy.run_path(str(SCRIPT))
    files = sorted((ROOT / "skipway").rglob("*.py"))
    place = rows(script["draw"]([path for path in files if path.parent.name != "skipway"]))
    folders = {path.name for path in (ROOT / "skipway").iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(place)
    assert place["nn"] > place["models"] > place["runs"] > place["cli"]  # SVG counts from the top
