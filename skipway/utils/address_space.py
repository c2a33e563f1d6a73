"""The limit of a process's address space (`ulimit -v`), below which torch's libraries abort without a message."""

import os
from contextlib import suppress

from skipway.errors import StorageError

__all__ = ["refuse_small_address_space"]

# Loading torch, numpy and scikit-learn and starting their threads takes this much (torch 2.13.0 for CPUs, Linux). With
# less, native code ends the process by abort() or exit(1), which Python cannot catch.
_LIBRARIES, _PER_CORE, _MOST_CORES = 1300 << 20, 50 << 20, 64


def refuse_small_address_space() -> None:
    """Raise StorageError if the process may not use the address space that its libraries need."""
    with suppress(ImportError):  # Windows has no such limit
        import resource

        needed = _LIBRARIES + _PER_CORE * min(os.cpu_count() or 1, _MOST_CORES)
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise StorageError(
                f"cannot start: expected at least {needed >> 20:,} MB of address space, got {limit >> 20:,} MB. Raise "
                "`ulimit -v`."
            )
