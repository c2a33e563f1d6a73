"""CSV files of images without a header, such as those of Google AutoML: [split,] image [, label, ...]."""

import csv
import io
import json
from pathlib import Path

from skipway.data.image_tables.file_index import is_url, looks_like_image
from skipway.data.sources.image_source import split_of
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError, printable, reason_of

__all__ = ["read_headerless"]

_HEAD = 1 << 16  # bytes in which the first line ends
_BOX = 4  # numbers after a label that are the corners of a box


def read_headerless(path: Path) -> Table | None:
    """Read a CSV file whose first line is already an image, as columns split, image and label.

    Several labels of an image become a list in JSON.

    Returns:
        The table, or None if the first line holds column names.

    Raises:
        InputError: the file is not CSV, or has boxes in place of labels.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
        place = _image_place(head)
        if place is None:
            return None
        text = _decoded(path.read_bytes())
        reader = csv.reader(io.StringIO(text, newline=""))
        rows, lines = [], []
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except (OSError, csv.Error) as error:
        raise InputError(f"cannot read {printable(path)}: {reason_of(error)}. Check the file.") from None
    labels = [[cell for cell in row[place + 1 :] if cell] for row in rows]
    if any(sum(map(_is_number, cells[1:])) >= _BOX for cells in labels):
        raise InputError(
            f"cannot use {printable(path)}: expected labels of whole images, got boxes after the labels. Export the "
            "dataset for classification."
        )
    columns = {"split": [row[0] or None for row in rows]} if place else {}
    columns["image"] = [row[place] if len(row) > place else None for row in rows]
    if any(labels):
        several = any(len(cells) > 1 for cells in labels)
        texts = [json.dumps(cells, ensure_ascii=False) if several else "".join(cells) for cells in labels]
        columns["label"] = [text if cells else None for text, cells in zip(texts, labels, strict=True)]
    name = printable(path.name)
    table = {key: TextColumn.of(cells) for key, cells in columns.items()}
    return Table(str(path), {**table}, lambda i: f"{name}:{lines[i]}", notes=["no header: the first line is an image"])


def _image_place(head: bytes) -> int | None:
    """Return the position of the image in the first line, 0 or 1 after a split, or None if there is none."""
    line = _decoded(head).split("\n", 1)[0]
    try:
        cells = [cell.strip() for cell in next(csv.reader([line]), [])]
    except csv.Error:
        return None
    for place, cell in enumerate(cells[:2]):
        is_after_split = place == 0 or split_of(cells[0]) is not None or cells[0].lower() in ("", "unassigned")
        if is_after_split and (looks_like_image(cell) or is_url(cell)):
            return place
    return None


def _decoded(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
