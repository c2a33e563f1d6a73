"""Events of a training that explain its curves: growth, unfreezing and drops of the learning rate."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipway.report.plot_style import shorten
from skipway.report.run_reader import mapping, number
from skipway.utils.format_text import join_sizes

__all__ = ["Event", "growth_lines", "run_events"]

_DROP = 0.5  # learning rate after a step over the one before, from which on it is a drop


@dataclass(frozen=True)
class Event:
    """An event after `epoch` epochs (a fraction inside an epoch), in a few words."""

    epoch: float
    text: str


def run_events(metrics: Mapping[str, Any], last_epoch: float) -> list[Event]:
    """Return the events up to `last_epoch`, in order."""
    events = [*_growths(metrics), *_unfreezing(metrics), *_rate_drops(metrics)]
    return sorted((event for event in events if 0 < event.epoch < last_epoch), key=lambda event: event.epoch)


def growth_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Describe each growth of the network of a run in a sentence."""
    lines = []
    for note in _records(metrics):
        try:
            before, after = ((str(note[k]["name"]), join_sizes(note[k]["layers"])) for k in ("from", "to"))
            difference = float(note["difference"])
        except (TypeError, KeyError, ValueError):
            continue
        lines.append(
            f"After epoch {note.get('epoch')} the network grew from {before[0]} ({before[1]} blocks) to {after[0]} "
            f"({after[1]} blocks); its outputs changed by at most {difference:.2g}."
        )
    return lines


def _records(metrics: Mapping[str, Any]) -> list[Any]:
    grown = metrics.get("grown")
    return grown if isinstance(grown, list) else []


def _growths(metrics: Mapping[str, Any]) -> Iterator[Event]:
    for record in map(mapping, _records(metrics)):
        yield Event(number(record.get("epoch")), f"grown to {shorten(mapping(record.get('to')).get('name', '?'), 20)}")


def _unfreezing(metrics: Mapping[str, Any]) -> Iterator[Event]:
    """Return the end of the epochs in which only the head was trained."""
    resolved = mapping(metrics.get("resolved"))
    layer = resolved.get("freeze_until")
    text = f"unfrozen after {shorten(layer, 16)}" if isinstance(layer, str) else "all layers unfrozen"
    yield Event(number(resolved.get("freeze_epochs")), text)


def _rate_drops(metrics: Mapping[str, Any]) -> Iterator[Event]:
    """Return the drops of a schedule of steps; other schedules fall smoothly."""
    resolved, points = mapping(metrics.get("resolved")), metrics.get("schedule")
    if resolved.get("schedule") != "steps" or not isinstance(points, list):
        return
    rows = [(number(point[0]), number(point[1])) for point in points if isinstance(point, Sequence) and len(point) > 1]
    for (start, rate), (end, lower) in zip(rows, rows[1:], strict=False):
        if 0 < lower <= _DROP * rate:
            yield Event((start + end) / 2 * number(resolved.get("epochs")), f"LR {rate:.2g} → {lower:.2g}")
