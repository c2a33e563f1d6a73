"""DataModule: the data of a run, images or a table, as training needs it; and which of them DATA is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from skipway.data.tables.dataset import open_table_source
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.runs.image_datamodule import ImageDataModule
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
    """The data of one run. `prepare` comes first, then `spec` and `network`, then `setup`, then the batches."""

    recipe: Recipe
    noun: Literal["images", "rows"]  # for its samples
    name: str
    fingerprint: str  # of samples, targets and splits
    model: tuple[str, dict[str, Any]]  # the network of a new run, and its options

    @property
    def time_sets_epochs(self) -> bool:
        """Whether the time, or its limit, sets the epochs if the user did not: of tables, the rows do."""

    @property
    def epochs(self) -> int:
        """Passes over the training samples by default."""

    def prepare(self, console: Console, stop: StopFlag) -> None:
        """Read every sample; refuse what cannot be trained on."""

    def default_batch_size(self) -> int:
        """Return the samples in a batch, by the recipe or by the number of training samples."""

    def count(self, split: str) -> int:
        """Return the number of samples in a split."""

    def name_of(self, sample: int, /) -> str:
        """Return the name that the user has for a sample."""

    def class_counts(self) -> list[int]:
        """Return the training samples of each class; nothing for regression."""

    def spec(self, earlier: dict[str, Any] | None) -> Any:
        """Return how samples become inputs: by the training samples, or as `earlier`, the run to resume, has it."""

    def network(self, console: Console) -> tuple[Network, bool]:
        """Return the network that a new run begins with, and whether it was trained already."""

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """Set what batches are made with from here on; `earlier` is the state of the run to resume."""

    def batches(self, split: str, *, train: bool = False) -> Any:
        """Return the samples of a split in batches: as they are, or shuffled and augmented to train on."""

    def fit_first_layer(self, network: Network, batches: Any) -> None:
        """Fit what is fitted to the training samples before the first step."""

    def task(self, settings: Settings) -> Task:
        """Return what is learned."""

    def describe_changes(self, folder: Path) -> str:
        """Return what differs from the samples that the run of `folder` had, in one line."""

    def describe(self) -> dict[str, Any]:
        """Return the value of "data" in metrics.json."""

    def summary_lines(self) -> list[str]:
        """Return the lines about the data that are printed before training."""

    def write_data(self, folder: Path, batches: Any) -> None:
        """Write splits.csv, skipped.csv, and what else shows the data."""

    def write_evaluation(self, folder: Path, scores: Scores, split: str) -> None:
        """Write predictions.csv, and what else shows how the best weights did on a split."""

    def size_growth(self, epochs: int) -> list[float]:
        """Return for each of `epochs` how far samples have grown to their full size, from 0 to 1."""

    def describe_augmentation(self) -> str:
        """Return in words what is done to training samples."""

    def checkpoint_facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of how samples are augmented."""

    def extra_metrics(self) -> dict[str, Any]:
        """Return what else metrics.json has."""


def open_datamodule(
    recipe: Recipe,
    *,
    new: bool,
    epochs_given: bool,
    transform: Callable[[Tensor], Tensor] | None = None,
    earlier_spec: dict[str, Any] | None = None,
) -> DataModule:
    """Return the data that `recipe.data` names.

    Args:
        recipe: options of the run.
        new: whether the run has no checkpoint yet, so that its network is still to be chosen.
        epochs_given: whether the user chose the epochs; if not, a new run gets those that suit the data.
        transform: applied to training images after the recipe's augmentation.
        earlier_spec: the Spec of the run to resume or to read again, by which its images were decoded.

    Raises:
        InputError: there is no such data, or an option does not fit it.
    """
    assert recipe.data is not None
    tables = open_table_source(recipe.data, recipe.target, recipe.task, recipe.ignore)
    if tables is None:
        if recipe.target is not None:
            raise InputError(
                f"--target is for tables, but {printable(recipe.data)} is none; give a .csv, .tsv or .parquet file, or "
                "a folder with train.csv and val.csv"
            )
        images = ImageDataModule(recipe, new, transform, earlier_spec, epochs_given)
        if new and not epochs_given:
            images.recipe = replace(images.recipe, epochs=images.epochs)
        return images
    if transform is not None:
        raise InputError(f"a transform is for images, but {printable(recipe.data)} is a table; leave it out")
    datamodule = TableDataModule(tables, recipe)
    if new and not epochs_given:
        datamodule.recipe = replace(recipe, epochs=datamodule.epochs)
    return datamodule


def refuse_changed_data(
    datamodule: DataModule, checkpoint: Checkpoint | None, folder: Path, *, allow: bool, console: Console
) -> None:
    """Raise InputError if the data is not that of the checkpoint, unless that is allowed.

    Args:
        datamodule: prepared.
        checkpoint: of the run to resume, or None.
        folder: the run's.
        allow: to go on with changed data, which is printed.
    """
    noun = datamodule.noun
    if checkpoint is None or checkpoint.state["fingerprint"] == datamodule.fingerprint:
        return
    changes = datamodule.describe_changes(folder)
    if not allow:
        raise InputError(
            f"the {noun} of {printable(datamodule.recipe.data)} are not those of before ({changes}); put them back, or "
            "go on with --allow-changed-data, no longer exactly"
        )
    console.print(f"  the {noun} have changed ({changes}): no longer to the bit as without a stop")
