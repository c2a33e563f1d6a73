"""Table data of a run: splits, batches, Spec, network, fingerprint, baseline, and the files and lines about them."""

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skipway.data.folds import Fold, pool_tables
from skipway.data.sample_order import Shard
from skipway.data.sample_weights import loss_weights
from skipway.data.tables.column_facts import describe_reading
from skipway.data.tables.columns_yaml import columns_yaml
from skipway.data.tables.dataset import (
    TableDataset,
    build_table_dataset,
    describe_table,
    describe_target,
    fingerprint_table,
)
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.row_digests import DIGEST_PREFIX
from skipway.data.tables.table_source import TableSource
from skipway.data.tables.table_spec import TableSpec
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.models.registry import plan_of
from skipway.runs.defaults import TargetCounts
from skipway.runs.ensemble import Ensemble, TrainingRows, ensemble_network, find_ensemble, refuse_ensemble
from skipway.runs.prediction_tables import write_evaluation_tables
from skipway.runs.recipe import Recipe
from skipway.runs.run_csv_tables import write_table
from skipway.runs.submission import write_submission
from skipway.runs.table_baseline import baseline
from skipway.runs.table_defaults import table_batch_size, table_epochs, table_network_options
from skipway.runs.table_network import FEWEST_ROWS, epochs_for_rows, table_network
from skipway.runs.target_checks import CLASS_OPTIONS, changed_options, flags, refuse_class_options
from skipway.training.epoch_finder import FoundEpochs
from skipway.training.losses import Regression, Task, task_of
from skipway.training.scores import Scores
from skipway.training.trainer import Settings
from skipway.utils.atomic_files import write_file, write_json
from skipway.utils.console import Console
from skipway.utils.format_text import count_of, join_counts
from skipway.utils.run_schema import with_schema
from skipway.utils.stop_signals import StopFlag

__all__ = ["TableDataModule"]

_IMAGE_OPTIONS = ("img_size", "resize_mode", "augment", "stem", "mixup", "cutmix", "tta", "pretrained")
_MAX_LINES = 8  # console lines of one kind about columns; tables may have hundreds of columns
_PLURALS = {"category": "categories"}  # of the kinds of columns; the others add an "s"


