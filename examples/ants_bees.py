"""Fine-tuning on photographs of ants and bees. After the download of the photographs it runs offline.

    python examples/ants_bees.py [--source SOURCE] [--data ants_bees] [--output runs]

SOURCE is the archive of PyTorch's transfer learning tutorial (47 MB), or a folder with train/ and val/. By default the
archive is downloaded. The photographs are copied to DATA, which is used if it exists. The pretrained weights are
installed with skipway.
"""

import argparse
import shutil
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

import skipway as sw
from skipway.utils.console import Console

ARCHIVE = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
SPLITS = ("train", "val")


def copy_photographs(source, data):
    """Copy train/ and val/ of an archive or a folder to the folder `data`, unless it exists."""
    if data.exists():
        return
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        unpacked = Path(source)
        if not unpacked.is_dir():
            unpacked = Path(folder, "archive")
            zipfile.ZipFile(source).extractall(unpacked)
        (root,) = {path.parent for path in unpacked.rglob(SPLITS[0]) if (path.parent / SPLITS[1]).is_dir()}
        for split in SPLITS:
            shutil.copytree(root / split, Path(folder, "copy", split))
        Path(folder, "copy").rename(data)


def download(folder):
    """Download the archive of the tutorial to `folder`, and return its path."""
    path = Path(folder, "photographs.zip")
    print(f"downloading {ARCHIVE} (47 MB)")
    urllib.request.urlretrieve(ARCHIVE, path)
    return path


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="archive or folder of photographs; default: download")
    parser.add_argument("--data", type=Path, default=Path("ants_bees"))
    parser.add_argument("--output", default="runs")
    args = parser.parse_args(words)
    if not args.data.exists():
        with tempfile.TemporaryDirectory() as folder:
            copy_photographs(args.source or download(folder), args.data)
    begin = time.monotonic()
    run = sw.train(args.data, output=args.output, console=Console())
    print(f"validation accuracy {run.metrics['val_accuracy']:.1%} after {time.monotonic() - begin:.0f} s")
    files = sorted((args.data / "val").rglob("*.jpg"))[::20]
    for file, name in zip(files, run.network().predict(files), strict=True):
        print(f"{file.parent.name}/{file.name}: {name}")
    return run


if __name__ == "__main__":
    main()
