"""What predict and evaluate give: one Prediction for each input, figures for a set, and both as tables."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skipway.errors import printable
from skipway.runs.run_folder import write_table

__all__ = ["Evaluation", "RegressionEvaluation", "Prediction", "write_predictions"]

_SAID = ("accuracy", "loss")


@dataclass(frozen=True)
class Prediction:
    """One input and its likeliest classes with their probabilities, or its number, or why there is neither."""

    source: str
    top: tuple[tuple[str, float], ...]
    reason: str = ""
    value: float | None = None
    noun: str = "picture"

    @property
    def usable(self) -> bool:
        """Whether there is an answer."""
        return bool(self.top) or self.value is not None

    def __str__(self) -> str:
        said = f"{self.value:.6g}" if self.value is not None else ", ".join(f"{n} {share:.1%}" for n, share in self.top)
        return printable(f"{self.source}: {said if self.usable else f'error: {self.reason}'}")


@dataclass(frozen=True)
class Evaluation:
    """How a network did on one split: figures, and a row per class; prints as a table."""

    split: str
    count: int
    accuracy: float
    loss: float
    classes: list[dict[str, Any]]
    skipped: int
    figures: dict[str, float] = field(default_factory=dict)
    noun: str = "pictures"

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("class", self.noun, "precision", "recall", "f1")]
        rows += [
            (printable(r["class"]), f"{r['count']:,}", *(f"{r[k]:.3f}" for k in ("precision", "recall", "f1")))
            for r in self.classes
        ]
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        others = [f"{name.replace('_', ' ')} {v:.4f}" for name, v in self.figures.items() if name not in _SAID]
        left = f" ({self.skipped:,} unreadable left out)" if self.skipped else ""
        return "\n".join(
            [
                f"{self.split}: accuracy {self.accuracy:.2%}, loss {self.loss:.4f} on {self.count:,} {self.noun}{left}",
                *([", ".join(others)] if others else []),
                *(
                    "  ".join([r[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(r[1:], widths[1:], strict=True))])
                    for r in rows
                ),
            ]
        )


@dataclass(frozen=True)
class RegressionEvaluation:
    """How a network that predicts a number did on one split; prints as a line."""

    split: str
    count: int
    r2: float
    mae: float
    rmse: float
    loss: float
    skipped: int

    def __str__(self) -> str:
        left = f" ({self.skipped:,} without a target left out)" if self.skipped else ""
        return (
            f"{self.split}: R2 {self.r2:.4f}, mean absolute error {self.mae:.6g}, root mean squared error "
            f"{self.rmse:.6g} on {self.count:,} rows{left}"
        )


def write_predictions(path: Path, rows: Sequence[Prediction], top: int) -> None:
    """The rows as CSV: file, status, label, probability, label_2, ..., reason; or predicted in place of the labels.

    Of tables the first column is called row.
    """
    what = "row" if any(r.noun == "row" for r in rows) else "file"
    if any(r.value is not None for r in rows):
        cells = ((r.source, *(("ok", r.value) if r.usable else ("error", "")), r.reason) for r in rows)
        write_table(path, (what, "status", "predicted", "reason"), cells)
        return
    names = ["label", "probability"] + [f"{kind}_{k}" for k in range(2, top + 1) for kind in ("label", "probability")]
    write_table(
        path,
        (what, "status", *names, "reason"),
        (
            (
                r.source,
                "ok" if r.top else "error",
                *_filled([cell for name, share in r.top for cell in (name, round(share, 6))], 2 * top),
                r.reason,
            )
            for r in rows
        ),
    )


def _filled(cells: list[Any], length: int) -> list[Any]:
    return cells + [""] * (length - len(cells))
