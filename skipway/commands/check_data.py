"""Check a dataset before training: counts, sizes, class imbalance, unreadable files, duplicates across splits."""

import os

from skipway.commands.predict_table import check_tables
from skipway.data.images.decoded_cache import choose_decode_settings, decode_images
from skipway.data.images.split import describe, refuse_leaks
from skipway.data.sources.choose_source import open_source
from skipway.data.tables.dataset import open_table_source
from skipway.errors import printable
from skipway.runs.recipe import Recipe
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["check"]


def check(
    data: str | os.PathLike[str],
    max_unreadable: float = 1.0,
    follow_links: bool = False,
    allow_empty_classes: bool = False,
    console: Console | None = None,
    stop: StopFlag | None = None,
    target: str | None = None,
) -> str:
    """What a careful eye sees in `data` before training, as text; every picture is decoded once.

    Of a table `target` is the column to predict.
    """
    if (tables := open_table_source(os.fspath(data), target)) is not None:
        return check_tables(tables, max_unreadable)
    source = open_source(os.fspath(data), follow_links, allow_empty_classes)
    packing = choose_decode_settings(source, None, "squash", Recipe.max_pixels)
    packed = decode_images(
        source, packing, max_unreadable, console or Console(quiet=True), stop or StopFlag(), need_every_class=False
    )
    refuse_leaks(packed, allow=True)
    facts = describe(packed)
    lines = [
        f"{printable(packed.name)}: {len(packed.class_names)} classes, "
        + ", ".join(f"{n:,} {split}" for split, n in facts["counts"].items())
        + " pictures",
        f"sizes: {packed.sizes}; {'grey' if packing.channels == 1 else 'color'}; trained at {packing.size} px",
    ]
    width = max(len(printable(n)) for n in packed.class_names)
    lines += [
        f"  {printable(name):<{width}}  " + "  ".join(f"{split} {n:,}" for split, n in by_split.items())
        for name, by_split in facts["classes"].items()
    ]
    lines += [f"{count:,} {note}" for note, count in facts["notes"].items()]
    if packed.skipped:
        lines.append(f"{len(packed.skipped):,} cannot be read:")
        lines += [f"  {printable(s.key)}: {s.reason}" for s in packed.skipped[:50]]
        lines += [f"  and {len(packed.skipped) - 50:,} more"] if len(packed.skipped) > 50 else []
    lines += [f"mind: {w}" for w in facts["warnings"]]
    if not packed.skipped and not facts["warnings"]:
        lines.append("nothing to mind")
    return "\n".join(lines)
