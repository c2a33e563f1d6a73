"""From photographs to a model that predicts: ants and bees, offline once the photographs are there.

    python examples/ants_bees.py [--source SOURCE] [--data ants_bees] [--output runs]

SOURCE is where the photographs come from: by default the archive of PyTorch's transfer learning tutorial (47 MB), which
is downloaded; or that archive, or a folder with train/ and val/. DATA becomes a copy with one folder per class, which
is used from then on. The weights that the run begins with are installed with skipway.
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
    """Copy train/ and val/ of an archive or a folder to the folder `data`; nothing if that is there already."""
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
    """Return the path of the tutorial's archive, downloaded to `folder`."""
    path = Path(folder, "photographs.zip")
    print(f"downloading {ARCHIVE} (47 MB)")
    urllib.request.urlretrieve(ARCHIVE, path)
    return path


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="an archive or a folder; default: by download")
    parser.add_argument("--data", type=Path, default=Path("ants_bees"))
    parser.add_argument("--output", default="runs")
    args = parser.parse_args(words)
    if not args.data.exists():
        with tempfile.TemporaryDirectory() as folder:
            copy_photographs(args.source or download(folder), args.data)
    begin = time.monotonic()
    run = sw.train(args.data, output=args.output, console=Console())
    print(f"{run.metrics['val_accuracy']:.1%} of the validation images in {time.monotonic() - begin:.0f} s")
    files = sorted((args.data / "val").rglob("*.jpg"))[::20]
    for file, name in zip(files, run.network().predict(files), strict=True):
        print(f"{file.parent.name}/{file.name}: {name}")
    return run


if __name__ == "__main__":
    main()
