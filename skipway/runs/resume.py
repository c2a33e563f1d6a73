"""Resuming a run: its options, its newest checkpoint, and the changes of its data since then."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipway.data.images.decoded_images import DecodedImages
from skipway.data.sources.choose_source import BUILT_IN
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.kernels.layer_dispatch import kernel_status
from skipway.runs.checkpoint_state import describe_edits, read_checkpoint
from skipway.runs.cuda_settings import gpu_facts
from skipway.runs.recipe import Recipe
from skipway.runs.run_csv_tables import escape_cell
from skipway.runs.run_folder import read_recipe
from skipway.training.best_weights import forget_other_weights
from skipway.training.checkpoint import Checkpoint
from skipway.training.settings_diff import differences
from skipway.utils.devices import device_exists, device_kind
from skipway.utils.format_text import count_of

__all__ = [
    "ENDS",
    "KEPT_SETTINGS",
    "MAY_CHANGE",
    "SETTINGS_OF_EARLIER_VERSIONS",
    "EarlierRun",
    "describe_changes",
    "find_data",
    "machine_facts",
    "read_earlier_run",
    "read_splits",
    "training_digests",
]

# Options that may change when a run is resumed; all others are fixed.
MAY_CHANGE = {
    "data",
    "columns",
    "epochs",
    "device",
    "threads",
    "precision",
    "deterministic",
    "compile",
    "save_every",
    "time_limit",
    "patience",
    "max_unreadable",
    "max_pixels",
    "cache_size",
    "follow_links",
    "allow_duplicates",
    "allow_empty_classes",
    "fsdp",
    "recompute",
    "watch",
}
ENDS = ("epochs", "patience", "time_limit")  # options that set the end of a run
# Settings that a resumed run keeps as they were resolved at its start.
KEPT_SETTINGS = (
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "bias_lr_mult",
    "label_smoothing",
    "freeze_epochs",
    "freeze_until",
    "head",
    "layer_decay",
    "class_weights",
    "kept_epoch",
    "huber",
    "calibrate",
)
# Settings that checkpoints of earlier versions do not have, with the values that their runs had.
SETTINGS_OF_EARLIER_VERSIONS: dict[str, Any] = {"kept_epoch": "best", "calibrate": False, "huber": None}


@dataclass(frozen=True)
class EarlierRun:
    """Run to resume.

    Attributes:
        folder: run folder.
        options: recipe of the run with the options of this call.
        recipe: `options` with the values that the run has resolved, and with the path of the data from here.
        checkpoint: newest whole checkpoint, or None.
        remarks: console lines about the resumed run.
        reopened: a run that had ended continues, because its end was moved.
        epochs_given: the number of epochs is known; without a checkpoint the time limit may still set it.
    """

    folder: Path
    options: Recipe
    recipe: Recipe
    checkpoint: Checkpoint | None
    remarks: tuple[str, ...]
    reopened: bool
    epochs_given: bool = True


def read_earlier_run(folder: Path, options: dict[str, Any]) -> EarlierRun:
    """Read the run in `folder` that is resumed with `options`.

    Args:
        folder: run folder.
        options: options of this call by name.

    Raises:
        InputError: a fixed option would change, config.yaml was edited, or the checkpoint cannot be read.
    """
    before = read_recipe(folder)
    _refuse_fixed_options(before, options, folder)
    requested = Recipe.of(before.as_dict() | options)
    data, columns = (find_data(path, folder) for path in (requested.data, requested.columns))
    recipe = replace(requested, data=data, columns=columns)
    last = folder / "weights" / "last"
    checkpoint = read_checkpoint(last) if last.is_dir() and any(last.glob("step-*")) else None
    if checkpoint is None:
        remark = "no checkpoint yet: starting from the beginning"
        epochs_given = "epochs" in options or "epochs" in Recipe.read(folder / "config.yaml")
        return EarlierRun(
            folder, requested, recipe, checkpoint=None, remarks=(remark,), reopened=False, epochs_given=epochs_given
        )
    _refuse_edited(requested, checkpoint, folder)
    recipe = _on_same_machine(recipe, checkpoint.state)
    state = checkpoint.state["state"]
    if requested.epochs < state["epoch"]:
        raise InputError(
            f"cannot resume {printable(folder)}: expected --epochs of at least {state['epoch']}, which are done, got "
            f"{requested.epochs}. Increase --epochs, or drop it."
        )
    ended = state["status"] != "running"
    end_moved = any(getattr(requested, name) != checkpoint.state["recipe"][name] for name in ENDS)
    reopened = ended and end_moved and requested.epochs > state["epoch"]
    remarks = [f"skipped a checkpoint: {reason}" for reason in checkpoint.refused]
    if reopened or not ended:
        remarks += forget_other_weights(folder / "weights" / "best.safetensors", state)
    remarks += describe_edits(folder, before, checkpoint)
    remarks += _inexact_reasons(checkpoint.state, recipe)
    if ended and not reopened:
        epochs = state["epoch"]
        remarks.append(
            f"already {state['status']} after {count_of(epochs, 'epoch')}: only evaluated and reported again. "
            f"To continue training, add --epochs {epochs + 10}."
        )
    return EarlierRun(folder, requested, recipe, checkpoint=checkpoint, remarks=tuple(remarks), reopened=reopened)


def _refuse_fixed_options(before: Recipe, options: dict[str, Any], folder: Path) -> None:
    """Raise InputError if a fixed option would change."""
    known = [name for name in options if name not in MAY_CHANGE and name in Recipe.names()]
    fixed = sorted(name for name in known if options[name] != getattr(before, name))
    if not fixed:
        return
    changes = "; ".join(f"{k} was {_option_text(getattr(before, k))}, got {_option_text(options[k])}" for k in fixed)
    flags = " and ".join("--" + name.replace("_", "-") for name in fixed)
    remedy = f"Drop {flags}, or start a new run."
    if "model" in fixed:
        remedy = (
            f"Drop {flags}, make the network deeper or wider with `skipway grow`, or start a new run with "
            f"--pretrained {printable(folder)}."
        )
    raise InputError(f"cannot change {', '.join(fixed)} when resuming: {changes}. {remedy}")


def _option_text(value: Any) -> str:
    return "unset" if value is None else printable(value)


def machine_facts(device: str, precision: str) -> dict[str, Any]:
    """Return the properties of machine and software that the exact weights of a run depend on.

    Args:
        device: "cpu", or an accelerator such as "cuda".
        precision: "bf16" or "fp32".
    """
    return {
        "threads": torch.get_num_threads(),
        "precision": precision,
        "device": device,
        "processes": collectives.world_size(),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernels": kernel_status(with_reason=False),
        **gpu_facts(device),
    }


def read_splits(folder: Path) -> dict[str, tuple[str, str, str]]:
    """Return {file: (class, split, sha256)} of splits.csv; empty if the file is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            return {row["file"]: (row["class"], row["split"], row["sha256"]) for row in csv.DictReader(file)}
    except (OSError, KeyError, ValueError, csv.Error):
        return {}


