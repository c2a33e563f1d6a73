"""A table to learn from, as a run needs it: feeds, Spec, settings, fingerprint, and what is written and said of it."""

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np

from skipway import plots
from skipway.data.row_loader import RowBatches
from skipway.data.table_set import TableSet, Tables, describe_table, fingerprint_table, table_set
from skipway.data.table_spec import TableSpec
from skipway.decide import TABLE, table_batch_size, table_epochs
from skipway.errors import printable
from skipway.recipe import Recipe
from skipway.runfolder import write_classes, write_table
from skipway.training.durable import make_folder
from skipway.training.metrics import ClassScores, NumberScores, Scores
from skipway.training.task import Classification, Regression, Task
from skipway.training.trainer import Settings

__all__ = ["BASELINE", "TableJob", "baseline", "figures", "table_task"]

BASELINE = "gradient boosting"  # of scikit-learn, histogram-based, with its default settings
_BASELINE_SLOTS = 255  # of a category column, beyond which it takes them for numbers


class TableJob:
    """One run's table: read, split and encoded; `spec` is that of a run that goes on with other rows than before."""

    noun = "rows"

    def __init__(self, tables: Tables, recipe: Recipe, spec: TableSpec | None = None):
        self.tables, self.recipe = tables, recipe
        self.rows: TableSet = table_set(tables, recipe.val_fraction, recipe.seed, recipe.max_bad, spec)
        self.spec, self.name, self.mark = self.rows.spec, self.rows.name, fingerprint_table(self.rows)
        self.batch_size = recipe.batch_size or table_batch_size(self.count("train"))

    @property
    def epochs(self) -> int:
        """Passes over the training rows, where nobody said how many."""
        return table_epochs(self.count("train"), self.batch_size)

    def count(self, split: str) -> int:
        """How many rows a split has."""
        return len(self.rows.splits.get(split, ()))

    def name_of(self, row: int) -> str:
        """What the user knows a row by."""
        return self.rows.keys[row]

    def class_counts(self) -> list[int]:
        """Training rows of each class; nothing for regression."""
        if not self.spec.class_names:
            return []
        return np.bincount(self.rows.y[self.rows.splits["train"]], minlength=self.spec.num_classes).tolist()

    def model(self) -> tuple[str, dict[str, Any]]:
        """The network that suits: (name, options)."""
        return "resmlp", dict(TABLE)

    def feed(self, split: str, batch_size: int, *, train: bool = False) -> RowBatches:
        """The rows of a split in batches; those to train on in an order of their own each epoch."""
        seed = self.recipe.seed if train else None
        return RowBatches(self.rows.x, self.rows.y, self.rows.splits[split], batch_size, seed=seed)

    def task(self, settings: Settings) -> Task:
        """What is learnt."""
        return table_task(self.spec, settings)

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

    def write_data(self, folder: Path) -> None:
        """splits.csv and skipped.csv."""
        rows, targets = self.rows, self.rows.targets
        write_table(
            folder / "splits.csv",
            ("row", "target", "split", "digest"),
            ((rows.keys[i], targets[i], split, rows.digests[i]) for split, ids in rows.splits.items() for i in ids),
        )
        write_table(folder / "skipped.csv", ("row", "split", "reason"), ((s.key, s.split, s.reason) for s in rows.skipped))

    def write_judgement(self, folder: Path, scores: Scores, split: str) -> None:
        """predictions.csv, and the tables of classes or the picture of predicted against true numbers."""
        if isinstance(scores, ClassScores):
            write_classes(folder, self.rows.keys, self.spec.class_names, scores, split, what="row")
            return
        assert isinstance(scores, NumberScores)
        write_table(
            folder / "predictions.csv",
            ("row", "split", "target", "predicted", "error"),
            (
                (self.rows.keys[i], split, _short(t), _short(p), _short(p - t))
                for i, t, p in zip(scores.ids, scores.targets, scores.predicted, strict=True)
            ),
        )
        make_folder(folder / "plots")
        plots.against(scores.targets, scores.predicted, self.spec.target, folder / "plots" / "predicted.png")

    def further(self) -> dict[str, Any]:
        """What else metrics.json has: how the usual choice for tables does on the same rows."""
        return {"baseline": baseline(self.rows)}


def table_task(spec: TableSpec, settings: Settings) -> Task:
    """What is learnt from a table of `spec`."""
    if spec.task == "regression":
        return Regression(spec.target_mean, spec.target_std)
    return Classification(settings.label_smoothing, settings.class_weights, samples="rows")


def figures(scores: Scores, split: str) -> dict[str, float]:
    """The figures of a split as metrics.json has them."""
    if isinstance(scores, NumberScores):
        return {
            f"{split}_r2": scores.r2,
            f"{split}_mae": scores.mae,
            f"{split}_rmse": scores.rmse,
            f"{split}_loss": scores.loss,
        }
    return {f"{split}_accuracy": scores.figure, f"{split}_loss": scores.loss}


def baseline(rows: TableSet) -> dict[str, Any]:
    """scikit-learn's histogram gradient boosting with default settings on the same training rows: its figures."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    spec, begun = rows.spec, time.monotonic()
    numbers, indicated = len(spec.numbers), len(spec.indicated)
    x = np.concatenate([rows.x[:, :numbers], rows.x[:, numbers + indicated :]], axis=1)
    place = {column.name: i for i, column in enumerate(spec.numbers)}
    for i, column in enumerate(spec.indicated):  # it has a rule of its own for missing values
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
            scores = NumberScores(ids, np.square(said - y), said, y)
            found |= {k: v for k, v in figures(scores, split).items() if not k.endswith("loss")}
    return {**found, "seconds": round(time.monotonic() - begun, 2)}


def _short(value: Any) -> float:
    """A number in seven digits, as much as float32 knows of it."""
    return float(f"{float(value):.7g}")
