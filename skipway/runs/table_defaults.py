"""Defaults for tables: the network, and what depends on the number of training rows. See benchmarks/tables.py."""

from dataclasses import dataclass, replace
from typing import Any

from skipway.data.output_spec import TaskName

__all__ = [
    "TABLE_NETWORK",
    "most_pieces",
    "most_table_epochs",
    "table_batch_size",
    "table_epochs",
    "table_network_options",
]

# Tables are small and noisy compared with images.
TABLE_NETWORK: dict[str, Any] = {"layers": 1, "width": 64, "pieces": "auto"}


@dataclass(frozen=True)
class _TargetDefaults:
    """Defaults that depend on the targets and the number of training rows.

    Attributes:
        members: members of the ensemble.
        dropout: dropout rate.
        epochs: factor of the most epochs of a test.
        rows_per_piece: fewest training rows for each piece of a number.
        pieces: most pieces of each number.
        all_pieces: most pieces of all numbers.
    """

    members: int
    dropout: float
    epochs: float
    rows_per_piece: int
    pieces: int
    all_pieces: int


_REGRESSION = _TargetDefaults(members=2, dropout=0.0, epochs=1.0, rows_per_piece=20, pieces=128, all_pieces=2048)
_REGRESSION_OF_FEW_ROWS = replace(_REGRESSION, members=4, dropout=0.1, epochs=1.1)
# Classes and labels overfit earlier, in particular with many numbers.
_CLASSES = _TargetDefaults(members=4, dropout=0.3, epochs=0.85, rows_per_piece=40, pieces=24, all_pieces=160)
_FEW_ROWS = 3_000
_FEWEST_PIECES = 4
_ROWS_OF_MANY_PIECES, _FEW_PIECES = 2_000, 32  # fewer rows have fewer pieces
_MOST_NUMBERS = 256  # more numbers have no pieces
_STEPS = 600


def _defaults_for(count: int, task: TaskName) -> _TargetDefaults:
    if task != "regression":
        return _CLASSES
    return _REGRESSION_OF_FEW_ROWS if count < _FEW_ROWS else _REGRESSION


def table_network_options(count: int, batch_size: int, task: TaskName) -> dict[str, Any]:
    """Return the options of the default network for `count` training rows in batches of `batch_size`."""
    defaults = _defaults_for(count, task)
    members = min(defaults.members, max(min(count, batch_size) // 4, 1))  # with fewer rows of each, norms vary too much
    return {**TABLE_NETWORK, "members": members, "dropout": defaults.dropout}


def table_batch_size(count: int) -> int:
    """Return the default batch size for `count` training rows."""
    sizes = {500: 128, 1_000: 256, 20_000: 512}
    return next((size for rows, size in sizes.items() if count < rows), 1024)


def table_epochs(count: int, batch_size: int) -> int:
    """Return the default epochs for `count` training rows, if no test on held-out rows finds them."""
    return min(200, max(20, round(_STEPS * batch_size / count)))


def most_table_epochs(count: int, task: TaskName) -> int:
    """Return the most epochs that a test tries for `count` training rows; it ends earlier if they are too many."""
    passes = 15_000 + min(72 * count, 160_000 + 8 * count)  # rows in all epochs
    return max(5, round(passes * _defaults_for(count, task).epochs / count))


def most_pieces(count: int, numbers: int, task: TaskName) -> int:
    """Return the most pieces of each of the `numbers` of a table with `count` training rows, or 0 for none."""
    defaults = _defaults_for(count, task)
    of_each = min(defaults.pieces, count // defaults.rows_per_piece)
    if count < _ROWS_OF_MANY_PIECES:
        of_each = min(of_each, _FEW_PIECES)
    most = max(_FEWEST_PIECES, min(of_each, defaults.all_pieces // max(numbers, 1)))
    return most if numbers <= _MOST_NUMBERS else 0
