"""Results of predict: predictions, and a table of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skipway.errors import printable
from skipway.runs.run_csv_tables import write_table

__all__ = ["NOT_FINITE", "Prediction", "write_predictions"]

NOT_FINITE = "the outputs of the model are not finite (NaN or infinity)"  # a reason of a Prediction


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
