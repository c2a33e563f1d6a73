import numpy as np
import pytest

from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.data.time_order import last_part, read_order
from skipway.errors import InputError


def table(cells):
    column = cells if isinstance(cells, np.ndarray) else TextColumn.of(cells)
    return Table("t.csv", {"when": column}, lambda i: f"t.csv:{i + 2}")


def split(cells, fraction=0.25):
    rows = table(cells)
    options = {"fraction": fraction, "name": "t", "column": "when"}
    return last_part(read_order(rows, "when"), rows.columns["when"], **options)


def test_the_last_rows_validate_and_the_boundary_is_named():
    in_val, boundary = split(["2024-03-02", "2024-01-05", "2023-12-31", "2024-02-01"])
    assert in_val.tolist() == [True, False, False, False] and boundary == "from when 2024-03-02 on"
    in_val, boundary = split(np.array([3.0, 1.0, 2.0, 10.0]))
    assert in_val.tolist() == [False, False, False, True] and boundary == "from when 10 on"
    in_val, _ = split(["2024-03-01 10:00", "2024-03-01 09:00", "2024-03-01 12:30", "2024-03-01 12:29:59"])
    assert in_val.tolist() == [False, False, True, False]


def test_dates_are_ordered_in_every_format():
    in_val, boundary = split(["31/01/2024", "02/03/2024", "15/02/2024", "01/03/2024"])
    assert in_val.tolist() == [False, True, False, False] and boundary == "from when 02/03/2024 on"


@pytest.mark.parametrize("seed", range(5))
def test_equal_values_are_on_one_side_and_the_share_is_as_near_as_they_allow(seed):
    values = np.random.default_rng(seed).integers(0, 12, 200).astype(float)
    in_val, _ = split(values, 0.3)
    assert values[~in_val].max() < values[in_val].min()
    possible = [abs((values >= v).sum() - 60) for v in np.unique(values)[1:]]
    assert abs(in_val.sum() - 60) == min(possible)


def test_a_column_that_cannot_be_ordered_is_refused():
    for cells, cell in ((["2024-01-01", "spring"], "'spring'"), (["a", "b"], "'a'"), (["2024-01-01", ""], "an empty")):
        with pytest.raises(InputError, match=f"cannot use --split-by when: expected a number in every row, .*{cell}"):
            split(cells)
    with pytest.raises(InputError, match=r"an empty cell in t\.csv:3 \(1 such rows\)"):
        split(np.array([1.0, np.nan]))
    with pytest.raises(InputError, match="cannot split t by 'when': expected at least 2 different values, got 1"):
        split(np.ones(4))
    with pytest.raises(InputError, match="cannot find the column 'then'"):
        read_order(table(["1", "2"]), "then")
