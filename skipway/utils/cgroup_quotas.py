"""CPU quotas of cgroups, by which containers and schedulers limit the cores of a process.

Formats: `/proc/self/cgroup` and `/proc/self/mountinfo`, proc(5); `cpu.max`, kernel documentation of cgroup v2;
`cpu.cfs_quota_us` and `cpu.cfs_period_us`, kernel documentation of CFS bandwidth control.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["cgroup_quotas", "read_text"]


def cgroup_quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of the cgroup of this process and of its visible parents.

    Args:
        root: root of `proc/` and of the mount points in `proc/self/mountinfo`.
    """
    groups = _cgroups(root)
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        mount, _, file_system = line.partition(" - ")
        _, _, _, top, mount_point, *_ = mount.split()
        kind, _, options = file_system.split(maxsplit=2)
        controllers = options.split(",")
        if kind == "cgroup2":
            group = groups.get("", "/")
        elif kind == "cgroup" and "cpu" in controllers:
            group = groups.get("cpu", "/")
        else:
            continue
        for folder in _folders(root / mount_point.lstrip("/"), top, group):
            yield from _quota(folder)


def _cgroups(root: Path) -> dict[str, str]:
    """Return the path of the cgroup of this process by controller; "" is cgroup v2."""
    groups: dict[str, str] = {}
    for line in read_text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", maxsplit=2)
        groups |= dict.fromkeys(controllers.split(","), group)
    return groups


def _folders(mount_point: Path, top: str, group: str) -> list[Path]:
    """Return the folders of `group` and its parents in a file system whose root is the cgroup `top`.

    In a container, the path may be that of the host, or lead out of its namespace ("/../other"). If it is not below
    `top`, the mount point itself is the cgroup of the container.
    """
    path = PurePosixPath(group)
    if not path.is_relative_to(top) or ".." in path.parts:
        return [mount_point]
    relative = path.relative_to(top)
    return [mount_point / folder for folder in (relative, *relative.parents)]


def _quota(folder: Path) -> Iterator[float]:
    """Yield the quota of a cgroup in cores if it has one. It is in one file for v2, and in two files for v1."""
    words = read_text(folder / "cpu.max").split()
    if not words:
        words = [*read_text(folder / "cpu.cfs_quota_us").split(), *read_text(folder / "cpu.cfs_period_us").split()]
    if len(words) == 2 and words[0].isdigit():  # no quota is "max" or -1
        quota, period = map(int, words)
        yield quota / period


def read_text(file: Path) -> str:
    """Return the content of a file of the system, or "" if it does not exist."""
    try:
        return file.read_text(encoding="ascii", errors="surrogateescape")  # folder names can hold any bytes
    except OSError:
        return ""
