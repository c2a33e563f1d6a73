"""Validation of a run's checkpoint when it is read, and comparison with the config.yaml next to it.

The manifest of a checkpoint proves that it is complete, but not that skipway wrote it.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from skipway.errors import InputError, SkipwayError, printable
from skipway.models.network import read_spec
from skipway.runs.recipe import Recipe
from skipway.training.checkpoint import Checkpoint, load_checkpoint
from skipway.training.settings_diff import differences
from skipway.training.trainer import State
from skipway.utils.atomic_files import sha256
from skipway.utils.format_text import short_repr

__all__ = ["config_facts", "describe_edits", "read_checkpoint"]

_TIMES = ("seconds", "samples_per_second", "data_time_fraction")
_COLUMNS = {"epoch", "lr", "train_loss", "val_loss", *_TIMES}  # columns of results.csv
_KINDS = {
    **{"fingerprint": str, "plan": dict, "spec": dict, "recipe": dict, "settings": dict, "state": dict},
    **{"batch_size": int, "threads": int, "precision": str, "device": str},
}
_LARGEST = 10**15  # largest plausible count


def read_checkpoint(last: Path) -> Checkpoint:
    """Read the newest complete checkpoint of a run, and validate its state.

    Args:
        last: folder weights/last of the run.

    Raises:
        InputError: there is no complete checkpoint, or its state is invalid.
    """
    checkpoint = load_checkpoint(last)
    state = checkpoint.state
    try:
        _check_facts(state)
        _check_progress(state["state"])
    except (SkipwayError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = printable(error) if isinstance(error, SkipwayError) else f"{type(error).__name__} {printable(error)}"
        raise InputError(
            f"cannot read the checkpoint {printable(checkpoint.path / 'state.json')}: expected the state of a run, got "
            f"an invalid one ({reason[:200]}). Start a new run."
        ) from error
    return replace(checkpoint, state={"grown": [], **state})


def _check_facts(state: Mapping[str, Any]) -> None:
    for name, kind in _KINDS.items():
        _require(type(state[name]) is kind, name, state[name])
    for name in ("name", "family"):
        _require(isinstance(state["plan"][name], str), f"plan.{name}", state["plan"][name])
    read_spec(state["spec"])
    recipe = {name: state["recipe"][name] for name in Recipe.names() if name in state["recipe"]}
    Recipe.of(recipe)
    _require({"epochs", "patience", "time_limit"} <= set(recipe), "recipe", recipe)
    settings = state["settings"]
    weights = settings.get("class_weights") or []
    _require(all(_is_number(weight) for weight in weights), "settings.class_weights", weights)
    # Resolved settings have the ranges of their options, and are never None.
    resolved = {name: settings[name] for name in Recipe.names() if settings.get(name) is not None}
    Recipe.of({**resolved, **{name: state[name] for name in ("batch_size", "threads", "precision", "device")}})
    for name in ("lr", "momentum", "weight_decay", "bias_lr_mult", "label_smoothing", "freeze_epochs", "layer_decay"):
        _require(name not in settings or _is_number(settings[name]), f"settings.{name}", settings.get(name))
    grown = state.get("grown", [])
    _require(isinstance(grown, list) and all(isinstance(record, dict) for record in grown), "grown", grown)


def _check_progress(values: Mapping[str, Any]) -> None:
    """Raise an error unless `values` are those of a State with a row of finite numbers for each epoch."""
    state = State(**values)
    for name in ("epoch", "batch", "step", "seen", "num_microbatches"):
        count = getattr(state, name)
        _require(type(count) is int and 0 <= count < _LARGEST, f"state.{name}", count)
    for name in ("loss", "metric_sum", "seconds", "data_seconds", "total_seconds"):
        _require(_is_number(getattr(state, name)), f"state.{name}", getattr(state, name))
    _require(isinstance(state.status, str), "state.status", state.status)
    _require(state.num_microbatches > 0, "state.num_microbatches", state.num_microbatches)
    rows = state.history
    _require(isinstance(rows, list) and len(rows) == state.epoch, "state.history", rows)
    for number, row in enumerate(rows, 1):
        is_whole = set(row) == set(rows[0]) >= _COLUMNS and all(map(_is_number, row.values()))
        _require(is_whole and row["epoch"] == number, f"state.history, epoch {number}", row)
    best = state.best
    _require(best == {} or best == rows[best["epoch"] - 1], "state.best", best)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _require(is_right: bool, name: str, value: Any) -> None:
    if not is_right:
        raise InputError(f"{name} is {short_repr(value)}")


def config_facts(recipe: Recipe) -> dict[str, Any]:
    """Return the values about the recipe for a checkpoint: its options, and the SHA-256 of config.yaml."""
    return {"recipe": recipe.as_dict(), "config_sha256": sha256(recipe.as_yaml().encode())}


def describe_edits(folder: Path, recipe: Recipe, checkpoint: Checkpoint) -> list[str]:
    """Return a line about the options that were edited in config.yaml since the checkpoint, if any.

    Args:
        folder: run folder.
        recipe: recipe in the config.yaml.
        checkpoint: newest checkpoint of the run.
    """
    digest, saved = checkpoint.state.get("config_sha256"), checkpoint.state["recipe"]
    if digest is None or digest == sha256((folder / "config.yaml").read_bytes()):
        return []
    edits = differences({k: v for k, v in recipe.as_dict().items() if k in saved}, saved)
    return [f"config.yaml was edited since the checkpoint: {'; '.join(edits) or 'no option has changed'}"]
