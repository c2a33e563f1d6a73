"""Images of a run folder as data: URIs with the sizes that they are shown at, for its report."""

import base64
import io
import re
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from skipway.report.run_reader import IMAGE_ERRORS, UNREADABLE, rows_of

__all__ = ["embed_image", "embed_plots", "worst_images"]

VIEW_SIDE, SMALL = 960, 64  # pixels of a side
WORST, WORST_SIDE = 24, 256  # images; pixels of a side
MAX_SVG_BYTES = 8 * 2**20
# Plots that the report draws itself, as SVG.
OWN_PLOTS = {"predicted", "curves", "confusion_matrix", "schedule", "classes"}


def embed_image(path: Path, side: int) -> dict[str, Any] | None:
    """Return an image as a data: URI of at most `side` pixels, with its size; None if it is unreadable."""
    file = io.BytesIO()
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if opened.mode in ("1", "L", "I;16", "I") else "RGB")
        if max(image.size) <= side and path.stat().st_size < 20_000 or max(image.size) <= SMALL:
            image.save(file, "PNG", optimize=True)
            kind = "png"
        else:
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            image.save(file, "JPEG", quality=80)
            kind = "jpeg"
    except IMAGE_ERRORS:
        return None
    return {"src": _uri(file.getvalue(), kind), "width": image.width, "height": image.height}


def _uri(data: bytes, kind: str) -> Markup:
    """Return a data: URI; its base64 needs no escaping."""
    return Markup("data:image/{};base64,{}").format(kind, Markup(base64.b64encode(data).decode()))


def embed_plots(folder: Path, drawn: Collection[str] = ()) -> dict[str, Any]:
    """Return the images of `plots` as data: URIs by their stem, without those that the report draws as SVG.

    Args:
        folder: the run folder.
        drawn: stems of further plots to leave out.

    Returns:
        The sheet of augmented images under "augmented", and a dict of all others under "more".
    """
    views: dict[str, Any] = {"more": {}}
    for path in sorted((folder / "plots").glob("*.png")):
        if path.stem not in OWN_PLOTS | set(drawn) and (view := embed_image(path, VIEW_SIDE)):
            (views if path.stem == "augmented" else views["more"])[path.stem] = view
    for path in sorted((folder / "plots").glob("*.svg")):
        if view := _embed_svg(path):
            views["more"][path.stem] = view
    return views


def worst_images(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of plots/worst.csv whose image is in plots/worst, with the image made small."""
    try:
        rows = list(islice(rows_of(folder / "plots" / "worst.csv"), WORST))
    except UNREADABLE:
        return []
    images = [embed_image(folder / "plots" / "worst" / Path(row.get("image", "")).name, WORST_SIDE) for row in rows]
    return [{**row, **image} for row, image in zip(rows, images, strict=True) if image]


def _embed_svg(path: Path) -> dict[str, Any] | None:
    """Return an SVG as a data: URI, in which a browser runs and loads nothing; None if it is not a drawing."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MAX_SVG_BYTES else b""
    except OSError:
        return None
    size = re.search(rb'<svg\b[^>]*?\swidth="(\d{1,5})"[^>]*?\sheight="(\d{1,6})"', data[:2000])
    return {"src": _uri(data, "svg+xml"), "width": int(size[1]), "height": int(size[2])} if size else None
