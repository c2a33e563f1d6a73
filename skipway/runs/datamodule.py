"""Job: what a run needs to know of its data, be it pictures or a table; and which of them DATA is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from skipway.data.tables.dataset import open_table_source
from skipway.errors import InputError, printable
from skipway.models.network import Network
from skipway.runs.image_datamodule import ImageDataModule
from skipway.runs.recipe import Recipe
from skipway.runs.table_datamodule import TableDataModule
from skipway.training.losses import Task
from skipway.training.metrics import Scores
from skipway.training.trainer import Settings
from skipway.utils.console import Console
from skipway.utils.signals import StopFlag

__all__ = ["DataModule", "open_datamodule"]


class DataModule(Protocol):
    """The data of one run. `prepare` comes first, then `spec` and `network`, then `setup`, then the feeds."""

    recipe: Recipe
    noun: str  # what its samples are called
    name: str
    fingerprint: str  # the fingerprint of samples, targets and splits
    model: tuple[str, dict[str, Any]]  # the network of a new run, and its options

    @property
    def epochs(self) -> int:
        """Passes over the training samples, where nobody said how many."""

    def prepare(self, console: Console, stop: StopFlag) -> None:
        """Read every sample; refuse what cannot be trained on."""

    def usual_batch(self) -> int:
        """Samples in a step, as the recipe or their number says."""

    def count(self, split: str) -> int:
        """How many samples a split has."""

    def name_of(self, sample: int, /) -> str:
        """What the user knows a sample by."""

    def class_counts(self) -> list[int]:
        """Training samples of each class; nothing for regression."""

    def spec(self, earlier: dict[str, Any] | None) -> Any:
        """How samples become inputs: as the run that goes on has it, or by the training samples alone."""

    def network(self, console: Console) -> tuple[Network, bool]:
        """What a new run begins with, and whether it was trained already."""

    def setup(self, network: Network, batch_size: int, device: str, earlier: dict[str, Any] | None) -> None:
        """What the feeds are made with from here on; `earlier` is the state of a run that goes on."""

    def feed(self, split: str, *, train: bool = False) -> Any:
        """The samples of a split in batches: as they are, or as they are trained on."""

    def fit_first_layer(self, network: Network, feed: Any) -> None:
        """Fit what is fitted to the training samples before the first step."""

    def task(self, settings: Settings) -> Task:
        """What is learnt."""

    def changed(self, folder: Path) -> str:
        """What differs from the samples that the run of `folder` had, in one line."""

    def describe(self) -> dict[str, Any]:
        """What metrics.json has under "data"."""

    def lines(self) -> list[str]:
        """What is said of the data before training."""

    def write_data(self, folder: Path, feed: Any) -> None:
        """splits.csv, skipped.csv, and what else shows the data."""

    def write_judgement(self, folder: Path, scores: Scores, split: str) -> None:
        """predictions.csv, and what else shows how the best weights did on a split."""

    def augmentation(self) -> str:
        """What is done to training samples, in words."""

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps of how samples are changed."""

    def extra_metrics(self) -> dict[str, Any]:
        """What else metrics.json has."""


def open_datamodule(
    recipe: Recipe, *, new: bool, epochs_told: bool, transform: Callable[[Tensor], Tensor] | None = None
) -> DataModule:
    """What `recipe.data` is; where nobody told the epochs of a new run, its recipe has those that suit the data.

    `transform` is what pictures go through beside what the recipe says.
    """
    assert recipe.data is not None
    tables = open_table_source(recipe.data, recipe.target, recipe.task, recipe.ignore)
    if tables is None:
        if recipe.target is not None:
            raise InputError(
                f"--target is for tables, but {printable(recipe.data)} is none; give a .csv, .tsv or .parquet file, or "
                "a folder with train.csv and val.csv"
            )
        return ImageDataModule(recipe, new, transform)
    if transform is not None:
        raise InputError(f"a transform is for pictures, but {printable(recipe.data)} is a table; leave it out")
    datamodule = TableDataModule(tables, recipe)
    if new and not epochs_told:
        datamodule.recipe = replace(recipe, epochs=datamodule.epochs)
    return datamodule
