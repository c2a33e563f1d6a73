"""Going on with a run: what it was told, where it stood, and whether its data is still the same."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipway.data.pack import Packed
from skipway.errors import InputError, printable
from skipway.recipe import Recipe
from skipway.train.checkpoint import Checkpoint
from skipway.train.checkpoint import load as load_checkpoint

__all__ = ["Earlier", "changed_data", "earlier_run", "old_splits"]

# What may be told anew when a run goes on; everything else belongs to the run itself.
MAY_CHANGE = {
    "data", "epochs", "device", "threads", "precision", "save_every", "time_limit", "patience", "max_bad", "max_pixels",
    "follow_links", "allow_duplicates", "allow_empty",
}  # fmt: skip


@dataclass(frozen=True)
class Earlier:
    """A run to go on with: its folder, its recipe with what was told anew, and its newest whole checkpoint, if any."""

    folder: Path
    recipe: Recipe
    checkpoint: Checkpoint | None
    remarks: tuple[str, ...]


def earlier_run(folder: Path, given: dict[str, Any]) -> Earlier:
    """What `--resume folder` stands for, with the options that were given beside it."""
    folder = folder.resolve() if folder.is_symlink() else folder
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(
            f"{printable(folder)} is no run folder: config.yaml is missing; give the folder that `skipway train` named"
        )
    before = Recipe.of(Recipe.read(config))
    fixed = sorted(k for k in given if k not in MAY_CHANGE and k in Recipe.names() and given[k] != getattr(before, k))
    if fixed:
        said = "; ".join(f"{k} was {printable(getattr(before, k))}, not {printable(given[k])}" for k in fixed)
        raise InputError(f"a run goes on as it began: {said}; start a new run, or leave the option out")
    values = before.as_dict() | {k: v for k, v in given.items() if k in MAY_CHANGE}
    unknown = {k: v for k, v in given.items() if k not in Recipe.names()}
    last = folder / "weights" / "last"
    checkpoint = load_checkpoint(last) if last.is_dir() and any(last.glob("step-*")) else None
    remarks = list(checkpoint.refused) if checkpoint else ["no checkpoint was saved yet: starting from the beginning"]
    if checkpoint:
        values["threads"] = given.get("threads") or checkpoint.state["threads"]
        if given.get("precision") is None and values["precision"] == "auto":
            values["precision"] = checkpoint.state["precision"]
        remarks += _no_longer_exact(checkpoint, values)
        _refuse_finished(checkpoint, values, folder)
    recipe = Recipe.of({**values, **unknown, "data": _find_data(values["data"], folder)})
    return Earlier(folder, recipe, checkpoint, tuple(remarks))


def old_splits(folder: Path) -> dict[str, tuple[str, str, str]]:
    """{file: (class, split, sha256)} of splits.csv."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {r["file"]: (r["class"], r["split"], r["sha256"]) for r in csv.DictReader(file)}
    except (OSError, KeyError, csv.Error):
        return {}


def changed_data(before: dict[str, tuple[str, str, str]], packed: Packed) -> str:
    """What has been added, removed or edited since, in one line."""
    now = {
        printable(packed.keys[i]): (printable(packed.class_names[packed.labels[i]]), split, packed.digests[i])
        for split, indices in packed.splits.items()
        for i in indices
    }
    plain = {k.removeprefix("'"): tuple(v.removeprefix("'") for v in value) for k, value in before.items()}
    added, removed = sorted(set(now) - set(plain)), sorted(set(plain) - set(now))
    edited = sorted(k for k in set(now) & set(plain) if now[k][2] != plain[k][2])
    moved = sorted(k for k in set(now) & set(plain) if now[k][2] == plain[k][2] and now[k] != plain[k])
    parts = []
    for word, names in (("added", added), ("removed", removed), ("edited", edited), ("moved", moved)):
        if names:
            parts.append(f"{len(names):,} {word}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}")
    return "; ".join(parts) or "their order or their sizes differ"


def _no_longer_exact(checkpoint: Checkpoint, values: dict[str, Any]) -> list[str]:
    said = []
    if checkpoint.state["torch"] != torch.__version__:
        said.append(f"torch was {checkpoint.state['torch']} and is {torch.__version__}")
    if values["threads"] != checkpoint.state["threads"]:
        said.append(f"threads were {checkpoint.state['threads']} and are {values['threads']}")
    if values["precision"] not in ("auto", checkpoint.state["precision"]):
        said.append(f"precision was {checkpoint.state['precision']} and is {values['precision']}")
    if values["epochs"] != checkpoint.state["recipe"]["epochs"]:
        said.append(
            f"epochs were {checkpoint.state['recipe']['epochs']} and are {values['epochs']}: the schedule stretches"
        )
    return [f"no longer to the bit as without a stop: {'; '.join(said)}"] if said else []


def _refuse_finished(checkpoint: Checkpoint, values: dict[str, Any], folder: Path) -> None:
    done = checkpoint.state["state"]["epoch"]
    if done >= values["epochs"]:
        raise InputError(
            f"{printable(folder)} has finished its {done} epochs; go on for longer with --epochs {done + 10}"
        )


def _find_data(data: str | None, folder: Path) -> str | None:
    """The data where it was, as seen from here or from the run folder, which may both have moved."""
    if data is None or Path(data).expanduser().exists() or os.path.isabs(data):
        return data
    beside = [folder.parent / data, folder.parent.parent / data]
    return next((str(p) for p in beside if p.exists()), data)
