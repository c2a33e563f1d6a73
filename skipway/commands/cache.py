"""List and clear the cache of decoded images and features."""

import time
from collections.abc import Iterable
from typing import Any

from skipway.commands.text_report import TextReport
from skipway.data.images.decoded_file import about_file
from skipway.errors import printable
from skipway.utils.cache_folder import (
    CachedFile,
    cache_folder,
    cached_files,
    clear_cache,
    default_cache_size,
    is_temporary,
)
from skipway.utils.format_text import count_of

__all__ = ["CacheReport", "cache"]

_KIND_NAMES = {"decoded": "decoded images", "features": "features of frozen layers", "stamps": "index of files"}


class CacheReport(TextReport):
    """Contents of the cache: folder, sizes in bytes and entries."""


def cache(*, clear: bool = False) -> CacheReport:
    """List the cache of this machine, or remove its files.

    Args:
        clear: remove all files that no process uses.

    Returns:
        The folder, its size, and one entry per dataset and kind, the most recently used first. After `clear`, also the
        bytes that were removed.

    Raises:
        InputError: SKIPWAY_CACHE_SIZE is not a number.

    >>> report = cache()
    >>> sorted(report.as_dict())
    ['bytes', 'entries', 'folder', 'limit_bytes']
    """
    removed = clear_cache() if clear else []
    files = cached_files()
    entries = _entries(files)
    facts: dict[str, Any] = {
        "folder": str(cache_folder()),
        "bytes": sum(file.size for file in files),
        "limit_bytes": round(default_cache_size() * 1e9),
        "entries": entries,
    }
    lines = [f"cache: {printable(facts['folder'])}, {_size(facts['bytes'])} of {_size(facts['limit_bytes'])}"]
    if clear:
        facts["removed_bytes"] = sum(file.size for file in removed)
        lines.append(f"removed {count_of(len(removed), 'file')}, {_size(facts['removed_bytes'])}")
        if files:
            lines.append(f"kept {count_of(len(files), 'file')} that other processes use")
    lines += [_line(entry) for entry in entries]
    return CacheReport("\n".join(lines), facts)


def _entries(files: Iterable[CachedFile]) -> list[dict[str, Any]]:
    """Group the files by kind and dataset, in the order of the last use."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for file in files:
        about = about_file(file.path) if file.kind == "decoded" and not is_temporary(file.path) else {}
        key = (file.kind, file.path.parent.name if about else "", about.get("name", ""))
        entry = groups.setdefault(
            key, {"kind": file.kind, "name": "", "size": None, "images": 0, "files": 0, "bytes": 0, "used": file.used}
        )
        entry["name"], entry["size"] = str(about.get("name", "")), about.get("size")
        entry["images"] += about.get("count", 0)
        entry["files"] += 1
        entry["bytes"] += file.size
    return list(groups.values())


def _line(entry: dict[str, Any]) -> str:
    what = _KIND_NAMES[entry["kind"]]
    if entry["images"]:
        what += f" of {printable(entry['name'])}, {count_of(entry['images'], 'image')} at {entry['size']} px"
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["used"]))
    return f"  {_size(entry['bytes']):>10}  {used}  {what}"


def _size(count: int) -> str:
    """Format a number of bytes.

    >>> _size(1_234_567_890), _size(20_000)
    ('1.2 GB', '0.02 MB')
    """
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.2g} MB"
