"""SkipClassifier and SkipRegressor: residual networks for tables as scikit-learn estimators.

They use the defaults, training loop and encoders of `skipway train`. They train on all rows for all epochs: there is no
validation split, and no folder is written. Missing values are supported. Text, categorical, boolean and date columns of
a DataFrame are encoded as in a table file.
"""

import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from skipway.data.column_roles import COLUMN_OPTIONS
from skipway.data.sample_weights import loss_weights
from skipway.data.sources.table import Table
from skipway.data.tables.estimator_inputs import fit_frame_columns, frame_settings, read_inputs, to_pandas
from skipway.data.tables.estimator_targets import column_names, has_columns, read_labels, read_target, refuse_overflow
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.table_spec import TableSpec
from skipway.data.tables.target import target_units
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.models.network_outputs import require_finite
from skipway.runs.defaults import TargetCounts, positive_weights_for, settings_for
from skipway.runs.ensemble import TrainingRows, ensemble_network, find_ensemble, refuse_ensemble
from skipway.runs.recipe import Recipe
from skipway.runs.table_defaults import TABLE_NETWORK, table_batch_size, table_epochs, table_network_options
from skipway.runs.table_network import FEWEST_ROWS, epochs_for_rows, hold_out, table_network
from skipway.training.loop import fit as train_network
from skipway.training.losses import task_of
from skipway.training.lr_finder import range_test
from skipway.training.trainer import Trainer, preserve_global_state
from skipway.utils.console import Console
from skipway.utils.devices import device_for
from skipway.utils.stop_signals import StopFlag

__all__ = ["SkipClassifier", "SkipRegressor"]

_BATCH_SIZE = 4096  # rows per prediction batch
_OPTIONS = ("epochs", "batch_size", "lr", "weight_decay", "ensemble_with")  # of a Recipe