def training_digests(folder: Path) -> set[str]:
    """Return the digests of the training samples in splits.csv, images or rows; empty if the file is damaged."""
    try:
        with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
        return {row["sha256"] if "sha256" in row else row["digest"] for row in rows}
    except (OSError, KeyError, ValueError, csv.Error):
        return set()


def describe_changes(before: dict[str, tuple[str, str, str]], images: DecodedImages) -> str:
    """Describe the images that were added, removed, renamed, edited or moved, in one line.

    Args:
        before: result of `read_splits` for the run.
        images: images of this call.
    """
    now: dict[str, tuple[str, str, str]] = {}
    for split, indices in images.splits.items():
        for i in indices:
            class_name = escape_cell(images.target_text(i))
            now[escape_cell(images.keys[i])] = (class_name, split, images.digests[i])
    added, removed = sorted(set(now) - set(before)), sorted(set(before) - set(now))
    new_name = {now[name][2]: name for name in added}
    renamed = {name: new_name[before[name][2]] for name in removed if before[name][2] in new_name}
    both = sorted(set(now) & set(before))
    changes = {
        "added": [name for name in added if name not in renamed.values()],
        "removed": [name for name in removed if name not in renamed],
        "renamed": [f"{old} to {new}" for old, new in renamed.items()],
        "edited": [name for name in both if now[name][2] != before[name][2]],
        "moved to another class or split": [
            name for name in both if now[name][2] == before[name][2] and now[name] != before[name]
        ],
    }
    counts = [
        f"{len(names):,} {word}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
        for word, names in changes.items()
        if names
    ]
    return "; ".join(counts) or "only their order, sizes, weights or columns differ"


def find_data(data: str | None, folder: Path) -> str | None:
    """Return the path of the data as seen from here or from the run folder, which may both have moved.

    Args:
        data: path or name in the recipe, or None.
        folder: run folder.
    """
    if data is None or data in BUILT_IN or Path(data).expanduser().exists():
        return data
    above = (folder / "..", folder / ".." / "..", folder / ".." / ".." / "..")  # a fold is one level deeper
    candidates = [place / data for place in above]  # joining keeps an absolute path
    return next((str(path) for path in candidates if path.exists()), data)


def _refuse_edited(requested: Recipe, checkpoint: Checkpoint, folder: Path) -> None:
    """Raise InputError if config.yaml differs from the checkpoint in a fixed option."""
    saved = checkpoint.state["recipe"]
    fixed = [name for name in Recipe.names() if name not in MAY_CHANGE and name in saved]
    edited = differences({name: getattr(requested, name) for name in fixed}, {name: saved[name] for name in fixed})
    if edited:
        raise InputError(
            f"cannot resume {printable(folder)}: config.yaml was edited since the checkpoint ({'; '.join(edited)}). "
            "Restore these values, or start a new run with --config."
        )


def _on_same_machine(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """Return the recipe with threads, precision and device as resolved at the start, if this machine has them."""
    return replace(
        recipe,
        threads=recipe.threads or saved["threads"],
        precision=saved["precision"] if recipe.precision == "auto" else recipe.precision,
        device=saved["device"] if recipe.device == "auto" and device_exists(saved["device"]) else recipe.device,
    )


def _inexact_reasons(saved: dict[str, Any], recipe: Recipe) -> list[str]:
    """Return a line with the reasons why the resumed run is not bit-identical to an uninterrupted one, if any."""
    now = machine_facts(recipe.device, recipe.precision) | {"threads": recipe.threads}
    changed = [name for name in now if saved.get(name, now[name]) != now[name]]
    reasons = [f"{name} changed from {saved[name]} to {now[name]}" for name in changed]
    if device_kind(recipe.device) == "cuda" and not (recipe.deterministic and saved["recipe"].get("deterministic")):
        reasons.append("a GPU without --deterministic")
    compiled = saved.get("compile", "off")
    if recipe.compile not in ("auto", compiled):
        reasons.append(f"compile changed from {compiled} to {recipe.compile}")
    before = saved["recipe"]["epochs"]
    if recipe.epochs != before:
        reasons.append(f"epochs changed from {before} to {recipe.epochs}, which stretches the schedule")
    return [f"not bit-identical to an uninterrupted run: {'; '.join(reasons)}"] if reasons else []
