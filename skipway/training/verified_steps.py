"""Memory of the checkpoints that a process has verified, so that it reads them again only if they change."""

import contextlib
import os
import time
from pathlib import Path

__all__ = ["VerifiedSteps"]

_TICK = 0.05  # seconds: longer than the steps of the clock of a file system


class VerifiedSteps:
    """Set of paths of verified steps. A step belongs to it while the stamps of its files are unchanged."""

    def __init__(self) -> None:
        self._stamps: dict[Path, list[tuple[str, ...]]] = {}

    def add(self, path: Path, written: float) -> None:
        """Add a step that has just been verified.

        Args:
            path: folder of the step.
            written: time on the monotonic clock after which its files were not written. If it is too recent, the step
                is not added: a later change within a tick of the clock would leave the stamps unchanged.
        """
        self._stamps = {step: stamps for step, stamps in self._stamps.items() if step.is_dir()}
        if time.monotonic() - written > _TICK:
            self._stamps[path] = _read_stamps(path)

    def __contains__(self, path: Path) -> bool:
        return path in self._stamps and self._stamps[path] == _read_stamps(path)


def _read_stamps(path: Path) -> list[tuple[str, ...]]:
    """Return name, size, inode and times of each file in `path`; an empty list if they cannot be read."""
    stamps: list[tuple[str, ...]] = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(path)):
            status = os.stat(path / name)
            values = status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
            stamps.append((name, *map(str, values)))
    return stamps
