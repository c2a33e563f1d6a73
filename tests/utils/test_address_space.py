"""A small address space is reported before native libraries abort."""

import resource
import subprocess
import sys

import pytest

from skipway.errors import StorageError
from skipway.utils.address_space import refuse_small_address_space

SIZE = 600 << 20


@pytest.mark.parametrize("words, code, text", [(["models"], 4, "got 600 MB"), (["--help"], 0, "Usage: skipway")])
def test_a_command_needs_address_space_and_help_does_not(words, code, text):
    """In a process of its own, since a limit cannot be raised again."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({SIZE}, {SIZE}))"
    script = f"{limited}\nfrom skipway.cli.app import main\nmain({words!r})"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert process.returncode == code and text in process.stdout + process.stderr


@pytest.mark.parametrize("limit, is_refused", [(resource.RLIM_INFINITY, False), (1400 << 20, False), (SIZE, True)])
def test_the_limit_is_compared_with_what_libraries_need(monkeypatch, limit, is_refused):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    if not is_refused:
        return refuse_small_address_space()
    with pytest.raises(StorageError, match="cannot start: expected at least 1,400 MB of address space, got 600 MB"):
        refuse_small_address_space()
