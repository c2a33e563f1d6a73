"""The same files as a folder and as archives of every kind, for tests of layouts."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

from image_folders import image_bytes

KINDS = ("folder", "zip", "stored.zip", "bzip2.zip", "tar", "tar.gz", "tar.bz2", "tar.xz")


def noise(*paths):
    """{path: an image of noise}; no two are equal."""
    return {path: image_bytes(i + 1) for i, path in enumerate(paths)}


def numbered(folders, count=2, suffix=".png"):
    """`count` images 0.png, 1.png, ... in each folder."""
    return noise(*[f"{folder}/{i}{suffix}" for folder in folders for i in range(count)])


def write_tree(root, files):
    """Write {path: bytes} below a folder; a path that ends with "/" is an empty folder."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            (root / path).mkdir(exist_ok=True)
        else:
            (root / path).write_bytes(data)
    return root


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    """Write {path: bytes} as a zip archive."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    """Write {path: bytes} as a tar archive; values may be ready TarInfos."""
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def place(root, files, kind, name="set"):
    """Write {path: bytes} as a folder or an archive of a kind, and return its path."""
    os.makedirs(root, exist_ok=True)
    path = Path(root, name if kind == "folder" else f"{name}.{kind.removeprefix('stored.').removeprefix('bzip2.')}")
    if kind == "folder":
        return write_tree(path, files)
    if kind.endswith("zip"):
        methods = {"stored.zip": zipfile.ZIP_STORED, "bzip2.zip": zipfile.ZIP_BZIP2}
        return write_zip(path, files, methods.get(kind, zipfile.ZIP_DEFLATED))
    return write_tar(path, files, {"tar": "w"}.get(kind, f"w:{kind.removeprefix('tar.')}"))
