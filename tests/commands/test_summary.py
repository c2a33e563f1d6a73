"""The layers of a network, by name, run folder or file."""

import pytest

from skipway.commands.summary import summarize
from skipway.errors import InputError


def test_a_summary_takes_names_runs_and_files(place, weights, tmp_path):
    by_name, by_file = str(summarize("resnet20", num_classes=3)), str(summarize(weights))
    assert "269,267 parameters" in by_name and "for an input of 1x1x8x8" in by_file
    assert str(summarize(str(place / "runs" / "run"))) == by_file
    assert summarize("resnet20", code=True) != by_name
    (tmp_path / "resnet20").mkdir()
    assert str(summarize("resnet20", num_classes=3)) == by_name
    with pytest.raises(InputError, match="invalid size: expected an integer of at least 1, got 0"):
        summarize("resnet20", size=0)
    with pytest.raises(InputError, match="invalid num_classes: expected an integer of at least 0, got -1"):
        summarize("resnet20", num_classes=-1)
    with pytest.raises(InputError, match="unknown architecture 'resnet21'"):
        summarize("resnet21")
