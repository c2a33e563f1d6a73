"""The number of epochs of a table: found on some of the training rows, which are like the validation rows."""

import io
import re

import numpy as np
import pytest
import yaml
from table_files import homes, written

import skipway as sw
from skipway.data.column_roles import ColumnRoles
from skipway.data.sources.read_table import frame_table
from skipway.data.tables.dataset import build_table_dataset
from skipway.data.tables.table_source import TableSource
from skipway.runs.table_defaults import most_pieces, most_table_epochs, table_batch_size, table_network_options
from skipway.utils.console import Console


def _train(path, tmp_path, **options):
    text = io.StringIO()
    run = sw.train(str(path), target="price", output=str(tmp_path / "runs"), console=Console(stream=text), **options)
    return run, text.getvalue()


def _source(frame, roles) -> TableSource:
    return TableSource("t", {"train": frame_table(frame)}, roles)


@pytest.fixture(scope="module")
def prices(tmp_path_factory):
    return written(tmp_path_factory.mktemp("table") / "homes.csv", homes(200))


def test_the_test_sets_the_epochs_and_says_so(prices, tmp_path):
    run, text = _train(prices, tmp_path)
    epochs = run.metrics["epochs"]
    assert "epochs by a test on a fifth of the training rows" in text
    assert re.search(rf"{epochs} epochs: 0.8 of those with the lowest loss on a fifth of .* in a test of \d+", text)
    assert yaml.safe_load((run.path / "config.yaml").read_text())["epochs"] == epochs
    again, _ = _train(prices, tmp_path, seed=0)
    assert again.metrics["val_r2"] == run.metrics["val_r2"]


@pytest.mark.parametrize("options", [{"epochs": 2}, {"patience": 3, "epochs": 3}])
def test_set_epochs_are_not_tested(prices, tmp_path, options):
    assert "by a test" not in _train(prices, tmp_path, **options)[1]


def test_few_rows_have_default_epochs(tmp_path):
    assert "by a test" not in _train(written(tmp_path / "few.csv", homes(40)), tmp_path)[1]


def test_whole_groups_are_held_out_of_the_training_rows(tmp_path):
    frame = homes(150).assign(street=np.arange(150) // 5)
    rows = build_table_dataset(
        _source(frame, ColumnRoles(target=("price",), group_column="street")), 0.2, 0, hold_out_again=True
    )
    train = rows.splits["train"]
    held_out = frame["street"].to_numpy()[train[rows.held_out]]
    assert 0.1 < rows.held_out.mean() < 0.3
    assert not set(held_out) & set(frame["street"].to_numpy()[train[~rows.held_out]])


def test_the_last_rows_are_held_out_if_the_split_is_by_time(tmp_path):
    frame = homes(150).assign(day=np.random.default_rng(0).permutation(150))
    rows = build_table_dataset(
        _source(frame, ColumnRoles(target=("price",), split_by="day")), 0.2, 0, hold_out_again=True
    )
    days = frame["day"].to_numpy()[rows.splits["train"]]
    assert days[rows.held_out].min() > days[~rows.held_out].max()


def test_most_epochs_and_pieces_by_rows():
    counts = [100, 1_000, 10_000, 100_000, 1_000_000]
    assert [most_table_epochs(n, "regression") for n in counts] == [244, 96, 26, 10, 8]
    assert [most_table_epochs(n, "classification") for n in counts] == [189, 74, 22, 8, 7]
    counts = [100, 500, 1_000, 2_000, 10_000]
    assert [most_pieces(n, 10, "regression") for n in counts] == [5, 25, 32, 100, 128]
    assert [most_pieces(n, 10, "classification") for n in counts] == [4, 12, 16, 16, 16]
    assert [most_pieces(2_000, n, "classification") for n in (2, 60)] == [24, 4]
    assert most_pieces(2_000, 500, "regression") == 0


def test_the_network_and_the_batches_by_rows_and_targets():
    networks = [table_network_options(n, 512, "regression") for n in (2_999, 3_000)]
    assert [(network["members"], network["dropout"]) for network in networks] == [(4, 0.1), (2, 0.0)]
    assert [table_network_options(n, 64, "regression")["members"] for n in (2, 8, 16)] == [1, 2, 4]
    assert [table_network_options(100, b, "regression")["members"] for b in (2, 8, 16)] == [1, 2, 4]
    assert table_network_options(3_000, 512, "multilabel") == {**networks[0], "dropout": 0.3}
    assert [table_batch_size(n) for n in (60, 499, 500, 1_000, 20_000)] == [128, 128, 256, 512, 1024]
