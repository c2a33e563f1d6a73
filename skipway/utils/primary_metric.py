"""Primary metric of each task: its name in files, its title, and how it is written."""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["PRIMARY_METRICS", "PRIMARY_METRIC_OF", "PrimaryMetric", "primary_metric_in"]


@dataclass(frozen=True)
class PrimaryMetric:
    """A metric to maximize.

    Attributes:
        name: part of the names in metrics.json and results.csv, such as val_NAME.
        title: name in sentences.
        short: name in the epoch table.
        is_share: True for a value in [0, 1] that is written as a percentage.
        train_name: name of the metric on training batches, a mean over samples.
        train_title: its name in sentences.
    """

    name: str
    title: str
    short: str
    is_share: bool
    train_name: str
    train_title: str

    @property
    def heading(self) -> str:
        """Title as the first word of a heading."""
        return self.title.capitalize() if self.title.islower() else self.title

    def text(self, value: float, digits: int) -> str:
        """Format a value: a share as a percentage with `digits` decimals, another one with two decimals more."""
        return f"{value:.{digits}%}" if self.is_share else f"{value:.{digits + 2}f}"


PRIMARY_METRICS = {
    metric.name: metric
    for metric in (
        PrimaryMetric("accuracy", "accuracy", "acc", True, "accuracy", "accuracy"),
        # A mean average precision is no mean over samples, so training batches have another metric.
        PrimaryMetric("map", "mAP", "mAP", True, "lrap", "ranking precision"),
        PrimaryMetric("r2", "R2", "r2", False, "r2", "R2"),
    )
}


PRIMARY_METRIC_OF = {"classification": "accuracy", "multilabel": "map", "regression": "r2"}


def primary_metric_in(names: Iterable[str], prefix: str = "val_") -> PrimaryMetric:
    """Return the metric whose name with `prefix` is among `names`, by default accuracy.

    >>> primary_metric_in({"epoch": 1, "val_map": 0.9}).title
    'mAP'
    """
    present = set(names)
    found = [metric for name, metric in PRIMARY_METRICS.items() if f"{prefix}{name}" in present]
    return found[0] if found else PRIMARY_METRICS["accuracy"]
