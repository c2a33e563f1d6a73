"""Text helpers: joined names, sizes and short values."""

import pytest

from skipway.utils.format_text import join_names, join_sizes, short_repr


@pytest.mark.parametrize(
    "names, text",
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        ([str(i) for i in range(1203)], "0, 1, 2 and 1,200 more"),
        (iter("abcd"), "a, b, c and 1 more"),
    ],
)
def test_only_the_first_names_are_joined(names, text):
    assert join_names(names, limit=3) == text


def test_names_are_joined_by_another_separator():
    assert join_names(["a", "b", "c"], limit=2, separator="; ") == "a; b and 1 more"


@pytest.mark.parametrize("sizes, text", [([2, 2], "2-2"), ((3,), "3"), (4, "4"), ("basic", "basic"), ([], "")])
def test_sizes_are_joined_by_dashes(sizes, text):
    assert join_sizes(sizes) == text


def test_a_short_value_is_one_line():
    endless = []
    endless.append(endless)
    assert len(short_repr([[[[endless] * 100]]] * 1000)) < 500
    assert short_repr("a\nb" * 200).isprintable()
    assert len(short_repr("a" * 1000)) <= 122
    assert short_repr(0.1) == "0.1"
