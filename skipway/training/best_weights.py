"""Checks that the weights/best.safetensors of a run belongs to the best epoch in its history."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipway.errors import InputError, printable
from skipway.training.checkpoint import load_state, load_weights
from skipway.utils.format_text import short_repr

__all__ = ["forget_other_weights", "read_progress", "refuse_other_weights", "repeatable_metrics"]

_TIMES = ("seconds", "samples_per_second", "data_time_fraction")  # columns of results.csv that vary between equal runs


def repeatable_metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of an epoch without its times, so that the rows of identical runs are equal."""
    return {name: value for name, value in row.items() if name not in _TIMES}


def read_progress(best: Path) -> dict[str, Any] | None:
    """Return the state (epoch, status, best row) of the run that a best.safetensors file belongs to.

    Args:
        best: weights/best.safetensors of a run folder.

    Returns:
        The state in the newest checkpoint, or None if the file is not in a run or the run has no readable checkpoint.
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
    """Raise an error if the weights are not those of the best epoch of the run.

    Weights of the next epoch are accepted. A run saves them before its checkpoint and may be killed in between.

    Args:
        path: weights/best.safetensors of the run.
        header: header of that file.
        progress: epoch, status and best row of the run, see `read_progress`.

    Raises:
        InputError: the weights are from another epoch or another run.
    """
    metrics, best = _metrics(header), progress["best"]
    other = metrics.get("epoch")
    if not best or metrics == repeatable_metrics(best):
        return
    if progress["status"] == "running" and other == progress["epoch"] + 1:
        return
    which = "the same epoch of another run" if other == best["epoch"] else f"epoch {short_repr(other)}"
    raise InputError(
        f"cannot use {printable(path)}: expected weights of epoch {best['epoch']}, the best epoch of the run, got "
        f"weights of {'no run' if other is None else which}. Restore the original file, or move this file elsewhere."
    )


def forget_other_weights(path: Path, state: dict[str, Any]) -> list[str]:
    """Reset the best epoch in `state` if the file does not hold its weights, so that the next epoch becomes the best.

    Args:
        path: weights/best.safetensors of the run.
        state: state of the run that resumes; its "best" is cleared in place.

    Returns:
        One warning, or an empty list. There is no warning if the file holds the next epoch: the run was killed between
        saving these weights and saving its checkpoint.
    """
    best = state["best"]
    metrics = _metrics(load_weights(path)[1]) if best else {}
    if metrics == repeatable_metrics(best):
        return []
    state["best"] = {}
    if metrics.get("epoch") == state["epoch"] + 1:
        return []
    return [f"{path.name} does not hold the weights of epoch {best['epoch']}: the best epoch is chosen again from here"]


def _metrics(header: Mapping[str, Any]) -> dict[str, Any]:
    metrics = header.get("metrics")
    return repeatable_metrics(metrics) if isinstance(metrics, dict) else {}
