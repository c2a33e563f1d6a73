"""Results of evaluate: the metrics of a model on one split, for each task."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from skipway.data.output_spec import OutputSpec
from skipway.errors import printable
from skipway.training.metrics import compute_metrics, per_class, per_label, per_target
from skipway.training.scores import Scores
from skipway.utils.finite_values import finite_values
from skipway.utils.format_text import count_of

__all__ = ["ALL", "AnyEvaluation", "Evaluation", "LabelEvaluation", "RegressionEvaluation", "evaluation_of"]

ALL = "all"  # name of the samples of a dataset without splits
_IN_FIRST_LINE = ("accuracy", "map", "loss")


@dataclass(frozen=True, kw_only=True)
class _SplitEvaluation:
    """Part that the evaluations of all tasks share; prints as a table.

    Attributes:
        split: "train", "val" or "test", or "all" for a dataset without splits.
        count: number of evaluated samples.
        loss: mean loss.
        skipped: number of unreadable or unlabeled images, or of rows without a target.
        noun: "images" or "rows".
        trained_on: number of evaluated samples in the training set of the run.
        is_asked: True if the caller named the split.
    """

    split: str
    count: int
    loss: float
    skipped: int
    noun: Literal["images", "rows"] = "images"
    trained_on: int = 0
    is_asked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics, the counts, and the rows of the classes, labels or targets as plain values."""
        return finite_values({name: value for name, value in asdict(self).items() if name != "is_asked"})

    def total(self) -> str:
        """Return the number of evaluated and of skipped samples as text."""
        reason = "unreadable or unlabeled" if self.noun == "images" else "without a target"
        skipped = f" (skipped {self.skipped:,} {reason})" if self.skipped else ""
        return f"{count_of(self.count, self.noun[:-1])}{skipped}"

    def trained_on_lines(self) -> list[str]:
        """Return a warning if evaluated samples are in the run's training set, unless the caller chose that split."""
        if not self.trained_on or (self.is_asked and self.split == "train"):
            return []
        return [
            f"warning: {self.trained_on:,} of these samples are in the training set of the run, so the result is "
            "optimistic"
        ]


@dataclass(frozen=True, kw_only=True)
class Evaluation(_SplitEvaluation):
    """Classification metrics of a model on one split; prints as a table.

    Attributes:
        split, count, loss, skipped, noun, trained_on, is_asked: the split, its samples and their mean loss.
        accuracy: accuracy between 0 and 1.
        classes: one row per class, with its count, precision, recall and F1 score.
        metrics: further metrics by name.
    """

    accuracy: float
    classes: list[dict[str, Any]]
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        first = f"{self.split}: accuracy {self.accuracy:.2%}, loss {self.loss:.4f} on {self.total()}"
        rows: list[tuple[str, ...]] = [("class", self.noun, "precision", "recall", "f1")]
        for row in self.classes:
            numbers = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
            rows.append((printable(row["class"]), f"{row['count']:,}", *numbers))
        return "\n".join([first, *_metric_lines(self.metrics), *self.trained_on_lines(), *_aligned(rows)])


@dataclass(frozen=True, kw_only=True)
class LabelEvaluation(_SplitEvaluation):
    """Multilabel metrics of a model on one split; prints as a table.

    Attributes:
        split, count, loss, skipped, noun, trained_on, is_asked: the split, its samples and their mean loss.
        map: mean average precision over the labels that occur; NaN if none does.
        labels: one row per label, with its count, precision, recall, F1 score, average precision and threshold.
        metrics: further metrics by name, such as macro_f1 and micro_f1.
    """

    map: float
    labels: list[dict[str, Any]]
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        first = f"{self.split}: mean average precision {self.map:.4f}, loss {self.loss:.4f} on {self.total()}"
        rows: list[tuple[str, ...]] = [
            ("label", self.noun, "precision", "recall", "f1", "average precision", "threshold")
        ]
        for row in self.labels:
            numbers = [row[name] for name in ("precision", "recall", "f1", "average_precision", "threshold")]
            cells = ("-" if number is None else f"{number:.3f}" for number in numbers)
            rows.append((printable(row["class"]), f"{row['count']:,}", *cells))
        return "\n".join([first, *_metric_lines(self.metrics), *self.trained_on_lines(), *_aligned(rows)])


@dataclass(frozen=True, kw_only=True)
class RegressionEvaluation(_SplitEvaluation):
    """Regression metrics of a model on one split; prints as a line, and a table if there are several targets.

    Attributes:
        split, count, loss, skipped, noun, trained_on, is_asked: the split, its samples and their mean loss.
        r2: coefficient of determination, averaged over the targets.
        mae, rmse: mean absolute and root mean squared error in units of the target, averaged over the targets.
        targets: one row per target, with its R2 and errors.
    """

    r2: float
    mae: float
    rmse: float
    targets: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        line = (
            f"{self.split}: R2 {self.r2:.4f}, mean absolute error {self.mae:.6g}, root mean squared error "
            f"{self.rmse:.6g} on {self.total()}"
        )
        rows: list[tuple[str, ...]] = [("target", "r2", "mae", "rmse")]
        for row in self.targets:
            rows.append((printable(row["target"]), f"{row['r2']:.4f}", f"{row['mae']:.6g}", f"{row['rmse']:.6g}"))
        table = _aligned(rows) if len(self.targets) > 1 else []
        return "\n".join([line, *self.trained_on_lines(), *table])


AnyEvaluation = Evaluation | LabelEvaluation | RegressionEvaluation


def evaluation_of(spec: OutputSpec, scores: Scores, **facts: Any) -> AnyEvaluation:
    """Return the evaluation of a model from its scores.

    Args:
        spec: meaning of the outputs.
        scores: scores of the split.
        facts: split, count, skipped, noun, trained_on and is_asked.

    Raises:
        NotFiniteError: the outputs for a sample are NaN or infinite.
    """
    metrics: dict[str, Any] = compute_metrics(scores)
    rows: Any = scores
    if spec.task == "regression":
        values = {name: metrics[name] for name in ("r2", "mae", "rmse", "loss")}
        return RegressionEvaluation(**facts, **values, targets=per_target(rows, spec.target_names))
    if spec.task == "multilabel":
        labels = per_label(rows, spec.class_names)
        return LabelEvaluation(**facts, map=metrics["map"], loss=metrics["loss"], labels=labels, metrics=metrics)
    classes = per_class(rows, spec.class_names)
    return Evaluation(**facts, accuracy=metrics["accuracy"], loss=metrics["loss"], classes=classes, metrics=metrics)


def _metric_lines(metrics: dict[str, float]) -> list[str]:
    others = {name.replace("_", " "): value for name, value in metrics.items() if name not in _IN_FIRST_LINE}
    return [", ".join(f"{name} {value:.4f}" for name, value in others.items())] if others else []


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table: the first column left-aligned, the others right-aligned."""
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        aligned = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
        lines.append("  ".join([name.ljust(first), *aligned]))
    return lines
