import subprocess
import sys

import pytest

PROBE = """
import resource
from skipway.memory import keep_freed_memory
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
        out = subprocess.run(
            [sys.executable, "-c", PROBE.format(kept=kept)], capture_output=True, text=True, timeout=60
        )
        return out.stdout.split()

    (_, fresh), (possible, kept) = run(False), run(True)
    if possible != "True":
        pytest.skip("no glibc here")
    assert int(kept) < int(fresh) / 5
