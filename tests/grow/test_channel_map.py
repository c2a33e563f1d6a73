"""Rows of channels: what each new one repeats, how those that repeat one share, and what they make of an old tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipway.grow.channel_map import NEW, ChannelMap, Origin, concat_maps, copy_shares, select_channels

WIDTHS = st.integers(1, 12).flatmap(lambda width: st.tuples(st.just(width), st.integers(width, 40)))


@given(WIDTHS, st.booleans())
def test_a_spread_row_keeps_every_old_channel_and_their_order(widths, repeat):
    width, size = widths
    row = ChannelMap.widened(width, size, repeat=repeat)
    assert len(row.source) == size and row.old_width == width and row.keeps_all
    old = row.source[row.source >= 0]
    assert bool((old.diff() >= 0).all()) and len(old) == (size if repeat else width)
    assert row.is_identity == (size == width)
    counts = row.copy_counts()
    assert counts.max() - counts.min() <= 1 if repeat else bool((counts == 1).all())


@given(WIDTHS, st.booleans(), st.integers(0, 2**31))
def test_the_shares_of_channels_that_repeat_one_sum_to_one(widths, even, seed):
    row = ChannelMap.widened(*widths, repeat=True)
    shares = copy_shares(row, 3, None if even else torch.Generator().manual_seed(seed)).expand(3, -1)
    sums = torch.zeros(3, row.old_width, dtype=torch.float64).index_add_(1, row.source, shares)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert bool((shares > 0).all())
    assert bool((shares[:, row.copy_counts() == 1] == 1).all()), "a channel that is alone has changed"


@given(WIDTHS, st.booleans(), st.integers(1, 5))
def test_what_reads_a_wider_row_gives_what_it_gave(widths, repeat, outputs):
    row = ChannelMap.widened(*widths, repeat=repeat)
    weight, x = (
        torch.randn(outputs, row.old_width, dtype=torch.float64),
        torch.randn(7, row.old_width, dtype=torch.float64),
    )
    wide = select_channels(weight, row, 1) * copy_shares(row, outputs, torch.Generator().manual_seed(1))
    given_now = torch.where(row.source < 0, 5.0, select_channels(x, row, 1))  # new channels hold anything
    torch.testing.assert_close(given_now @ wide.T, x @ weight.T)


@given(WIDTHS, WIDTHS)
def test_rows_lie_beside_each_other_as_their_tensors_do(first, second):
    one, other = (ChannelMap.widened(*widths, repeat=True) for widths in (first, second))
    a, b = torch.randn(2, one.old_width), torch.randn(2, other.old_width)
    both = concat_maps(one, other)
    assert both.old_width == one.old_width + other.old_width
    apart = [select_channels(a, one, 1), select_channels(b, other, 1)]
    assert select_channels(torch.cat([a, b], 1), both, 1).equal(torch.cat(apart, 1))


@given(WIDTHS, st.integers(1, 4))
def test_a_flattened_row_is_the_row_of_the_flattened(widths, times):
    row = ChannelMap.widened(*widths, repeat=True)
    x = torch.randn(2, row.old_width, times)
    assert select_channels(x, row, 1).flatten(1).equal(select_channels(x.flatten(1), row.flattened(times), 1))
    new = ChannelMap(torch.tensor([0, NEW]), 1).flattened(times)
    assert new.source.tolist() == [*range(times), *[NEW] * times]


@given(WIDTHS, st.integers(1, 20))
def test_growing_twice_is_made_of_what_it_was_first(widths, more):
    first = Origin("a", ChannelMap.widened(*widths, repeat=True))
    second = Origin("b", ChannelMap.widened(widths[1], widths[1] + more, repeat=True), ChannelMap.identity(3))
    value = torch.randn(widths[0], 3)
    both = second.compose(first)
    twice = select_channels(select_channels(value, first.rows, 0), second.rows, 0)
    assert both.name == "a" and select_channels(value, both.rows, 0).equal(twice)
    assert both.columns.is_identity


@pytest.mark.parametrize("key, power", [("momentum_buffer", 1), ("exp_avg", 1), ("exp_avg_sq", 2)])
def test_what_an_optimiser_keeps_is_shared_like_the_gradient(key, power):
    origin = Origin("weight", ChannelMap(torch.tensor([0, 0, 1, NEW]), 2), ChannelMap(torch.tensor([0, 0, 1]), 2))
    value = torch.tensor([[8.0, 4.0], [2.0, 1.0]])
    moved = origin.transform_state({key: value, "step": torch.tensor(3.0), "plain": 7}, (2, 2))
    half = 2**power
    assert moved[key].tolist() == [[8 / half, 8 / half, 4 / half]] * 2 + [[2, 2, 1], [0, 0, 0]]
    assert moved["step"] == 3 and moved["plain"] == 7