class TableDataModule:
    """Table of one run; `DataModule` documents the methods.

    Args:
        tables: opened table or tables.
        recipe: options of the run.
        epochs_are_open: the epochs of a new run are not set.

    Raises:
        InputError: the table cannot be used, or an option does not apply to it.
    """

    noun: Literal["images", "rows"] = "rows"
    time_sets_epochs = False

    def __init__(self, tables: TableSource, recipe: Recipe, *, epochs_are_open: bool = False):
        self.recipe, self.name, self.fold = recipe, tables.name, None
        if recipe.fold is not None and recipe.folds is not None:
            self.fold = Fold(recipe.fold, recipe.folds)
            tables = replace(tables, splits=pool_tables(tables.splits, (*tables.roles.ignore, *tables.roles.id)))
        self.tables = tables
        self.tests_epochs = epochs_are_open and recipe.patience is None
        _refuse_image_options(recipe)
        self.rows = self._read(None)
        self.model: tuple[str, dict[str, Any]] = (recipe.model, {})
        if recipe.model == "auto":
            sizes = self.count("train"), self.default_batch_size()
            self.model = "resmlp", table_network_options(*sizes, self.rows.spec.task)
        self.fingerprint = fingerprint_table(self.rows)
        refuse_class_options(recipe, self.rows.spec.task, self.rows.spec.target)
        if recipe.ensemble_with is not None:
            self._refuse_ensemble()

    def _read(self, spec: TableSpec | None) -> TableDataset:
        recipe = self.recipe
        return build_table_dataset(
            self.tables,
            recipe.val_fraction,
            recipe.seed,
            max_unreadable=recipe.max_unreadable,
            spec=spec,
            fold=self.fold,
            allow_duplicates=recipe.allow_duplicates,
            hold_out_again=self.tests_epochs or recipe.ensemble_with is not None,
        )

    def unused_options(self) -> tuple[str, ...]:
        """Return the names of the options without effect on this table."""
        return _IMAGE_OPTIONS + (CLASS_OPTIONS if self.rows.spec.task == "regression" else ())

    def prepare(self, console: Console, stop: StopFlag, *, keep_samples: bool = True) -> None:
        """Do nothing, because tables are read when they are opened."""

    @property
    def epochs(self) -> int:
        """Default number of passes over the training rows."""
        return table_epochs(self.count("train"), self.default_batch_size())

    def default_batch_size(self) -> int:
        """Return the batch size of the recipe, or a default by the number of training rows."""
        return self.recipe.batch_size or table_batch_size(self.count("train"))

    def count(self, split: str) -> int:
        """Return the number of rows in a split."""
        return len(self.rows.splits.get(split, ()))

    def name_of(self, row: int) -> str:
        """Return the name of a row: its file and line."""
        return self.rows.keys[row]

    def target_counts(self) -> TargetCounts:
        """Return the task, and the number of training rows in total and of each class or label."""
        spec, y = self.rows.spec, self.rows.y[self.rows.splits["train"]]
        counts: list[int] = []
        if spec.class_names:
            counts = ((y > 0.5).sum(axis=0) if y.ndim == 2 else np.bincount(y, minlength=spec.num_classes)).tolist()
        return TargetCounts(spec.task, len(y), tuple(counts))

    def spec(self, earlier: dict[str, Any] | None) -> TableSpec:
        """Return the Spec of the inputs: from the training rows, or `earlier`, that of the run to resume."""
        if earlier is not None:
            known = TableSpec.from_dict(earlier)
            if known != self.rows.spec:  # the rows have changed, which the user allowed
                self.rows = self._read(known)
                self.fingerprint = fingerprint_table(self.rows)
        return self.rows.spec

    def network(self, console: Console) -> tuple[Network, bool]:
        """Return the initial network, and False because tables have no pretrained weights."""
        spec, (name, model_options) = self.rows.spec, self.model
        options = {k: v for k in ("drop_path", "dropout") if (v := getattr(self.recipe, k)) is not None}
        return table_network(spec, self.rows.x[self.rows.splits["train"]], name, {**model_options, **options}), False

    @property
    def rows_choose_epochs(self) -> bool:
        """True if a test on some of the training rows can choose the number of epochs."""
        held_out = self.rows.held_out
        return self.tests_epochs and held_out is not None and len(held_out) >= FEWEST_ROWS

    def choose_epochs(self, network: Network, settings: Settings, poll: Callable[[], None]) -> FoundEpochs:
        """Choose the number of epochs by training a network, which is changed, on some of the training rows."""
        held_out = self.rows.held_out
        assert held_out is not None
        task, rows = self.task(settings), self.rows.splits["train"]
        return epochs_for_rows(network, settings, task, rows, held_out, batches=self._batches, poll=poll)

    def choose_ensemble(self, network: Network, settings: Settings, stop: StopFlag) -> Ensemble:
        """Choose the weights of the network, the initial one, and of boosting."""
        held_out, rows = self.rows.held_out, self.rows.splits["train"]
        assert held_out is not None
        task, data = self.task(settings), self._training_rows()
        return find_ensemble(network, settings, task, data, rows, held_out, batches=self._batches, stop=stop)

    def with_boosting(self, network: Network, ensemble: Ensemble) -> Network:
        """Return the network of the run joined with boosting, which is trained on all training rows."""
        return ensemble_network(network, self._training_rows().boosting(self.rows.splits["train"]), ensemble)

    def _training_rows(self) -> TrainingRows:
        """Return the rows with the weights of the loss, those that balance classes or labels included."""
        rows, weights, is_balanced = self.rows, self.rows.weights, self.recipe.balance != "none"
        if not is_balanced or rows.spec.task == "multilabel":
            factors = self.target_counts().loss_weights() if is_balanced else None
            return TrainingRows(rows.spec, rows.x, rows.y, weights, factors)
        of_classes = np.asarray(self.target_counts().loss_weights())[rows.y]
        return TrainingRows(rows.spec, rows.x, rows.y, of_classes if weights is None else weights * of_classes)

    def _refuse_ensemble(self) -> None:
        """Raise InputError if the run cannot be blended with boosting."""
        recipe, spec = self.recipe, self.rows.spec
        refuse_ensemble(spec, self.count("train"), can_hold_out=self.rows.held_out is not None)
        others = changed_options(recipe, ("fsdp",))
        if recipe.balance == "sampling" and spec.task == "multilabel":
            others.append("balance")
        if others:
            raise InputError(
                f"cannot blend with boosting: expected unsharded weights and a loss that boosting can have, "
                f"got {flags(others)}. Drop {flags(others)}, or --ensemble-with."
            )

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """Configure the batches."""
        self.batch_size = batch_size

    def batches(self, split: str, *, train: bool = False) -> RowBatches:
        """Return the batches of a split, shuffled in each epoch if `train` is set."""
        return self._batches(self.rows.splits[split], self.recipe.seed if train else None)

    def _batches(self, rows: np.ndarray, seed: int | None) -> RowBatches:
        """Return the batches of rows, shuffled in each epoch for training if a seed is given."""
        return RowBatches(
            self.rows.x,
            self.rows.y,
            rows,
            2 * self.batch_size if seed is None else self.batch_size,
            seed=seed,
            balanced=seed is not None and self.recipe.balance == "sampling",
            shard=Shard(collectives.rank(), collectives.world_size()),
            weights=loss_weights(self.rows.weights, self.rows.splits["train"]),
        )

    def fit_first_layer(self, network: Network, batches: Any) -> None:
        """Do nothing, because no first layer depends on the rows."""

    def task(self, settings: Settings) -> Task:
        """Return the task: classification or regression."""
        spec, train = self.rows.spec, self.rows.splits["train"]
        task = task_of(spec, settings.label_smoothing, settings.class_weights, samples="rows", huber=settings.huber)
        if isinstance(task, Regression):
            variance = self.rows.y[train].astype(np.float64).var(axis=0)
            task = replace(task, variance=tuple(np.where(variance > 0, variance, 1.0).tolist()))
        return task

    def describe_changes(self, folder: Path) -> str:
        """Describe the changes since the run in `folder` read its rows, in one line."""
        try:
            with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
                before = {row["row"]: row["digest"] for row in csv.DictReader(file)}
        except (OSError, KeyError, ValueError, csv.Error):
            before = {}
        if before and not any(digest.startswith(DIGEST_PREFIX) for digest in before.values()):
            return "unknown changes: an earlier version of skipway stored digests of rows that cannot be compared"
        now = {printable(key): digest for key, digest in zip(self.rows.keys, self.rows.digests, strict=True)}
        counts = {
            "added": sum(key not in before for key in now),
            "removed": sum(key not in now for key in before),
            "edited": sum(key in before and before[key] != digest for key, digest in now.items()),
        }
        return (
            ", ".join(f"{n:,} {word}" for word, n in counts.items() if n) or "only their columns, order or split differ"
        )

    def describe(self) -> dict[str, Any]:
        """Return the value of "data" in metrics.json."""
        return describe_table(self.rows)

    def summary_lines(self) -> list[str]:
        """Return the console lines about the table."""
        facts, rows = self.describe(), self.rows
        counts = join_counts(facts["counts"], "row")
        kinds = ", ".join(count_of(n, kind, _PLURALS.get(kind, "")) for kind, n in facts["columns"].items())
        target = describe_target(rows.spec)
        lines = [f"data: {rows.name}, {counts}; columns: {kinds}; target {printable(rows.spec.target)!r}: {target}"]
        styled = {name: details for name, details in rows.columns.items() if details["style"]}
        lines += _first(f"  column {printable(name)!r}: {describe_reading(of)}" for name, of in styled.items())
        if rows.skipped:
            lines.append(f"  {count_of(len(rows.skipped), 'row')} without a target skipped, listed in skipped.csv")
        lines += [f"  {self.tables.to_predict.describe()}"] if self.tables.to_predict else []
        lines += _first(f"  {count:,} {note}" for note, count in facts["notes"].items())
        warnings = [f"  warning: {warning}" for warning in facts["warnings"]]
        of_columns = [line for line in warnings if line.startswith("  warning: column ")]
        return lines + _first(of_columns) + [line for line in warnings if line not in of_columns]

    def write_data(self, folder: Path, batches: Any) -> None:
        """Write splits.csv, skipped.csv, the encoders in encoders.json, and the columns in columns.yaml."""
        write_json(folder / "encoders.json", with_schema(self.rows.spec.as_dict()))
        text = columns_yaml(self.rows.spec, self.rows.columns)
        write_file(folder / "columns.yaml", text.encode("utf-8", "backslashreplace"))
        write_table(folder / "splits.csv", ("row", "target", "split", "digest"), self._split_rows())
        skipped = ((row.key, row.split, row.reason) for row in self.rows.skipped)
        write_table(folder / "skipped.csv", ("row", "split", "reason"), skipped)

    def _split_rows(self) -> Iterator[tuple[Any, ...]]:
        rows = self.rows
        for split, ids in rows.splits.items():
            for i in ids:
                yield rows.keys[i], rows.target_text(i), split, rows.digests[i]

    def write_evaluation(self, folder: Path, scores: Scores, split: str) -> None:
        """Write predictions.csv, and the metrics of each class, label or number."""
        rows, scores = self.rows, scores.with_weights(self.rows.weights)
        write_evaluation_tables(folder, rows.keys, rows.spec, scores, split=split, key_column="row")

    def write_submission(self, folder: Path) -> list[str]:
        """Predict the test table if it lacks the target, and return the console lines about submission.csv."""
        rows = self.tables.to_predict
        return [] if rows is None else write_submission(folder, rows)

    def size_growth(self, epochs: int) -> list[float]:
        """Return 1 for each epoch, because rows have a fixed size."""
        return [1.0] * epochs

    def describe_augmentation(self) -> str:
        """Return "none", because rows are not augmented."""
        return "none"

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return no values, because rows are not augmented."""
        return {}

    def extra_metrics(self) -> dict[str, Any]:
        """Return the metrics of gradient boosting on the same rows, for metrics.json."""
        return {"baseline": baseline(self.rows)}


def _first(lines: Iterable[str]) -> list[str]:
    """Return the first lines about columns, and how many others the run folder has."""
    lines = list(lines)
    rest = len(lines) - _MAX_LINES
    return lines if rest <= 1 else [*lines[:_MAX_LINES], f"  and {rest:,} more such lines, see report.html"]


def _refuse_image_options(recipe: Recipe) -> None:
    """Raise InputError for a network of images, and for options that only apply to images."""
    if recipe.model != "auto" and "in_features" not in plan_of(recipe.model):
        raise InputError(
            f"cannot train {printable(recipe.model)} on {printable(recipe.data)}: expected a network for tables, got "
            "one for images. Use --model resmlp, or drop --model."
        )
    # Options that are switched off have no effect either, as in the config.yaml of earlier versions.
    if names := [name for name in changed_options(recipe, _IMAGE_OPTIONS) if getattr(recipe, name) is not False]:
        names_of = flags(names)
        raise InputError(
            f"cannot use {names_of} with {printable(recipe.data)}: expected images, got a table. Drop {names_of}."
        )
