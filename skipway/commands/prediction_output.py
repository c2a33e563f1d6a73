"""Results of predict: predictions, and a table of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skipway.errors import printable
from skipway.runs.run_csv_tables import write_table

__all__ = ["MAX_SHARES", "NOT_FINITE", "Prediction", "Shares", "write_predictions"]

NOT_FINITE = "the outputs of the model are not finite (NaN or infinity)"  # a reason of a Prediction
MAX_SHARES = 1000  # classes or labels up to which a prediction has all probabilities


@dataclass(frozen=True, eq=False)
class Shares:
    """Probabilities of all classes or labels of one input.

    Attributes:
        names: K names of the classes or labels.
        values: (K,) probabilities.
    """

    names: tuple[str, ...]
    values: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shares) and self.as_dict() == other.as_dict()

    def as_dict(self) -> dict[str, float]:
        """Return the probabilities by name."""
        return dict(zip(self.names, self.values.tolist(), strict=True))


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
        ids: id columns of a row with their texts.
        remark: what is odd in the row, such as a category that is not in the training rows; or "".
        shares: probabilities of all classes or labels; None for numbers, or if there are too many.

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
    ids: tuple[tuple[str, str], ...] = ()
    remark: str = ""
    shares: Shares | None = field(default=None, repr=False)

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
    """Write predictions as CSV with the columns file, status, label, probability, label_2, ..., reason, remark.

    For tables, the id columns come first, and `row` replaces `file`. For multilabel, the columns `labels` and
    `probabilities` come before `label`: the labels that reach their threshold and their probabilities, each joined by
    the separator of the training data. For regression, the column `predicted` replaces the labels; with several
    targets, there is a column `predicted_NAME` for each. The last columns are `p_NAME`, the probability of each class
    or label, if there are at most `MAX_SHARES`. A name that an id column has, too, ends with "_2".
    """
    key_column = "row" if any(p.noun == "row" for p in predictions) else "file"
    ids = tuple(dict.fromkeys(name for name, _ in chain.from_iterable(p.ids for p in predictions)))
    answer = _answer_columns(predictions, top)
    names = next((p.shares.names for p in predictions if p.shares is not None), ())
    own = [key_column, "status", *answer, "reason", "remark", *(f"p_{name}" for name in names)]
    header = _unique_header(ids, own)
    rows = (
        [*_id_cells(p, ids), *_cells(p, len(answer)), p.reason, p.remark, *_share_cells(p, len(names))]
        for p in predictions
    )
    write_table(path, header, rows, verbatim=len(ids))


def _unique_header(first: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return all column names, with "_2" or a higher number behind those of `others` that occur before.

    >>> _unique_header(["row"], ["row", "label"])
    ['row', 'row_2', 'label']
    """
    header, used = list(first), {*first}
    for name in others:
        free = name
        for number in count(2):
            if free not in used:
                break
            free = f"{name}_{number}"
        used.add(free)
        header.append(free)
    return header


def _answer_columns(predictions: Sequence[Prediction], top: int) -> list[str]:
    """Return the columns of the answers, by the first prediction that has one."""
    first = next((p for p in predictions if p.usable), Prediction("", ()))
    if first.values:
        names = [name for name, _ in first.values]
        return ["predicted"] if len(names) == 1 else [f"predicted_{name}" for name in names]
    columns = ["label", "probability"]
    if first.labels is not None:
        columns = ["labels", "probabilities", *columns]
    for rank in range(2, top + 1):
        columns += [f"label_{rank}", f"probability_{rank}"]
    return columns


def _id_cells(prediction: Prediction, ids: Sequence[str]) -> list[str]:
    cells = dict(prediction.ids)
    return [cells.get(name, "") for name in ids]


def _share_cells(prediction: Prediction, length: int) -> list[Any]:
    if prediction.shares is None:
        return [""] * length
    return prediction.shares.values.astype(np.float64).round(6).tolist()


def _cells(prediction: Prediction, length: int) -> list[Any]:
    """Return the source, the status, and the answer in `length` cells."""
    answer: list[Any] = [number for _, number in prediction.values]
    if prediction.labels is not None:
        joined = prediction.separator.join
        answer += [joined(name for name, _ in prediction.labels)]
        answer += [joined(f"{share:.6f}" for _, share in prediction.labels)]
    for name, share in prediction.top:
        answer += [name, round(share, 6)]
    answer += [""] * (length - len(answer))
    return [prediction.source, "ok" if prediction.usable else "error", *answer]
