"""The network of a table: its default size by the training rows, the pieces of its numbers, and its epochs.

Sources: see `table_layers` and `epoch_finder`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from skipway.data.folds import groups_of_copies
from skipway.data.output_spec import TaskName
from skipway.data.strata import strata_of
from skipway.data.stratified_split import holdout_mask
from skipway.data.tables.loader import RowBatches
from skipway.data.tables.row_splits import HELD_OUT_AGAIN
from skipway.data.tables.table_spec import TableSpec
from skipway.model_factory import create_model
from skipway.models.network import Network
from skipway.models.table_layers import fit_pieces, quantile_edges
from skipway.runs.table_defaults import most_pieces, most_table_epochs
from skipway.training.epoch_finder import FoundEpochs, find_epochs
from skipway.training.losses import Task
from skipway.training.trainer import Settings, Trainer

__all__ = ["FEWEST_ROWS", "epochs_for_rows", "hold_out", "table_network"]

FEWEST_ROWS = 50  # training rows from which a part of them can choose the epochs
_SHARE_OF_TIME = 0.25  # of the time limit of a run, for the test; training takes up to 2.5 times as long
_MOST_FOR_EDGES = 100_000  # rows whose quantiles are the edges of the pieces


def table_network(spec: TableSpec, x: np.ndarray, name: str, options: dict[str, Any]) -> Network:
    """Create a network for rows of a table, with the pieces of the numbers at the quantiles of the training rows.

    Args:
        spec: encoders of the columns.
        x: (N, F + K) encoded training rows.
        name: name of the network.
        options: options of the network; `pieces` is the most of each number, or "auto" for a choice by the rows.
    """
    options = {**options, "in_features": spec.input_shape[0], "categories": spec.categories}
    numbers = spec.input_shape[0] - len(spec.categories)
    most = options.pop("pieces", 0)
    if most == "auto":
        most = most_pieces(len(x), numbers, spec.task)
    rows = torch.from_numpy(x[:: -(-len(x) // _MOST_FOR_EDGES)])
    edges = quantile_edges(rows[:, :numbers], most)
    if any(len(e) for e in edges):
        options["pieces"] = tuple(max(0, len(e) - 1) for e in edges)
    network = create_model(name, spec.num_classes, **options)
    network.spec = spec
    fit_pieces(network, edges, rows)
    return network


def hold_out(task: TaskName, x: np.ndarray, y: np.ndarray, seed: int) -> np.ndarray:
    """Return (N,) True for the rows that the test of the epochs holds out: a stratified fifth.

    Copies stay together, unless most rows are copies of others.

    Args:
        task: task of the targets.
        x: (N, F + K) encoded rows.
        y: targets.
        seed: seed of the choice.
    """
    rows = np.arange(len(x))
    strata = strata_of(task, y, rows)
    copies = groups_of_copies(rows, strata, [row.tobytes().hex() for row in x], least=2)
    return holdout_mask(rows, strata, copies, fraction=HELD_OUT_AGAIN, seed=seed)


def epochs_for_rows(
    network: Network,
    settings: Settings,
    task: Task,
    rows: np.ndarray,
    held_out: np.ndarray,
    *,
    batches: Callable[[np.ndarray, int | None], RowBatches],
    poll: Callable[[], None] = lambda: None,
) -> FoundEpochs:
    """Find the number of epochs of a run by a test on a part of its training rows; see `find_epochs`.

    Args:
        network: the initial network, which is changed: use a copy.
        settings: settings of the run.
        task: task of the run.
        rows: (N,) training rows.
        held_out: (N,) True for the rows to hold out.
        batches: returns the batches of rows, shuffled if a seed is given.
        poll: called before each batch, to raise an error if a stop was requested.
    """
    test = replace(settings, ema=None, grad_accum_steps=1, patience=None, time_limit=None)
    assert network.spec is not None
    most = most_table_epochs(len(rows), network.spec.task)
    seconds = math.inf if settings.time_limit is None else _SHARE_OF_TIME * settings.time_limit
    parts = batches(rows[~held_out], settings.seed), batches(rows[held_out], None)
    return find_epochs(Trainer(network, test, str, task), *parts, most, seconds=seconds, poll=poll)
