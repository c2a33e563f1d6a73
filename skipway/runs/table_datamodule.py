"""A table to learn from, as a run needs it: feeds, Spec, settings, fingerprint, and what is written and said of it."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from skipway.data.batching import Shard
from skipway.data.tables.dataset import (
    TableDataset,
    TableSource,
    build_table_dataset,
    describe_table,
    fingerprint_table,
)
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.table_spec import TableSpec
from skipway.distributed import collectives
from skipway.errors import InputError, printable
from skipway.model_factory import create_model
from skipway.models.network import Network
from skipway.models.registry import plan_of
from skipway.report.regression_plot import plot_predictions
from skipway.runs.defaults import TABLE, table_batch_size, table_epochs
from skipway.runs.recipe import Recipe
from skipway.runs.run_folder import write_classes, write_table
from skipway.training.losses import Classification, Regression, Task
from skipway.training.metrics import ClassScores, RegressionScores, Scores, compute_metrics
from skipway.training.trainer import Settings
from skipway.utils.atomic_files import make_folder, write_json
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["BASELINE", "TableDataModule", "baseline"]

BASELINE = "gradient boosting"  # of scikit-learn, histogram-based, with its default settings
_OF_PICTURES = ("img_size", "resize_mode", "augment", "stem", "mixup", "cutmix", "tta", "pretrained")
_BASELINE_SLOTS = 255  # of a category column, beyond which it takes them for numbers


class TableDataModule:
    """One run's table: `Job` says what each part is for."""

    noun = "rows"

    def __init__(self, tables: TableSource, recipe: Recipe):
        self.tables, self.recipe, self.name = tables, recipe, tables.name
        self.model = (recipe.model, {}) if recipe.model != "auto" else ("resmlp", dict(TABLE))
        refuse_unfit(recipe)
        self.rows = self._read(None)
        self.fingerprint = fingerprint_table(self.rows)
        if self.rows.spec.task == "regression":
            _refuse_of_classes(recipe, self.rows.spec.target)

    def _read(self, spec: TableSpec | None) -> TableDataset:
        recipe = self.recipe
        return build_table_dataset(
            self.tables, recipe.val_fraction, recipe.seed, max_unreadable=recipe.max_unreadable, spec=spec
        )

    def prepare(self, console: Console, stop: StopFlag) -> None:
        """Nothing is left to be done: tables are read when they are opened."""

    @property
    def epochs(self) -> int:
        """Passes over the training rows, where nobody said how many."""
        return table_epochs(self.count("train"), self.usual_batch())

    def usual_batch(self) -> int:
        """Rows in a step."""
        return self.recipe.batch_size or table_batch_size(self.count("train"))

    def count(self, split: str) -> int:
        """How many rows a split has."""
        return len(self.rows.splits.get(split, ()))

    def name_of(self, row: int) -> str:
        """What the user knows a row by."""
        return self.rows.keys[row]

    def class_counts(self) -> list[int]:
        """Training rows of each class; nothing for regression."""
        if not self.rows.spec.class_names:
            return []
        return np.bincount(self.rows.y[self.rows.splits["train"]], minlength=self.rows.spec.num_classes).tolist()

    def spec(self, earlier: dict[str, Any] | None) -> TableSpec:
        """How rows become inputs; a run that goes on keeps its own way, whatever the rows are now."""
        if earlier is not None:
            known = TableSpec.from_dict(earlier)
            if known != self.rows.spec:  # other rows than before, which the run was told to go on with
                self.rows = self._read(known)
        return self.rows.spec

    def network(self, console: Console) -> tuple[Network, bool]:
        """A network with fresh weights."""
        recipe, spec, (name, row) = self.recipe, self.rows.spec, self.model
        options = {**row, "in_features": spec.input_shape[0], "categories": spec.categories}
        options |= {k: v for k in ("drop_path", "dropout") if (v := getattr(recipe, k))}
        network = create_model(name, spec.num_classes, **options)
        network.spec = spec
        return network, False

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """What the feeds are made with from here on."""
        self.batch_size = batch_size

    def feed(self, split: str, *, train: bool = False) -> RowBatches:
        """The rows of a split in batches; those to train on in an order of their own each epoch."""
        seed, size = (self.recipe.seed, self.batch_size) if train else (None, 2 * self.batch_size)
        shard = Shard(collectives.rank(), collectives.world_size())
        balanced = train and self.recipe.balance == "sampling"
        return RowBatches(
            self.rows.x, self.rows.y, self.rows.splits[split], size, seed=seed, balanced=balanced, shard=shard
        )

    def fit_first_layer(self, network: Network, feed: Any) -> None:
        """No first layer of a table is fitted to its rows."""

    def task(self, settings: Settings) -> Task:
        """What is learnt."""
        spec = self.rows.spec
        if spec.task == "regression":
            return Regression(spec.target_mean, spec.target_std)
        return Classification(settings.label_smoothing, settings.class_weights, samples="rows")

    def changed(self, folder: Path) -> str:
        """What differs from the rows that the run of `folder` had, in one line."""
        try:
            with open(folder / "splits.csv", encoding="utf-8", newline="") as file:
                before = {r["row"]: r["digest"] for r in csv.DictReader(file)}
        except (OSError, KeyError, ValueError, csv.Error):
            before = {}
        now = {printable(key): digest for key, digest in zip(self.rows.keys, self.rows.digests, strict=True)}
        counts = {
            "added": sum(k not in before for k in now),
            "removed": sum(k not in now for k in before),
            "edited": sum(k in before and before[k] != v for k, v in now.items()),
        }
        return ", ".join(f"{n:,} {word}" for word, n in counts.items() if n) or "their columns, order or split differ"

    def describe(self) -> dict[str, Any]:
        """What metrics.json has under "data"."""
        return describe_table(self.rows)

    def lines(self) -> list[str]:
        """What is said of the data before training."""
        facts, rows = self.describe(), self.rows
        counts = ", ".join(f"{n:,} {split}" for split, n in facts["counts"].items())
        kinds = ", ".join(f"{n:,} {kind}" for kind, n in facts["columns"].items())
        learnt = f"{len(rows.spec.class_names)} classes" if rows.spec.class_names else "a number (regression)"
        said = [f"data: {rows.name}, {counts} rows; columns: {kinds}; target {printable(rows.spec.target)!r}: {learnt}"]
        if rows.skipped:
            said.append(f"  {len(rows.skipped):,} rows have no target and are left out: see skipped.csv")
        said += [f"  {count:,} {note}" for note, count in facts["notes"].items()]
        return said + [f"  mind: {warning}" for warning in facts["warnings"]]

    def write_data(self, folder: Path, feed: Any) -> None:
        """splits.csv, skipped.csv, and in encoders.json how columns become numbers."""
        write_json(folder / "encoders.json", self.rows.spec.as_dict())
        rows, targets = self.rows, self.rows.targets
        write_table(
            folder / "splits.csv",
            ("row", "target", "split", "digest"),
            ((rows.keys[i], targets[i], split, rows.digests[i]) for split, ids in rows.splits.items() for i in ids),
        )
        skipped = ((s.key, s.split, s.reason) for s in rows.skipped)
        write_table(folder / "skipped.csv", ("row", "split", "reason"), skipped)

    def write_judgement(self, folder: Path, scores: Scores, split: str) -> None:
        """predictions.csv, and the tables of classes or the picture of predicted against true numbers."""
        if isinstance(scores, ClassScores):
            write_classes(folder, self.rows.keys, self.rows.spec.class_names, scores, split, what="row")
            return
        assert isinstance(scores, RegressionScores)
        write_table(
            folder / "predictions.csv",
            ("row", "split", "target", "predicted", "error"),
            (
                (self.rows.keys[i], split, _short(t), _short(p), _short(p - t))
                for i, t, p in zip(scores.ids, scores.targets, scores.predicted, strict=True)
            ),
        )
        make_folder(folder / "plots")
        plot_predictions(scores.targets, scores.predicted, self.rows.spec.target, folder / "plots" / "predicted.png")

    def augmentation(self) -> str:
        """Rows are not changed."""
        return "none"

    def facts(self) -> dict[str, Any]:
        """Nothing: rows are not changed."""
        return {}

    def extra_metrics(self) -> dict[str, Any]:
        """What else metrics.json has: how the usual choice for tables does on the same rows."""
        return {"baseline": baseline(self.rows)}


