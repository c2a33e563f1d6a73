"""Run: what a training returns, and CrossValidation: what the training of all folds returns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.models.load_model import load
from skipway.models.network import Network

__all__ = ["CrossValidation", "Run"]


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, the values of its metrics.json, and a row of results.csv per epoch."""

    path: Path
    metrics: dict[str, Any]
    history: list[dict[str, Any]]

    @property
    def best(self) -> Path:
        """The weights of the best epoch, which `skipway.load` reads."""
        return self.path / "weights" / "best.safetensors"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    def network(self) -> Network:
        """Return the trained network."""
        return load(self.best)


@dataclass(frozen=True)
class CrossValidation(Run):
    """A finished cross-validation: its folder, the values of its folds.json, a row of folds.csv per fold, its runs.

    It has no weights of its own: those of each fold are in `runs`.
    """

    runs: tuple[Run, ...]
