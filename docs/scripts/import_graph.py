"""The import graph of the packages, as SVG.

    python docs/scripts/import_graph.py FILE

Packages are in rows, the lowest at the bottom: no package imports one above it. An arc goes from a package down to one
that it imports; its width grows with the number of files that do so. Read off the source, so nothing is imported.
"""

import ast
import sys
from collections import Counter
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2] / "skipway"
ROW, LEFT, ARCS = 34, 250, 330  # pixels: height of a row, where arcs begin, room for arcs
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")  # Okabe and Ito 2008


def package_of(path: Path) -> str:
    """Return the package or the single file that `path` belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_packages(path: Path) -> set[str]:
    """Return the packages that a file imports from, wherever in it the import is."""
    modules = [node.module or "" for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[1] for module in modules if module.startswith("skipway.")} - {package_of(path)}


def draw(files: list[Path]) -> str:
    """Return the SVG of the import graph of `files`."""
    edges = Counter((package_of(path), target) for path in files for target in imported_packages(path))
    packages = sorted({package_of(path) for path in files})
    order = TopologicalSorter({name: [low for high, low in edges if high == name] for name in packages})
    rows = list(order.static_order())
    height = ROW * (len(rows) + 1)
    y = {name: height - ROW * (place + 1) for place, name in enumerate(rows)}
    shapes = []
    for place, name in enumerate(rows):
        members = [path for path in files if package_of(path) == name]
        lines = sum(len(path.read_text().splitlines()) for path in members)
        size = f"{len(members)} {'file' if len(members) == 1 else 'files'}, {lines:,} lines"
        shapes.append(f'<text x="12" y="{y[name] + 5}" class="name">{escape(name)}</text>')
        shapes.append(f'<text x="{LEFT - 14}" y="{y[name] + 5}" class="size">{size}</text>')
        shapes.append(f'<circle cx="{LEFT}" cy="{y[name]}" r="4" fill="{COLORS[place % len(COLORS)]}"/>')
        for low in rows[:place]:
            if count := edges[name, low]:
                reach = LEFT + ARCS * (y[low] - y[name]) / height
                path = f"M{LEFT} {y[name]}C{reach:.0f} {y[name]} {reach:.0f} {y[low]} {LEFT} {y[low]}"
                width = 0.8 + 0.35 * count**0.5
                style = f'stroke="{COLORS[place % len(COLORS)]}" stroke-width="{width:.2f}"'
                title = f"{name} imports {low} in {count} {'file' if count == 1 else 'files'}"
                shapes.append(f'<path d="{path}" {style}><title>{escape(title)}</title></path>')
    style = (
        "text{font:14px sans-serif;fill:#222}.name{font-weight:600}.size{text-anchor:end;fill:#777;font-size:12px}"
        "path{fill:none;stroke-opacity:.55}"
    )
    width = LEFT + ARCS
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>{"".join(shapes)}</svg>\n'
    )


def page() -> str:
    """Return the SVG of the import graph of the package."""
    return draw([path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.stem[0] != "_"])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
