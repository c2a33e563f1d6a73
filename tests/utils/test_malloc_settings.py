import gc
import os
import platform
import sys

import pytest
from processes import environment, run_python

from skipway.utils.malloc_settings import paused_collection, restart_gathering

PROBE = """
import resource
from skipway.utils.malloc_settings import keep_freed_memory
kept = {kept} and keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
import numpy as np
np.ones(8_000_000)
before = faults()
for _ in range(5):
    np.ones(8_000_000)
print(kept, faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_kept_memory_is_not_fetched_from_the_system_again():
    def run(kept):
        return run_python(PROBE.format(kept=kept)).stdout.split()

    (_, fresh), (possible, kept) = run(False), run(True)
    if possible != "True":
        pytest.skip("no glibc here")
    assert int(kept) < int(fresh) / 5


RESTARTED = """
import os, sys
from skipway.utils.malloc_settings import paused_collection, restart_gathering
restart_gathering()
print(os.environ.get("GLIBC_TUNABLES"), *sys.argv[1:])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize(
    "before, after",
    [
        (None, "glibc.malloc.tcache_count=0"),
        ("glibc.malloc.perturb=0", "glibc.malloc.perturb=0:glibc.malloc.tcache_count=0"),
        ("glibc.malloc.tcache_count=3", "glibc.malloc.tcache_count=3"),
    ],
)
def test_a_process_begins_anew_with_the_same_words(before, after):
    rest = {k: v for k, v in environment().items() if k != "GLIBC_TUNABLES"}
    done = run_python(RESTARTED, "two words", "--flag", env=rest | ({"GLIBC_TUNABLES": before} if before else {}))
    assert done.stdout.split("\n")[0] == f"{after} two words --flag", done.stderr


def test_without_glibc_it_goes_on(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("restarted"))
    restart_gathering()


@pytest.mark.parametrize("enabled", [True, False])
def test_cycles_are_searched_again_after_imports_that_fail_too(enabled, monkeypatch):
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        with paused_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == enabled and frozen == [False]
        with pytest.raises(ImportError), paused_collection():
            raise ImportError
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
