"""DataModule: the data of a run, images or a table, behind one interface."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from skipway.data.sources.image_source import Source
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.runs.defaults import TargetCounts
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.open_recipe_data import open_recipe_data
from skipway.runs.recipe import Recipe
from skipway.runs.table_datamodule import TableDataModule
from skipway.training.checkpoint import Checkpoint
from skipway.training.losses import Task
from skipway.training.metrics import Scores
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

__all__ = ["DataModule", "open_datamodule", "refuse_changed_data"]


class DataModule(Protocol):
    """Data of one run: call `prepare` first, then `spec` and `network`, then `setup`, then `batches`.

    Attributes:
        recipe: options of the run.
        noun: name of the samples.
        name: name of the dataset.
        fingerprint: hash of samples, targets and splits.
        model: name and options of the network of a new run.
    """

    recipe: Recipe
    noun: Literal["images", "rows"]
    name: str
    fingerprint: str
    model: tuple[str, dict[str, Any]]

    @property
    def time_sets_epochs(self) -> bool:
        """True if the time limit sets the number of epochs by default; for tables the number of rows does."""

    @property
    def rows_choose_epochs(self) -> bool:
        """True if a test on some of the training samples can choose the number of epochs; never for images."""

    @property
    def epochs(self) -> int:
        """Default number of passes over the training samples."""

    def prepare(self, console: Console, stop: StopFlag, *, keep_samples: bool = True) -> None:
        """Read every sample, and raise InputError for data that cannot be trained on.

        With `keep_samples` False, samples are read again when they are used, because few of them will be.
        """

    def default_batch_size(self) -> int:
        """Return the batch size of the recipe, or a default by the number of training samples."""

    def count(self, split: str) -> int:
        """Return the number of samples in a split."""

    def name_of(self, sample: int, /) -> str:
        """Return the name of a sample: its file, or the row of its table."""

    def target_counts(self) -> TargetCounts:
        """Return the task, and the number of training samples in total and of each class or label."""

    def spec(self, earlier: dict[str, Any] | None) -> Any:
        """Return the Spec of the inputs: from the training samples, or `earlier`, that of the run to resume."""

    def network(self, console: Console) -> tuple[Network, bool]:
        """Return the initial network of a new run, and True if it has pretrained weights."""

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """Configure the batches; `earlier` is the state of the run to resume, or None."""

    def batches(self, split: str, *, train: bool = False) -> Any:
        """Return the batches of a split, shuffled and augmented if `train` is set."""

    def fit_first_layer(self, network: Network, batches: Any) -> None:
        """Fit a first layer that depends on the training samples, before the first step."""

    def task(self, settings: Settings) -> Task:
        """Return the task: classification or regression."""

    def describe_changes(self, folder: Path) -> str:
        """Describe the changes since the run in `folder` read its samples, in one line."""

    def describe(self) -> dict[str, Any]:
        """Return the value of "data" in metrics.json."""

    def summary_lines(self) -> list[str]:
        """Return the console lines about the data."""

    def write_data(self, folder: Path, batches: Any) -> None:
        """Write splits.csv, skipped.csv and further files about the data."""

    def write_evaluation(self, folder: Path, scores: Scores, split: str) -> None:
        """Write predictions.csv and further results of the best weights on a split."""

    def write_submission(self, folder: Path) -> list[str]:
        """Write the predictions of test samples without a target, and return the console lines about them."""

    def size_growth(self, epochs: int) -> list[float]:
        """Return the growth of the samples in each epoch, from 0 at the first size to 1 at the full size."""

    def describe_augmentation(self) -> str:
        """Describe the augmentation of training samples in words."""

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return the values about augmentation that a checkpoint stores."""

    def extra_metrics(self) -> dict[str, Any]:
        """Return additional values for metrics.json."""


def open_datamodule(
    recipe: Recipe,
    *,
    new: bool,
    epochs_given: bool,
    transform: Callable[[Tensor], Tensor] | None = None,
    earlier_spec: dict[str, Any] | None = None,
) -> DataModule:
    """Open the dataset that `recipe.data` names.

    Args:
        recipe: options of the run.
        new: the run has no checkpoint yet, so that its network is selected by the data.
        epochs_given: the user set the number of epochs; if False, a new run gets a default by the data.
        transform: transform of training images (B, C, H, W), applied after the recipe's augmentation.
        earlier_spec: Spec of the run to resume or to read again, by which its images were decoded.

    Raises:
        InputError: the dataset does not exist, or an option does not apply to it.
    """
    assert recipe.data is not None
    data = open_recipe_data(recipe)
    if isinstance(data, Source):
        images = ImageDataModule(data, recipe, new, transform, earlier_spec, epochs_given)
        if new and not epochs_given:
            images.recipe = replace(images.recipe, epochs=images.epochs)
        return images
    if transform is not None:
        raise InputError(
            f"cannot use transform with {printable(recipe.data)}: expected images, got a table. Drop transform."
        )
    datamodule = TableDataModule(data, recipe, epochs_are_open=new and not epochs_given)
    if new and not epochs_given:
        datamodule.recipe = replace(recipe, epochs=datamodule.epochs)
    return datamodule


def refuse_changed_data(
    datamodule: DataModule, checkpoint: Checkpoint | None, folder: Path, *, allow: bool, console: Console
) -> None:
    """Raise InputError if the data has changed since the checkpoint, unless that is allowed.

    Args:
        datamodule: prepared data.
        checkpoint: checkpoint of the run to resume, or None.
        folder: run folder.
        allow: print a warning instead of raising an error.
        console: console for the warning.
    """
    noun = datamodule.noun
    if checkpoint is None or checkpoint.state["fingerprint"] == datamodule.fingerprint:
        return
    # An earlier version may have inferred other kinds of columns from the same rows.
    if noun == "rows" and datamodule.recipe.columns is None:
        with suppress(InputError):
            datamodule.spec(checkpoint.state["spec"])
        if checkpoint.state["fingerprint"] == datamodule.fingerprint:
            return
    changes = datamodule.describe_changes(folder)
    if not allow:
        raise InputError(
            f"cannot resume {printable(folder)}: expected the same {noun} in {printable(datamodule.recipe.data)}, got "
            f"changed ones ({changes}). Restore them, or add --allow-changed-data."
        )
    console.print(f"  warning: the {noun} have changed ({changes}): not bit-identical to an uninterrupted run")
