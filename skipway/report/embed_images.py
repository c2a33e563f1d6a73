"""Images of a run folder as data: URIs with the sizes that they are shown at, for its report."""

import base64
import io
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from skipway.report import plot_style

__all__ = ["IMAGE_ERRORS", "embed_image", "embed_plots"]

VIEW_SIDE, SMALL = 1600, 64  # pixels of a side
MAX_SVG_BYTES = 8 * 2**20
OWN_PLOTS = {"predicted.png", "curves.png", "confusion_matrix.png", "schedule.png", "classes.png", "augmented.png"}
IMAGE_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def embed_image(path: Path, side: int) -> dict[str, Any] | None:
    """Return an image as a data: URI of at most `side` pixels, with the size it is shown at.

    None if it cannot be read.
    """
    file = io.BytesIO()
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
        if max(image.size) <= side and path.stat().st_size < 12_000 or max(image.size) <= SMALL:
            image.save(file, "PNG", optimize=True)
            kind = "png"
        else:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(file, "JPEG", quality=84)
            kind = "jpeg"
    except IMAGE_ERRORS:
        return None
    return {"src": _uri(file.getvalue(), kind), "width": image.width, "height": image.height}


def _uri(data: bytes, kind: str) -> Markup:
    """Base64 needs no escaping, and megabytes of it no look at each character."""
    return Markup("data:image/{};base64,{}").format(kind, Markup(base64.b64encode(data).decode()))


def embed_plots(folder: Path) -> dict[str, Any]:
    """Return the figures as data: URIs by their file's stem; those that other parts of skipway drew under `more`."""
    views: dict[str, Any] = {"more": {}}
    for path in sorted((folder / "plots").glob("*.png")):
        if path.name in OWN_PLOTS - {"augmented.png"}:
            data = path.read_bytes()
            wide, high = (int.from_bytes(data[i : i + 4], "big") * 96 // plot_style.DPI for i in (16, 20))
            views[path.stem] = {"src": _uri(data, "png"), "width": wide, "height": high}
        elif view := embed_image(path, VIEW_SIDE):
            (views if path.name in OWN_PLOTS else views["more"])[path.stem] = view
    for path in sorted((folder / "plots").glob("*.svg")):
        if view := _embed_svg(path):
            views["more"][path.stem] = view
    return views


def _embed_svg(path: Path) -> dict[str, Any] | None:
    """An SVG as a data: URI, in which no browser runs or loads anything, or None where it is none."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_SVG_BYTES else b""
    except OSError:
        return None
    size = re.search(rb'<svg\b[^>]*?\swidth="(\d{1,5})"[^>]*?\sheight="(\d{1,6})"', data[:2000])
    return {"src": _uri(data, "svg+xml"), "width": int(size[1]), "height": int(size[2])} if size else None
