"""Whether a run's weights/best.safetensors is that of its history, or an older file, or one of another run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipway.errors import InputError, printable
from skipway.training.checkpoint import load_state, load_weights
from skipway.utils.format_text import short_repr

__all__ = ["forget_other_weights", "read_progress", "refuse_other_weights", "repeatable_metrics"]

_TIMES = ("seconds", "samples_per_second", "data_time_fraction")  # of a row of results.csv


def repeatable_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an epoch without its times, so that equal runs have equal ones."""
    return {name: value for name, value in row.items() if name not in _TIMES}


def read_progress(best: Path) -> dict[str, Any] | None:
    """Return where the run is that keeps its best weights in this file: its epoch, status and best row.

    None if the file is in no run, or the run has no checkpoint that can be used.
    """
    last = best.parent / "last"
    if best.name != "best.safetensors" or not last.is_dir():
        return None
    progress: Any = load_state(last).get("state")
    try:
        is_whole = isinstance(progress["epoch"], int) and isinstance(progress["status"], str)
        is_whole = is_whole and (progress["best"] == {} or isinstance(progress["best"]["epoch"], int))
    except (TypeError, LookupError):
        return None
    return progress if is_whole else None


def refuse_other_weights(path: Path, header: Mapping[str, Any], progress: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of a run's best epoch.

    Those of the next epoch are not refused: a run saves them before its checkpoint, and may be killed in between.

    Args:
        path: the run's weights/best.safetensors.
        header: that of the file.
        progress: the run's epoch, status and best row.

    Raises:
        InputError: the weights are of another epoch or another run.
    """
    found, best = _metrics(header), progress["best"]
    other = found.get("epoch")
    if not best or found == repeatable_metrics(best):
        return
    if progress["status"] == "running" and other == progress["epoch"] + 1:
        return
    which = "of the same epoch of another run" if other == best["epoch"] else f"of epoch {short_repr(other)}"
    raise InputError(
        f"{printable(path)}: expected the weights of epoch {best['epoch']}, the run's best one, got those "
        f"{'of no run' if other is None else which}. Put the run's own file back, or move this one out of the run."
    )


def forget_other_weights(path: Path, state: dict[str, Any]) -> list[str]:
    """Let the next epoch be the best of a run that trains on, if its best weights are not there; return a line.

    There is no line if they are of that next epoch: the run was killed between saving them and its checkpoint.
    """
    best = state["best"]
    found = _metrics(load_weights(path)[1]) if best else {}
    if found == repeatable_metrics(best):
        return []
    state["best"] = {}
    if found.get("epoch") == state["epoch"] + 1:
        return []
    return [f"{path.name} is not that of epoch {best['epoch']}, the best one: only epochs from here on can be the best"]


def _metrics(header: Mapping[str, Any]) -> dict[str, Any]:
    metrics = header.get("metrics")
    return repeatable_metrics(metrics) if isinstance(metrics, dict) else {}