class _SkipEstimator(BaseEstimator):
    """Base class of both estimators: encode a table, train a network on it, and compute its outputs."""

    def __init__(
        self,
        layers: int = TABLE_NETWORK["layers"],
        width: int = TABLE_NETWORK["width"],
        dropout: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | Literal["auto"] | None = None,
        weight_decay: float | None = None,
        random_state: Any = None,
        categorical: Sequence[str | int] | None = None,
        numeric: Sequence[str | int] | None = None,
        date: Sequence[str | int] | None = None,
        missing: Sequence[str | float] | None = None,
        columns: str | os.PathLike[str] | None = None,
        device: str = "auto",
        ensemble_with: Literal["boosting"] | None = None,
    ):
        self.layers = layers
        self.width = width
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.random_state = random_state
        self.categorical = categorical
        self.numeric = numeric
        self.date = date
        self.missing = missing
        self.columns = columns
        self.device = device
        self.ensemble_with = ensemble_with

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = True
        tags.non_deterministic = self.random_state is None
        return tags

    def _fit(
        self,
        spec: TableSpec,
        table: Table,
        y: np.ndarray,
        weights: np.ndarray | None,
        label_weights: tuple[float, ...] | None = None,
    ) -> Self:
        """Train a network on all rows of `table`.

        Args:
            spec: encoders of the columns.
            table: N rows.
            y: class indices (N,), labels or standardized numbers (N, K).
            weights: (N,) weights of the rows, or None.
            label_weights: (K,) factors of the loss of rows with each label, or None.
        """
        count = len(table)
        recipe, x = self._recipe(count), spec.encode_strict(table, allow_odd=True).x
        batch_size = recipe.batch_size or table_batch_size(count)
        if self.epochs is None:
            recipe = replace(recipe, epochs=table_epochs(count, batch_size))
        seed, rows, data = recipe.seed, np.arange(count), TrainingRows(spec, x, y, weights, label_weights)
        held_out = np.zeros(count, bool)
        if count >= FEWEST_ROWS and (self.epochs is None or recipe.ensemble_with):
            held_out = hold_out(spec.task, x, y, seed)
        if recipe.ensemble_with:
            refuse_ensemble(spec, count, can_hold_out=bool(held_out.any()))
        row_weights = loss_weights(weights, rows)

        def batches_of(ids: np.ndarray, order: int | None) -> RowBatches:
            return RowBatches(x, y, ids, _BATCH_SIZE if order is None else batch_size, seed=order, weights=row_weights)

        with preserve_global_state():
            torch.set_num_threads(1)  # a second thread slows layers this small down
            torch.manual_seed(seed)
            options = table_network_options(count, batch_size, spec.task)
            options |= {"layers": self.layers, "width": self.width}
            if self.dropout is not None:
                options["dropout"] = self.dropout
            network = table_network(spec, x, "resmlp", options)
            settings = settings_for(recipe, network.plan, batch_size, is_table=True, targets=TargetCounts(spec.task))
            task = task_of(spec, settings.label_smoothing, label_weights, samples="rows", huber=settings.huber)
            trainer = Trainer(network, settings, table.row_name, task)
            batches = batches_of(rows, seed)
            if self.lr == "auto":
                trainer.settings = replace(settings, lr=range_test(trainer, batches).suggestion)
            if self.epochs is None and count >= FEWEST_ROWS:
                parts = deepcopy(network), trainer.settings, task, rows, held_out
                trainer.set_ends(replace(trainer.settings, epochs=epochs_for_rows(*parts, batches=batches_of).best))
            inputs = network, trainer.settings, task, data, rows, held_out
            ensemble = find_ensemble(*inputs, batches=batches_of, stop=StopFlag()) if recipe.ensemble_with else None
            train_network(
                trainer,
                batches,
                None,
                None,
                on_epoch=lambda state, weights: None,
                facts={},
                console=Console(quiet=True),
                stop=StopFlag(),
            )
        # In float64 the output for a row does not depend on the other rows of its batch.
        self.network_: Network = network.cpu().double().eval()
        self.ensemble_weight_ = ensemble.weight if ensemble else 0.0
        if ensemble and ensemble.weight:
            self.network_ = ensemble_network(self.network_, data.boosting(rows), ensemble)
        self.spec_ = spec
        self.n_iter_ = trainer.state.epoch
        return self

    def _recipe(self, count: int) -> Recipe:
        """Return the options of the training of `count` rows, which the recipe checks; open epochs have its default."""
        values = {name: _plain(getattr(self, name)) for name in _OPTIONS}
        options = {name: value for name, value in values.items() if value is not None}
        seed = int(check_random_state(self.random_state).randint(2**31))
        return Recipe(**options, seed=seed, precision="fp32", device=device_for(self.device, rows=count))

    def _table(self, X: Any, reset: bool) -> Table:
        """Convert X, a DataFrame or a numeric matrix, to a Table."""
        table, objects = read_inputs(self, X, reset=reset)
        if reset:
            self._object_columns = objects
        return table

    def _weights(self, sample_weight: Any, count: int) -> np.ndarray | None:
        """Return (N,) weights of the rows, or None if all are equal."""
        if sample_weight is None:
            return None
        rows, weights = np.empty((count, 1)), to_pandas(sample_weight)
        weights = _check_sample_weight(weights, rows, dtype=np.float64, ensure_non_negative=True)
        return None if (weights == weights[0]).all() else weights

    def _spec(self, table: Table, **outputs: Any) -> TableSpec:
        """Return the encoders of the table's columns, with the fields `outputs` of OutputSpec.

        Columns that are left out or read by a rule are warned about.
        """
        options = {name: getattr(self, name) for name in COLUMN_OPTIONS}
        settings = frame_settings(options, table)
        columns, remarks = fit_frame_columns(table, self._object_columns, settings)
        for remark in remarks:
            warnings.warn(remark, UserWarning, stacklevel=3)
        return TableSpec(columns, missing=settings.missing, **{"target_names": ("y",), **outputs})

    def _values(self, X: Any) -> np.ndarray:
        """Compute probabilities or numbers (N, K) for X, see `OutputSpec.values`."""
        check_is_fitted(self)
        x = torch.from_numpy(self.spec_.encode_strict(self._table(X, reset=False)).x).double()
        with torch.inference_mode():
            outputs = torch.cat([self.network_(part) for part in x.split(_BATCH_SIZE)])
            require_finite(outputs.numpy())
            return require_finite(self.spec_.values(outputs).numpy())


