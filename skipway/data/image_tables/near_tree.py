"""NearTree: the files around a table file, listed as far as the table can mean them."""

import os
from collections import deque
from pathlib import Path

from skipway.data.sources.file_tree import DiskTree, Folder, entries_of, is_image_name
from skipway.errors import InputError

__all__ = ["NearTree"]

_MAX_FOLDERS = 20_000  # a table may be in a home folder, or next to the files of other projects


class NearTree(DiskTree):
    """Files below the folder of a table. Folders that cannot be listed are left out: the table may not need them.

    Args:
        root: the folder.
        follow_links: True to follow symbolic links that lead out of the folder.
        depth: levels of folders to list; 0 lists only the files in `root`.
    """

    def __init__(self, root: Path, follow_links: bool = False, depth: int = 8) -> None:
        super().__init__(root, follow_links)
        self._depth = depth

    def _list(self) -> Folder:
        root = Folder()
        waiting, listed = deque([(root, 0)]), 0
        while waiting and listed < _MAX_FOLDERS:
            folder, level = waiting.popleft()
            listed += 1
            names = self._add_folders(folder, _entries(self._base / folder.path), is_last=level >= self._depth)
            folder.images = sorted(name for name in names if is_image_name(name))
            folder.others = sorted(name for name in names if not is_image_name(name))
            waiting += [(inner, level + 1) for inner in folder.folders.values()]
        return root


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return entries_of(folder)
    except InputError:
        return []
