"""Pictures of a run folder as data: URIs with the sizes that they are shown at, for its report."""

import base64
import io
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from skipway.report import learning_curves

__all__ = ["NO_PICTURE", "picture", "views_of"]

VIEW_SIDE, SMALL = 1600, 64  # pixels of a side
MOST = 8 * 2**20  # bytes of a drawing
OWN_PLOTS = {"predicted.png", "curves.png", "confusion_matrix.png", "schedule.png", "classes.png", "augmented.png"}
NO_PICTURE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def picture(path: Path, side: int) -> dict[str, Any] | None:
    """A picture as a data: URI of at most `side` pixels, with the size it is shown at, or None where there is none."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
        if max(image.size) <= side and path.stat().st_size < 12_000 or max(image.size) <= SMALL:
            image.save(packed := io.BytesIO(), "PNG", optimize=True)
            kind = "png"
        else:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(packed := io.BytesIO(), "JPEG", quality=84)
            kind = "jpeg"
    except NO_PICTURE:
        return None
    return {"src": _uri(packed.getvalue(), kind), "width": image.width, "height": image.height}


def _uri(data: bytes, kind: str) -> Markup:
    """Base64 needs no escaping, and megabytes of it no look at each character."""
    return Markup("data:image/{};base64,{}").format(kind, Markup(base64.b64encode(data).decode()))


def views_of(folder: Path) -> dict[str, Any]:
    """The figures as data: URIs by their file's stem; those that other parts of skipway drew under `more`."""
    views: dict[str, Any] = {"more": {}}
    for path in sorted((folder / "plots").glob("*.png")):
        if path.name in OWN_PLOTS - {"augmented.png"}:
            data = path.read_bytes()
            wide, high = (int.from_bytes(data[i : i + 4], "big") * 96 // learning_curves.DPI for i in (16, 20))
            views[path.stem] = {"src": _uri(data, "png"), "width": wide, "height": high}
        elif view := picture(path, VIEW_SIDE):
            (views if path.name in OWN_PLOTS else views["more"])[path.stem] = view
    for path in sorted((folder / "plots").glob("*.svg")):
        if view := _drawing(path):
            views["more"][path.stem] = view
    return views


def _drawing(path: Path) -> dict[str, Any] | None:
    """An SVG as a data: URI, in which no browser runs or loads anything, or None where it is none."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST else b""
    except OSError:
        return None
    size = re.search(rb'<svg\b[^>]*?\swidth="(\d{1,5})"[^>]*?\sheight="(\d{1,6})"', data[:2000])
    return {"src": _uri(data, "svg+xml"), "width": int(size[1]), "height": int(size[2])} if size else None
