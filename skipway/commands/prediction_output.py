"""Results of predict and evaluate: predictions, metrics of a dataset, and both as tables."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from skipway.errors import printable
from skipway.runs.run_csv_tables import write_table
from skipway.utils.format_text import count_of

__all__ = ["NOT_FINITE", "Evaluation", "RegressionEvaluation", "Prediction", "write_predictions"]

NOT_FINITE = "the outputs of the model are not finite (NaN or infinity)"  # a reason of a Prediction

_IN_FIRST_LINE = ("accuracy", "loss")


@dataclass(frozen=True)
class Prediction:
    """Prediction for one input; prints as one line.

    Attributes:
        source: file, or row of a table.
        top: most likely classes or labels with their probabilities, in descending order.
        reason: reason for a missing answer, or "".
        labels: for multilabel, all labels whose probability reaches their threshold, with it, in descending order; else
            None.
        separator: text that joins labels in a table.
        values: predicted numbers of a regression, with the names of their targets.
        noun: "image" or "row".

    Example:
        >>> print(Prediction("cat.jpg", (("cat", 0.9), ("dog", 0.1))))
        cat.jpg: cat 90.0%, dog 10.0%
        >>> print(Prediction("sky.jpg", (("cat", 0.2), ("dog", 0.1)), labels=()))
        sky.jpg: no label (most likely: cat 20.0%)
    """

    source: str
    top: tuple[tuple[str, float], ...]
    reason: str = ""
    labels: tuple[tuple[str, float], ...] | None = None
    separator: str = "|"
    values: tuple[tuple[str, float], ...] = ()
    noun: Literal["image", "row"] = "image"

    @property
    def value(self) -> float | None:
        """Predicted number of a regression with one target, or None."""
        return self.values[0][1] if len(self.values) == 1 else None

    @property
    def usable(self) -> bool:
        """True if there is an answer."""
        return bool(self.top or self.values)

    def __str__(self) -> str:
        return printable(f"{self.source}: {self._answer()}")

    def _answer(self) -> str:
        if not self.usable:
            return f"error: {self.reason}"
        if self.value is not None:
            return f"{self.value:.6g}"
        if self.values:
            return ", ".join(f"{name} {number:.6g}" for name, number in self.values)
        if self.labels == ():
            return f"no label (most likely: {_with_shares(self.top[:1])})"
        return _with_shares(self.top if self.labels is None else self.labels)


def _with_shares(names: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in names)


@dataclass(frozen=True)
class Evaluation:
    """Classification metrics of a model on one split; prints as a table.

    Attributes:
        split: "train", "val" or "test".
        count: number of evaluated samples.
        accuracy: accuracy between 0 and 1.
        loss: mean loss.
        classes: one row per class, with its count, precision, recall and F1 score.
        skipped: number of unreadable images, or of rows without a target.
        metrics: further metrics by name.
        noun: "images" or "rows".
        trained_on: number of evaluated samples in the training set of the run.
        is_asked: True if the caller named the split.
    """

    split: str
    count: int
    accuracy: float
    loss: float
    classes: list[dict[str, Any]]
    skipped: int
    metrics: dict[str, float] = field(default_factory=dict)
    noun: Literal["images", "rows"] = "images"
    trained_on: int = 0
    is_asked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics, counts and rows of the classes as plain values."""
        return _plain_values(self)

    def __str__(self) -> str:
        reason = "unreadable" if self.noun == "images" else "without a target"
        unreadable = f" (skipped {self.skipped:,} {reason})" if self.skipped else ""
        total = f"{count_of(self.count, self.noun[:-1])}{unreadable}"
        lines = [f"{self.split}: accuracy {self.accuracy:.2%}, loss {self.loss:.4f} on {total}"]
        others = {name: value for name, value in self.metrics.items() if name not in _IN_FIRST_LINE}
        if others:
            lines.append(", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in others.items()))
        return "\n".join([*lines, *_trained_on_lines(self), *self._class_lines()])

    def _class_lines(self) -> list[str]:
        """Return the table of classes, with aligned columns."""
        rows: list[tuple[str, ...]] = [("class", self.noun, "precision", "recall", "f1")]
        for row in self.classes:
            numbers = (f"{row[name]:.3f}" for name in ("precision", "recall", "f1"))
            rows.append((printable(row["class"]), f"{row['count']:,}", *numbers))
        first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *cells in rows:
            aligned = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
            lines.append("  ".join([name.ljust(first), *aligned]))
        return lines


@dataclass(frozen=True)
class RegressionEvaluation:
    """Regression metrics of a model on one split; prints as a line.

    Attributes:
        split: "train", "val" or "test".
        count: number of evaluated rows.
        r2: coefficient of determination.
        mae, rmse: mean absolute and root mean squared error, in units of the target.
        loss: mean loss.
        skipped: number of rows without a target.
        trained_on: number of evaluated rows in the training set of the run.
        is_asked: True if the caller named the split.
    """

    split: str
    count: int
    r2: float
    mae: float
    rmse: float
    loss: float
    skipped: int
    trained_on: int = 0
    is_asked: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the metrics and counts as plain values."""
        return _plain_values(self)

    def __str__(self) -> str:
        unlabeled = f" (skipped {self.skipped:,} without a target)" if self.skipped else ""
        line = (
            f"{self.split}: R2 {self.r2:.4f}, mean absolute error {self.mae:.6g}, root mean squared error "
            f"{self.rmse:.6g} on {count_of(self.count, 'row')}{unlabeled}"
        )
        return "\n".join([line, *_trained_on_lines(self)])


def _plain_values(evaluation: Evaluation | RegressionEvaluation) -> dict[str, Any]:
    return {name: value for name, value in asdict(evaluation).items() if name != "is_asked"}


def _trained_on_lines(evaluation: Evaluation | RegressionEvaluation) -> list[str]:
    """Return a warning if evaluated samples are in the run's training set, unless the caller chose that split."""
    if not evaluation.trained_on or (evaluation.is_asked and evaluation.split == "train"):
        return []
    return [
        f"warning: {evaluation.trained_on:,} of these samples are in the training set of the run, so the result is "
        "optimistic"
    ]


def write_predictions(path: Path, predictions: Sequence[Prediction], top: int) -> None:
    """Write predictions as CSV with the columns file, status, label, probability, label_2, ..., reason.

    For tables, the first column is `row`. For multilabel, the columns `labels` and `probabilities` come before `label`:
    the labels that reach their threshold and their probabilities, each joined by the separator of the training data.
    For regression, the column `predicted` replaces the labels; with several targets, there is a column
    `predicted_NAME` for each.
    """
    key_column = "row" if any(p.noun == "row" for p in predictions) else "file"
    answered = [p for p in predictions if p.usable]
    first = answered[0] if answered else Prediction("", ())
    if first.values:
        names = [name for name, _ in first.values]
        columns = ["predicted"] if len(names) == 1 else [f"predicted_{name}" for name in names]
    else:
        columns = ["label", "probability"]
        if first.labels is not None:
            columns = ["labels", "probabilities", *columns]
        for rank in range(2, top + 1):
            columns += [f"label_{rank}", f"probability_{rank}"]
    rows = (_cells(p, len(columns)) for p in predictions)
    write_table(path, (key_column, "status", *columns, "reason"), rows)


def _cells(prediction: Prediction, length: int) -> tuple[Any, ...]:
    """Return the cells of a prediction, with `length` cells for the answer."""
    answer: list[Any] = [number for _, number in prediction.values]
    if prediction.labels is not None:
        joined = prediction.separator.join
        answer += [joined(name for name, _ in prediction.labels)]
        answer += [joined(f"{share:.6f}" for _, share in prediction.labels)]
    for name, share in prediction.top:
        answer += [name, round(share, 6)]
    answer += [""] * (length - len(answer))
    return (prediction.source, "ok" if prediction.usable else "error", *answer, prediction.reason)