def refuse_unfit(recipe: Recipe) -> None:
    """Refuse a network that takes no rows, and what only pictures have."""
    if recipe.model != "auto" and "in_features" not in plan_of(recipe.model):
        raise InputError(
            f"{printable(recipe.model)} is a network for pictures, but {printable(recipe.data)} is a table; give "
            "--model resmlp, or leave --model out"
        )
    usual = Recipe()
    odd = [name for name in _OF_PICTURES if getattr(recipe, name) != getattr(usual, name)]
    if odd:
        raise InputError(f"{', '.join(odd)}: for pictures, but {printable(recipe.data)} is a table; leave that out")


def _refuse_of_classes(recipe: Recipe, target: str) -> None:
    odd = [name for name, usual in (("balance", "none"), ("label_smoothing", None)) if getattr(recipe, name) != usual]
    if odd:
        raise InputError(
            f"{', '.join(odd)}: for classes, but the target {printable(target)!r} is a number; leave that out, or give "
            "--task classification"
        )


def baseline(rows: TableDataset) -> dict[str, Any]:
    """scikit-learn's histogram gradient boosting with default settings on the same training rows: its figures."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    spec, begun = rows.spec, time.monotonic()
    numbers, indicated = len(spec.number_columns), len(spec.indicator_columns)
    x = np.concatenate([rows.x[:, :numbers], rows.x[:, numbers + indicated :]], axis=1)
    place = {column.name: i for i, column in enumerate(spec.number_columns)}
    for i, column in enumerate(spec.indicator_columns):  # it has a rule of its own for missing values
        x[rows.x[:, numbers + i] > 0, place[column.name]] = np.nan
    sorts = [i >= numbers and spec.categories[i - numbers] <= _BASELINE_SLOTS for i in range(x.shape[1])]
    kind = HistGradientBoostingClassifier if spec.class_names else HistGradientBoostingRegressor
    model = kind(categorical_features=sorts if any(sorts) else None, random_state=0)
    train = rows.splits["train"]
    model.fit(x[train], rows.y[train])
    found: dict[str, Any] = {"name": BASELINE}
    for split in [s for s in ("val", "test") if s in rows.splits]:
        ids = rows.splits[split]
        said, y = model.predict(x[ids]), rows.y[ids]
        if spec.class_names:
            found[f"{split}_accuracy"] = float((said == y).mean())
        else:
            said, y = (v.astype(np.float64) * spec.target_std + spec.target_mean for v in (said, y))
            told = compute_metrics(RegressionScores(ids, np.square(said - y), said, y))
            found |= {f"{split}_{name}": value for name, value in told.items() if name != "loss"}
    return {**found, "seconds": round(time.monotonic() - begun, 2)}


def _short(value: Any) -> float:
    """A number in seven digits, as much as float32 knows of it."""
    return float(f"{float(value):.7g}")
