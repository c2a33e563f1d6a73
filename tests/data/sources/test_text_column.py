import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from skipway.data.sources.text_column import TextColumn, join_columns

TEXTS = st.lists(st.sampled_from(["a", " a", "b", "NA", "", "c d", None]), max_size=12)


@given(cells=TEXTS, data=st.data())
def test_a_column_is_a_list_of_stripped_texts(cells, data):
    column = TextColumn.of(cells)
    stripped = [cell if cell is None else cell.strip() for cell in cells]
    assert column.tolist() == list(column) == stripped == [column[i] for i in range(len(cells))]
    assert len(column) == len(cells) and np.asarray(column).dtype == column.dtype
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, len(cells) - 1)), max_size=8 if cells else 0)), np.int64)
    part = column[rows]
    assert part.tolist() == [stripped[i] for i in rows]
    expected_codes, expected_texts = pd.factorize(np.array([*part.tolist(), None], object)[:-1])
    codes, texts = part.factorize()
    assert codes.tolist() == expected_codes.tolist() and texts == list(expected_texts)
    missing = [cell is None or cell in ("", "NA") for cell in stripped]
    assert column.missing().tolist() == missing and "NA" not in column.factorize_present()[1]
    assert join_columns([column, part]).tolist() == stripped + part.tolist()


def test_texts_are_loaded_once_and_numbers_need_none():
    loads = []

    def load():
        loads.append(1)
        return np.array([0, 1, -1], np.int32), ["1", "2.0"]

    column = TextColumn(load, 3, np.array([1, 2, np.nan]))
    part = column[np.array([True, False, True])]
    assert part.missing().tolist() == [False, True] and len(part) == 2 and not loads
    both = join_columns([column, part])
    assert both.numbers.tolist()[:2] == [1, 2] and len(both) == 5 and not loads
    assert part.tolist() == ["1", None] and column.tolist() == ["1", "2.0", None] and both[3] == "1"
    assert len(loads) == 1
