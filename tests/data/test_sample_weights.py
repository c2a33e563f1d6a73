import numpy as np
import pytest

from skipway.data.sample_weights import loss_weights, read_weights, refuse_zero_weights
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError


def table(cells):
    column = cells if isinstance(cells, np.ndarray) else TextColumn.of(cells)
    return Table("t.csv", {"w": column}, lambda i: f"t.csv:{i + 2}")


def test_weights_are_numbers_of_at_least_zero():
    assert read_weights(table(["0", "2.5", "1e2"]), "w").tolist() == [0, 2.5, 100]


@pytest.mark.parametrize(
    "cells, got",
    [
        (["1", "-1"], r"'-1' in t\.csv:3"),
        (["1", ""], r"no value in t\.csv:3"),
        (["inf", "1"], r"'inf' in t\.csv:2"),
        (["1", "nan"], r"'nan' in t\.csv:3"),
        (["1", "heavy"], r"'heavy' in t\.csv:3"),
        (np.array([1.0, np.nan]), r"no value in t\.csv:3"),
        (np.array([1.0, -2.0]), r"-2 in t\.csv:3"),
        (np.array([1.0, np.inf]), r"inf in t\.csv:3"),
    ],
)
def test_other_cells_are_refused_with_their_rows(cells, got):
    message = f"cannot use --weight-column w: expected a finite number of at least 0 in every row, got {got}"
    with pytest.raises(InputError, match=message):
        read_weights(table(cells), "w")


def test_a_split_without_weight_is_refused_and_equal_weights_are_none():
    splits = {"train": np.array([0, 1]), "val": np.array([2])}
    with pytest.raises(InputError, match="cannot use the sample weights of t: expected a positive weight in the val"):
        refuse_zero_weights(np.array([1.0, 0.0, 0.0]), splits, "t")
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    assert refuse_zero_weights(weights, splits, "t") is weights
    assert refuse_zero_weights(np.array([2.0, 2.0, 2.0, 5.0]), splits, "t") is None
    assert refuse_zero_weights(None, splits, "t") is None
    assert loss_weights(None, splits["train"]) is None
    assert loss_weights(weights, splits["train"])[:2].mean() == 1
