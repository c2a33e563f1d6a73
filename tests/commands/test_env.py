"""The environment that skipway runs in."""

import os
import re

from skipway.commands import env


def test_the_environment_is_named(monkeypatch):
    said = env.environment_table()
    assert all(word in said for word in ("skipway", "torch", "precision", f"{os.cpu_count()} cores"))
    assert re.search(r"^threads +\d+, limited by ", said, re.M)
    monkeypatch.setattr(env, "find_spec", lambda name: None)
    assert "not installed: pip install 'skipway[parquet]'" in env.environment_table()
    assert env._version("no-such-package-anywhere") == "not installed"
