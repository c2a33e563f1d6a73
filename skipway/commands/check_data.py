"""Check a dataset before training: counts, sizes, class imbalance, unreadable files, duplicates across splits."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from skipway.commands.text_report import TextReport
from skipway.data.images.choose_decode_settings import choose_decode_settings
from skipway.data.images.decode_source import Storage
from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodedImages, DecodeSettings
from skipway.data.images.split import describe, describe_targets, refuse_leaks
from skipway.data.sources.image_source import Source
from skipway.data.sources.in_memory import hold_data
from skipway.data.tables.column_facts import column_lines
from skipway.data.tables.columns_yaml import columns_yaml
from skipway.data.tables.dataset import build_table_dataset, describe_table, describe_target
from skipway.data.tables.table_source import TableSource
from skipway.data.value_range import describe_range
from skipway.errors import InputError, printable
from skipway.runs.open_recipe_data import open_recipe_data
from skipway.runs.read_options import recipe_for_reading
from skipway.utils.atomic_files import write_file
from skipway.utils.console import Console
from skipway.utils.format_text import count_of, join_counts
from skipway.utils.output_files import refuse_output
from skipway.utils.stop_signals import StopFlag

__all__ = ["DataReport", "check"]

_MAX_LISTED = 50


class DataReport(TextReport):
    """A report on a dataset: counts, classes, warnings and unreadable samples."""


def check(
    data: Any,
    max_unreadable: float = 1.0,
    *,
    console: Console | None = None,
    stop: StopFlag | None = None,
    y: Any = None,
    output: str | os.PathLike[str] | None = None,
    **options: Any,
) -> DataReport:
    """Check a dataset before training and return a report, which prints as text. Every image is decoded once.

    Args:
        data: folder of images, table, archive, name of a dataset or objects, as for `train`.
        max_unreadable: largest allowed share of unreadable images, or of table rows without a target.
        console: prints progress; by default, nothing is printed.
        stop: flag that stops the check when it is set.
        y: targets of objects, one per sample.
        output: YAML file for the kinds of the columns of a table, for the option `columns`; by default, none is
            written.
        options: options of `train` on how the data are read, such as target, image_root and follow_links.

    Returns:
        Counts, sizes and classes, followed by the unreadable files and by warnings.

    Raises:
        InputError: the dataset cannot be read, or too much of it is unreadable.
        Interrupted: `stop` was set.

    >>> report = check("wine")
    >>> report.as_dict()["counts"]
    {'train': 142, 'val': 36}
    """
    console, stop = console or Console(quiet=True), stop or StopFlag()
    if output is not None:
        refuse_output(output, [path for path in (data, options.get("columns")) if isinstance(path, str | os.PathLike)])
    with hold_data(data, y) as name:
        reading = recipe_for_reading("check", name, options)
        source = open_recipe_data(reading)
        if not isinstance(source, Source):
            return _check_tables(source, max_unreadable, output)
        if output is not None:
            raise InputError(
                f"cannot write {printable(output)}: expected a table of rows, got images, which have no columns of "
                "inputs. Drop --output."
            )
        decode_settings = choose_decode_settings(source, None, "squash", reading.max_pixels)
        images = decode_images(
            source,
            decode_settings,
            max_unreadable,
            console=console,
            stop=stop,
            need_every_class=False,
            storage=Storage(cache_size=reading.cache_size, keep_pixels=False),
        )
    refuse_leaks(images, allow=True)
    facts = describe(images)
    lines = _image_lines(images, decode_settings, facts)
    lines += [source.roles] if source.roles else []
    if images.skipped:
        lines.append(f"{len(images.skipped):,} unreadable:")
        lines += [f"  {printable(image.key)}: {image.reason}" for image in images.skipped[:_MAX_LISTED]]
        rest = len(images.skipped) - _MAX_LISTED
        lines += [f"  and {rest:,} more"] if rest > 0 else []
    lines += [f"warning: {warning}" for warning in facts["warnings"]]
    if not images.skipped and not facts["warnings"]:
        lines.append("no problems found")
    unreadable = {image.key: image.reason for image in images.skipped}
    return DataReport("\n".join(lines), {"data": images.name, **facts, "unreadable": unreadable})


def _image_lines(images: DecodedImages, decode_settings: DecodeSettings, facts: dict[str, Any]) -> list[str]:
    """Return the lines on counts, sizes and classes of images."""
    counts = join_counts(facts["counts"], "image")
    color = {1: "gray", 3: "color"}.get(decode_settings.channels, count_of(decode_settings.channels, "channel"))
    if decode_settings.value_range:
        color += f"; deep, {describe_range(decode_settings.value_range)}"
    lines = [
        f"{printable(images.name)}: {describe_targets(images)}, {counts}",
        f"sizes: {images.sizes}; {color}; training size {decode_settings.size} px",
    ]
    width = max(len(printable(name)) for name in images.class_names or images.target_names)
    if images.task == "regression":
        for t, name in enumerate(images.target_names):
            ranges = (f"{split} {_describe_numbers(images.targets[ids, t])}" for split, ids in images.splits.items())
            lines.append(f"  {printable(name):<{width}}  {'  '.join(ranges)}")
    for name, by_split in facts["classes"].items():
        counts = "  ".join(f"{split} {count:,}" for split, count in by_split.items())
        lines.append(f"  {printable(name):<{width}}  {counts}")
    return [*lines, *_note_lines(facts)]


def _describe_numbers(numbers: np.ndarray) -> str:
    return f"{numbers.min():.4g} to {numbers.max():.4g}, mean {numbers.mean():.4g}" if len(numbers) else "none"


def _note_lines(facts: dict[str, Any]) -> list[str]:
    return [f"{count:,} {note}" for note, count in facts["notes"].items()]


def _check_tables(tables: TableSource, max_unreadable: float, output: str | os.PathLike[str] | None) -> DataReport:
    """Return a report on a table: its rows, columns, target and missing values."""
    rows = build_table_dataset(tables, 0.2, 0, max_unreadable=max_unreadable)
    facts, spec = describe_table(rows), rows.spec
    counts = join_counts({split: len(table) for split, table in tables.splits.items()}, "row")
    lines = [f"{printable(tables.name)}: {counts}; target {printable(spec.target)!r}: {describe_target(spec)}"]
    lines += [f"  {line}" for line in column_lines(facts["column_details"])]
    totals = {name: sum(by_split.values()) for name, by_split in facts.get("classes", {}).items()}
    noun = "label" if spec.task == "multilabel" else "class"
    lines += [f"  {noun} {printable(name)}: {count_of(count, 'row')}" for name, count in totals.items()]
    lines += _note_lines(facts)
    lines += [tables.to_predict.describe()] if tables.to_predict else []
    if rows.skipped:
        lines.append(f"{len(rows.skipped):,} without a target: {', '.join(row.key for row in rows.skipped[:10])}")
    lines += [f"warning: {warning}" for warning in facts["warnings"]]
    if not facts["warnings"] and not rows.skipped:
        lines.append("no problems found")
    if output is not None:
        write_file(Path(output), columns_yaml(spec, rows.columns).encode("utf-8", "backslashreplace"))
        lines.append(f"columns: {printable(output)}")
    without_target = [row.key for row in rows.skipped]
    return DataReport("\n".join(lines), {"data": tables.name, **facts, "without_target": without_target})
