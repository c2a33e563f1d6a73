"""Run and CrossValidation: the results that `skipway.train` returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.models.load_model import load
from skipway.models.network import Network

__all__ = ["CrossValidation", "Run"]


@dataclass(frozen=True)
class Run:
    """Finished run.

    Attributes:
        path: run folder.
        metrics: values of metrics.json.
        history: rows of results.csv, one per epoch.

    >>> run = Run(Path("runs/digits-resnet9"), metrics={"val_accuracy": 0.99}, history=[])
    >>> run.best.as_posix()
    'runs/digits-resnet9/weights/best.safetensors'
    """

    path: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def best(self) -> Path:
        """Path of the weights of the best epoch, for `skipway.load`."""
        return self.path / "weights" / "best.safetensors"

    @property
    def report(self) -> Path:
        """Path of the HTML report."""
        return self.path / "report.html"

    def network(self) -> Network:
        """Load the network with the weights of the best epoch."""
        return load(self.best)


@dataclass(frozen=True)
class CrossValidation(Run):
    """Finished cross-validation, whose weights are those of its folds.

    Attributes:
        path: folder of the cross-validation.
        metrics: values of folds.json.
        history: rows of folds.csv, one per fold.
        runs: runs of the folds in order.
    """

    runs: tuple[Run, ...]
