"""CSV tables of a run folder, for spreadsheets and other programs.

Text cells that a spreadsheet would run as a formula are prefixed with an apostrophe.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from skipway.data.images.decoded_images import DecodedImages
from skipway.errors import printable
from skipway.utils.atomic_files import write_file

__all__ = [
    "RESULTS",
    "escape_cell",
    "write_image_splits",
    "write_records",
    "write_results",
    "write_table",
]

RESULTS = (
    "epoch",
    "seconds",
    "lr",
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "samples_per_second",
    "data_time_fraction",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, verbatim: int = 0) -> None:
    """Write a CSV file atomically, with escaped text cells.

    Args:
        path: file to write.
        columns: header.
        rows: cells of each row.
        verbatim: number of first columns whose header and cells are text of the user, and are not escaped.
    """
    content = io.BytesIO()
    # As bytes, because a StringIO has 4 bytes per character.
    text = io.TextIOWrapper(content, encoding="utf-8", errors="surrogatepass", newline="", write_through=True)
    writer = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in chain([columns], rows):
        unchanged = row[:verbatim]
        # Before Python 3.13, csv does not quote a carriage return.
        has_return = any("\r" in cell for cell in unchanged)
        (quoted if has_return else writer).writerow([*unchanged, *map(escape_cell, row[verbatim:])])
    text.flush()
    write_file(path, content.getvalue())


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV file with a row for each record; the keys of the first one, in order, are the header."""
    write_table(path, tuple(records[0]), (tuple(record.values()) for record in records))


def escape_cell(value: Any) -> Any:
    """Escape a text cell: one line, and no formula for a spreadsheet; other values are unchanged."""
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def write_results(folder: Path, history: list[dict[str, Any]]) -> None:
    """Write results.csv with one row per epoch.

    Args:
        folder: run folder.
        history: metrics of each epoch.
    """
    columns = tuple(history[0]) if history else RESULTS  # other tasks have other metrics
    write_table(folder / "results.csv", columns, ([row[name] for name in columns] for row in history))


def write_image_splits(folder: Path, images: DecodedImages) -> None:
    """Write splits.csv and skipped.csv of a run on images."""
    write_table(folder / "splits.csv", ("file", "class", "split", "sha256"), _split_rows(images))
    write_table(
        folder / "skipped.csv",
        ("file", "split", "class", "reason"),
        ((image.key, image.split, image.class_name, image.reason) for image in images.skipped),
    )


def _split_rows(images: DecodedImages) -> Iterator[tuple[str, str, str, str]]:
    for split, indices in images.splits.items():
        for i in indices:
            yield images.keys[i], images.target_text(i), split, images.digests[i]
