"""OutputSpec: the meaning of a model's outputs, the part of a Spec that images and tables share.

Shapes: outputs are (N, K), K = `num_outputs`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import numpy as np

from skipway.errors import InputError, printable

__all__ = ["MAX_NAMES", "OUTPUT_FIELDS", "TASKS", "OutputSpec", "TaskName", "check_texts", "join_labels"]

TaskName = Literal["classification", "multilabel", "regression"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
MAX_NAMES = 100_000  # classes, and categories of all columns; the header of every checkpoint holds them
OUTPUT_FIELDS = ("task", "class_names", "target_names", "target_mean", "target_std", "thresholds", "label_sep")
_MAX_NAME_BYTES = 1024
_THRESHOLD = 0.5  # probability from which a label is predicted, unless a validation set chose another


class OutputSpec:
    """Task of a model and the meaning of its outputs: base of the dataclasses `Spec` and `TableSpec`.

    Outputs (N, K) are logits of classes or labels, or standardized numbers for a regression.

    Attributes:
        task: "classification" (one class per sample), "multilabel" (any number of labels) or "regression".
        class_names: names of the classes or labels, in the order of the outputs; empty for regression.
        target_names: target columns of the table; empty if the classes come from folders.
        target_mean, target_std: mean and standard deviation of each target in training, for regression.
        thresholds: probability of each label from which it is predicted, for multilabel.
        label_sep: text between the labels of a sample in its target column, for multilabel.
    """

    kind: ClassVar[str] = "an OutputSpec"  # for errors

    task: TaskName
    class_names: tuple[str, ...]
    target_names: tuple[str, ...]
    target_mean: tuple[float, ...]
    target_std: tuple[float, ...]
    thresholds: tuple[float, ...]
    label_sep: str

    def _check_outputs(self) -> None:
        """Convert lists to tuples, and raise InputError for values that cannot be used."""
        names = self.class_names
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InputError(
                f"cannot create {self.kind}: expected class_names as a list of strings, got "
                f"{printable(repr(names)[:60])}. Pass one string per class."
            )
        for name in ("class_names", "target_names", "target_mean", "target_std", "thresholds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # lists would break equality and hashing
        if self.task not in TASKS:
            raise InputError(
                f"cannot create {self.kind}: expected task to be one of {', '.join(TASKS)}, got "
                f"{printable(self.task)!r}. Choose one of these."
            )
        if self.task == "regression":
            self._check_numbers()
            return
        if not 1 <= len(self.class_names) <= MAX_NAMES:
            raise InputError(
                f"cannot create {self.kind}: expected 1 to {MAX_NAMES:,} class names, got {len(self.class_names):,}. "
                "Pass one name per class."
            )
        check_texts(self.class_names, self.kind, "class names")
        if self.target_mean or self.target_std:
            raise InputError(
                f"cannot create {self.kind}: expected target_mean and target_std only for regression, got them for "
                f"{self.task}. Remove them."
            )
        if self.task == "multilabel":
            if not self.thresholds:
                object.__setattr__(self, "thresholds", (_THRESHOLD,) * len(self.class_names))
            self._check_thresholds()
        elif self.thresholds or self.label_sep:
            raise InputError(
                f"cannot create {self.kind}: expected thresholds and label_sep only for multilabel, got them for "
                f"{self.task}. Remove them."
            )

    def _check_numbers(self) -> None:
        """Raise InputError if the fields of a regression contradict each other."""
        if self.class_names or self.thresholds or self.label_sep:
            raise InputError(
                f"cannot create {self.kind}: expected class names, thresholds and label_sep only for classes or "
                "labels, got them for regression. Remove them."
            )
        count = len(self.target_names)
        if not count or len(self.target_mean) not in (0, count) or len(self.target_std) not in (0, count):
            raise InputError(
                f"cannot create {self.kind}: expected target_names, target_mean and target_std of equal length, got "
                f"{count}, {len(self.target_mean)} and {len(self.target_std)}. Pass one value per target."
            )
        check_texts(self.target_names, self.kind, "target names")
        object.__setattr__(self, "target_mean", self.target_mean or (0.0,) * count)
        object.__setattr__(self, "target_std", self.target_std or (1.0,) * count)
        is_finite = all(map(math.isfinite, (*self.target_mean, *self.target_std)))
        if not is_finite or min(self.target_std) <= 0:
            raise InputError(
                f"cannot create {self.kind}: expected a finite target_mean and a positive, finite target_std, got "
                f"{self.target_mean} and {self.target_std}. Compute them from the training samples."
            )

    def _check_thresholds(self) -> None:
        """Raise InputError unless there is one threshold per label, each a probability."""
        if len(self.thresholds) != len(self.class_names) or not all(0 <= t <= 1 for t in self.thresholds):
            raise InputError(
                f"cannot create {self.kind}: expected one threshold from 0 to 1 per label, got "
                f"{printable(repr(self.thresholds)[:60])} for {len(self.class_names)} labels. Correct them."
            )

    @property
    def num_outputs(self) -> int:
        """Number of outputs K: that of the classes, labels or numbers."""
        return len(self.class_names) or len(self.target_names)

    @property
    def num_classes(self) -> int:
        """Number of outputs, as `num_outputs`."""
        return self.num_outputs

    @property
    def target(self) -> str:
        """Name of the target, or the names of all targets, joined by a comma; empty if classes are folders."""
        return ", ".join(self.target_names)

    @property
    def separator(self) -> str:
        """Text that joins the labels of a sample in a table: `label_sep`, or else one that is in no label."""
        usual = ("|", ";", ",", "/", "\t")
        return self.label_sep or next((s for s in usual if not any(s in name for name in self.class_names)), "|")

    def standardized(self, targets: np.ndarray) -> np.ndarray:
        """Standardize targets (N, K) of a regression to float32; return classes and labels unchanged."""
        if self.task != "regression":
            return targets
        return ((targets - np.array(self.target_mean)) / np.array(self.target_std)).astype(np.float32)

    def in_units(self, outputs: Any) -> Any:
        """Convert outputs (N, K) of a regression, an array or tensor of float64, to the units of the targets."""
        if isinstance(outputs, np.ndarray):
            return outputs * np.array(self.target_std) + np.array(self.target_mean)
        return outputs * outputs.new_tensor(self.target_std) + outputs.new_tensor(self.target_mean)

    def values(self, outputs: Any) -> Any:
        """Convert outputs (N, K) of a model, a tensor, to probabilities or numbers.

        Returns:
            Probabilities (N, K) of the classes, which add up to 1, or of each label alone; for a regression, numbers
            (N, K) in the units of the targets, float64.

        >>> import torch
        >>> from skipway.data.image_spec import Spec
        >>> spec = Spec(1, 8, 8, (0.5,), (0.5,), class_names=("cat", "dog"), task="multilabel")
        >>> spec.values(torch.zeros(1, 2))
        tensor([[0.5000, 0.5000]])
        """
        if self.task == "classification":
            return outputs.softmax(1)
        if self.task == "multilabel":
            return outputs.sigmoid()
        return self.in_units(outputs.double())

    def answers(self, values: np.ndarray) -> Any:
        """Convert values (N, K), an array from `values`, to the answer for each sample.

        Returns:
            A list of N class names; for multilabel, a list of N tuples of the labels whose probability reaches their
            threshold, most likely first; for a regression, an array of numbers (N,), or (N, K) for several targets.
        """
        if self.task == "classification":
            return [self.class_names[i] for i in values.argmax(axis=1)]
        if self.task == "multilabel":
            return [tuple(self.class_names[i] for i in self.labels_over_threshold(row)) for row in values]
        return values[:, 0] if values.shape[1] == 1 else values

    def labels_over_threshold(self, probabilities: np.ndarray) -> list[int]:
        """Return the labels of a sample whose probability, of (K,), reaches their threshold, most likely first."""
        is_over = probabilities >= np.array(self.thresholds)  # in float64, as in LabelScores
        return [int(i) for i in np.argsort(-probabilities, kind="stable") if is_over[i]]

    def output_dict(self) -> dict[str, Any]:
        """Return the fields of OutputSpec that are set, as plain values that JSON can represent."""
        values = {name: getattr(self, name) for name in OUTPUT_FIELDS}
        always = ("class_names",)
        return {k: _plain(v) for k, v in values.items() if k in always or v not in ((), "", "classification")}

    @staticmethod
    def output_fields(values: dict[str, Any]) -> dict[str, Any]:
        """Remove the fields of OutputSpec from `values`, the result of `output_dict`, and return them.

        Raises:
            TypeError, ValueError: a value has another type.
        """
        fields_of: dict[str, Any] = {}
        for name in ("task", "label_sep"):
            if name in values:
                fields_of[name] = str(values.pop(name))
        for name in ("target_mean", "target_std", "thresholds"):
            if name in values:
                fields_of[name] = tuple(float(v) for v in values.pop(name))
        for name in ("class_names", "target_names"):
            if name in values:
                fields_of[name] = values.pop(name)
        return fields_of


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def join_labels(names: Sequence[str], target: np.ndarray) -> str:
    """Return the names of the labels (K,) of a sample, 0 or 1 or booleans, joined by "|"."""
    return "|".join(names[k] for k in np.flatnonzero(target > 0.5).tolist())


def check_texts(names: Sequence[Any], kind: str, noun: str) -> None:
    """Check that names are unique strings of a limited length.

    Args:
        names: names of classes, targets or categories.
        kind: the object that holds them, for errors, such as "a Spec".
        noun: plural for the names, for errors.

    Raises:
        InputError: a name is no string, is too long, or occurs twice.
    """
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"cannot create {kind}: expected {noun} as strings, got other types. Convert them.")
    if len(set(names)) != len(names):
        raise InputError(f"cannot create {kind}: expected unique {noun}, got duplicates. Rename or merge equal ones.")
    for name in names:
        if len(name.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
            raise InputError(
                f"cannot create {kind}: expected {noun} of at most {_MAX_NAME_BYTES} bytes, got "
                f"{printable(name[:40])}... Shorten it."
            )
