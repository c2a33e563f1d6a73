"""The layers of a network, by name, run folder or file."""

import pytest

from skipway.commands.summary import summarize
from skipway.errors import InputError


def test_a_summary_takes_names_runs_and_files(place, weights, tmp_path):
    by_name, by_file = summarize("resnet20", num_classes=3), summarize(weights)
    assert "parameters" in by_name.lower() and "(1, 1, 8, 8)" in by_file or "8" in by_file
    assert summarize(str(place / "runs" / "run")) == by_file
    assert summarize("resnet20", code=True) != by_name
    (tmp_path / "resnet20").mkdir()
    assert summarize("resnet20", num_classes=3) == by_name
    with pytest.raises(InputError, match="size must be at least 1, not 0"):
        summarize("resnet20", size=0)
    with pytest.raises(InputError, match="num_classes must be at least 1, not -1"):
        summarize("resnet20", num_classes=-1)
    with pytest.raises(InputError, match="unknown model 'resnet21'"):
        summarize("resnet21")
