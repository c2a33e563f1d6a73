"""Only files with this skipway's schema number are read."""

import pytest

from skipway.errors import InputError
from skipway.utils.run_schema import SCHEMA, NewerSchema, refuse_unknown_schema, with_schema


def test_the_number_comes_first_and_passes():
    values = with_schema({"status": "finished"})
    assert list(values.items()) == [("schema", SCHEMA), ("status", "finished")]
    refuse_unknown_schema("metrics.json", values["schema"])


@pytest.mark.parametrize(
    "number, got",
    [(None, "none"), (0, "0"), (-1, "-1"), ("1", "'1'"), (True, "True"), (1.0, "1.0"), ([1], r"\[1\]")],
)
def test_any_other_number_is_refused_in_one_line(number, got):
    message = f"metrics.json: expected schema {SCHEMA}, got {got}. Use a run of this version of skipway."
    with pytest.raises(InputError, match=message) as caught:
        refuse_unknown_schema("metrics.json", number)
    assert not isinstance(caught.value, NewerSchema)


def test_a_higher_number_asks_for_a_newer_skipway():
    with pytest.raises(NewerSchema, match="env.json: expected schema 1, got 7. Use a newer skipway, or start"):
        refuse_unknown_schema("env.json", 7)
    with pytest.raises(NewerSchema, match=r"got 7. Use a newer skipway \(9.1\\x0a wrote it\)"):
        refuse_unknown_schema("env.json", 7, "9.1\n")


def test_a_hostile_value_is_shown_short_and_on_one_line():
    with pytest.raises(InputError) as caught:
        refuse_unknown_schema("env.json", "\x1b[2J\n" * 1000)
    assert len(str(caught.value)) < 160 and "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
