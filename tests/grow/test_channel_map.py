"""Rows of channels: what each new one repeats, how those that repeat one share, and what they make of an old tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipway.grow.channel_map import NEW, ChannelMap, Origin, beside, shares_of, taken

WIDTHS = st.integers(1, 12).flatmap(lambda width: st.tuples(st.just(width), st.integers(width, 40)))


@given(WIDTHS, st.booleans())
def test_a_spread_row_keeps_every_old_channel_and_their_order(widths, repeat):
    width, size = widths
    row = ChannelMap.spread(width, size, repeat)
    assert len(row.old) == size and row.width == width and row.whole
    old = row.old[row.old >= 0]
    assert bool((old.diff() >= 0).all()) and len(old) == (size if repeat else width)
    assert row.unchanged == (size == width)
    counts = row.counts()
    assert counts.max() - counts.min() <= 1 if repeat else bool((counts == 1).all())


@given(WIDTHS, st.booleans(), st.integers(0, 2**31))
def test_the_shares_of_channels_that_repeat_one_sum_to_one(widths, even, seed):
    row = ChannelMap.spread(*widths, repeat=True)
    shares = shares_of(row, 3, None if even else torch.Generator().manual_seed(seed)).expand(3, -1)
    sums = torch.zeros(3, row.width, dtype=torch.float64).index_add_(1, row.old, shares)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert bool((shares > 0).all())
    assert bool((shares[:, row.counts() == 1] == 1).all()), "a channel that is alone has changed"


@given(WIDTHS, st.booleans(), st.integers(1, 5))
def test_what_reads_a_wider_row_gives_what_it_gave(widths, repeat, outputs):
    row = ChannelMap.spread(*widths, repeat=repeat)
    weight, x = torch.randn(outputs, row.width, dtype=torch.float64), torch.randn(7, row.width, dtype=torch.float64)
    wide = taken(weight, row, 1) * shares_of(row, outputs, torch.Generator().manual_seed(1))
    given_now = torch.where(row.old < 0, 5.0, taken(x, row, 1))  # new channels hold anything
    torch.testing.assert_close(given_now @ wide.T, x @ weight.T)


@given(WIDTHS, WIDTHS)
def test_rows_lie_beside_each_other_as_their_tensors_do(first, second):
    one, other = (ChannelMap.spread(*widths, repeat=True) for widths in (first, second))
    a, b = torch.randn(2, one.width), torch.randn(2, other.width)
    both = beside(one, other)
    assert both.width == one.width + other.width
    assert taken(torch.cat([a, b], 1), both, 1).equal(torch.cat([taken(a, one, 1), taken(b, other, 1)], 1))


@given(WIDTHS, st.integers(1, 4))
def test_a_flattened_row_is_the_row_of_the_flattened(widths, times):
    row = ChannelMap.spread(*widths, repeat=True)
    x = torch.randn(2, row.width, times)
    assert taken(x, row, 1).flatten(1).equal(taken(x.flatten(1), row.repeated(times), 1))
    new = ChannelMap(torch.tensor([0, NEW]), 1).repeated(times)
    assert new.old.tolist() == [*range(times), *[NEW] * times]


@given(WIDTHS, st.integers(1, 20))
def test_growing_twice_is_made_of_what_it_was_first(widths, more):
    first = Origin("a", ChannelMap.spread(*widths, repeat=True))
    second = Origin("b", ChannelMap.spread(widths[1], widths[1] + more, repeat=True), ChannelMap.kept(3))
    value = torch.randn(widths[0], 3)
    both = second.behind(first)
    assert both.name == "a" and taken(value, both.rows, 0).equal(taken(taken(value, first.rows, 0), second.rows, 0))
    assert both.columns.unchanged


@pytest.mark.parametrize("key, power", [("momentum_buffer", 1), ("exp_avg", 1), ("exp_avg_sq", 2)])
def test_what_an_optimiser_keeps_is_shared_like_the_gradient(key, power):
    origin = Origin("weight", ChannelMap(torch.tensor([0, 0, 1, NEW]), 2), ChannelMap(torch.tensor([0, 0, 1]), 2))
    value = torch.tensor([[8.0, 4.0], [2.0, 1.0]])
    moved = origin.moved({key: value, "step": torch.tensor(3.0), "plain": 7}, (2, 2))
    half = 2**power
    assert moved[key].tolist() == [[8 / half, 8 / half, 4 / half]] * 2 + [[2, 2, 1], [0, 0, 0]]
    assert moved["step"] == 3 and moved["plain"] == 7