class SkipClassifier(ClassifierMixin, _SkipEstimator):
    """A residual network that classifies rows of a table, with one class or several labels per row.

    Args:
        layers: number of residual blocks.
        width: width of the blocks.
        dropout: dropout rate inside the blocks. Defaults to 0.3 for classes; 0.1 or 0 for numbers, by rows.
        epochs: training epochs. Defaults, like the next three, to the choice of `skipway train` for this many rows.
        batch_size: most rows per training step; all steps have about as many.
        lr: learning rate; "auto" finds it with an LR range test.
        weight_decay: weight decay.
        random_state: seed of the initial weights, the order of the rows and the dropout.
        class_weight: weights of the classes in the loss: "balanced" for weights inverse to their frequencies, or a dict
            {class: weight}. Several labels per row can only be balanced. Defaults to equal weights.
        categorical: columns to read as categories, by name or position. Defaults, like the next two, to inferred kinds.
        numeric: columns to read as numbers.
        date: columns to read as dates.
        missing: further values that mean a missing value: `-999` in all columns, "size=0" in the column "size".
        columns: YAML file with the kind of each column, from `skipway check --output` or a run folder.
        device: device of the training: "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps". "auto" is the CPU, but
            an accelerator for tables of a million rows. Predictions are computed on the CPU.
        ensemble_with: "boosting" to blend with scikit-learn's gradient boosting if that helps on held-out rows.

    Attributes:
        classes_: class labels; for several labels per row, the indices 0, ..., K - 1 of the columns of y.
        network_: the trained network in float64. `network_.save(path)` writes a file for `skipway.load`.
        spec_: encoders of the columns.
        n_iter_: number of training epochs.
        ensemble_weight_: weight of boosting in the outputs, 0 for the network alone.

    >>> X = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> model = SkipClassifier(layers=1, width=8, epochs=2, random_state=0).fit(X, ["a", "a", "b", "b"])
    >>> model.predict_proba(X).shape
    (4, 2)
    """

    def __init__(
        self,
        layers: int = TABLE_NETWORK["layers"],
        width: int = TABLE_NETWORK["width"],
        dropout: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        lr: float | Literal["auto"] | None = None,
        weight_decay: float | None = None,
        random_state: Any = None,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        categorical: Sequence[str | int] | None = None,
        numeric: Sequence[str | int] | None = None,
        date: Sequence[str | int] | None = None,
        missing: Sequence[str | float] | None = None,
        columns: str | os.PathLike[str] | None = None,
        device: str = "auto",
        ensemble_with: Literal["boosting"] | None = None,
    ):
        training = (layers, width, dropout, epochs, batch_size, lr, weight_decay, random_state)
        super().__init__(*training, categorical, numeric, date, missing, columns, device, ensemble_with)
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the classifier.

        Args:
            X: features, an array or sparse matrix of shape (N, F), or a table of pandas, polars or pyarrow; NaN marks
                a missing value. Columns with the dtype `category` are categories, even if they hold numbers.
            y: class labels of shape (N,), or an indicator matrix of shape (N, K) with 1 for each label of a row, else
                0; the column names of a DataFrame become the names of the labels in `spec_`.
            sample_weight: (N,) weights of the rows in the loss; None for equal weights.

        Returns:
            The fitted estimator.

        Raises:
            InputError: `y` has fewer than two classes, or has several columns that are no indicators, or no column of
                `X` can be used, or an argument of the constructor is out of range.
            ValueError: `sample_weight` or `class_weight` cannot be used.
        """
        table, y = self._table(X, reset=True), to_pandas(y)
        weights = self._weights(sample_weight, len(table))
        if has_columns(y):
            return self._fit_labels(table, y, weights)
        y = read_target(y, len(table))
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                "cannot fit a classifier: expected at least two classes in y, got only one class, "
                f"{self.classes_[0]!r}. Add rows of another class."
            )
        names = tuple(str(c) for c in self.classes_)
        if len(set(names)) < len(names):
            names = tuple(f"{type(c).__name__} {c}" for c in self.classes_)
        if self.class_weight is not None:
            factors = compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=weights)
            weights = factors[codes] * (1.0 if weights is None else weights)
        return self._fit(self._spec(table, class_names=names), table, codes.astype(np.int64), weights)

    def _fit_labels(self, table: Table, y: Any, weights: np.ndarray | None) -> Self:
        """Fit to an indicator matrix."""
        if self.class_weight not in (None, "balanced"):
            raise InputError(
                f"cannot fit several labels per row: expected class_weight to be 'balanced' or None, got "
                f"{printable(str(self.class_weight))[:60]}. Pass one of these."
            )
        names, labels = column_names(y), read_labels(y, len(table))
        self.classes_, self._label_dtype = np.arange(labels.shape[1]), labels.dtype
        balanced = self.class_weight == "balanced"
        factors = positive_weights_for(labels.sum(axis=0).astype(int).tolist(), len(labels)) if balanced else None
        spec = self._spec(table, task="multilabel", class_names=names)
        return self._fit(spec, table, labels.astype(np.float32), weights, factors)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (N, K), in the order of `classes_`; those of labels are independent."""
        return self._values(X)

    def predict(self, X: Any) -> np.ndarray:
        """Return the most likely class of each row, of shape (N,), or an indicator matrix (N, K) of its labels."""
        values = self._values(X)
        if self.spec_.task == "multilabel":
            return (values >= np.array(self.spec_.thresholds)).astype(self._label_dtype)
        return self.classes_[values.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class SkipRegressor(RegressorMixin, _SkipEstimator):
    """A residual network that predicts a number, or several numbers, for each row of a table.

    Args:
        layers, width, dropout, epochs, batch_size, lr, weight_decay, random_state, categorical, numeric, date, missing,
            columns, device, ensemble_with: see `SkipClassifier`.

    Attributes:
        network_, spec_, n_iter_, ensemble_weight_: see `SkipClassifier`.

    >>> X = np.array([[0.0], [0.1], [0.9], [1.0]])
    >>> SkipRegressor(layers=1, width=8, epochs=2, random_state=0).fit(X, X[:, 0]).predict(X).shape
    (4,)
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the regressor.

        Args:
            X: features, as for `SkipClassifier.fit`.
            y: finite targets of shape (N,), or (N, T) for several targets; the column names of a DataFrame become the
                names of the targets in `spec_`.
            sample_weight: (N,) weights of the rows in the loss; None for equal weights.

        Returns:
            The fitted estimator.

        Raises:
            InputError: `y` overflows when averaged, or no column of `X` can be used, or an argument of the constructor
                is out of range.
            ValueError: `sample_weight` cannot be used.
        """
        table, y = self._table(X, reset=True), to_pandas(y)
        weights = self._weights(sample_weight, len(table))
        names = column_names(y) if has_columns(y) else ("y",)
        y = read_target(y, len(table), numeric=True).reshape(len(table), len(names))
        refuse_overflow(y)
        center, scale = target_units(y)
        units = {"target_mean": center, "target_std": scale}
        spec = self._spec(table, task="regression", target_names=names, **units)
        return self._fit(spec, table, spec.standardized(y), weights)

    def predict(self, X: Any) -> np.ndarray:
        """Return the predicted values, an array of shape (N,), or (N, T) for several targets."""
        values: np.ndarray = self._values(X)
        return values[:, 0] if values.shape[1] == 1 else values

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _plain(value: Any) -> Any:
    """Return a number of numpy, as from a parameter search, as one of Python."""
    return value.item() if isinstance(value, np.generic) else value
