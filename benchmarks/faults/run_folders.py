"""Run folders with a damaged file, for each file, command and kind of run.

Each command must end with a documented exit code and one line, and must not execute content of a file.
"""

import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from faults.counting import Count, Settings, isolated
from faults.mutations import CANARY, as_json, damage, restructure
from skipway.cli import app
from skipway.runs.train_run import train
from skipway.utils import atomic_files, stop_signals
from skipway.utils.stop_signals import StopFlag

_READ_SUFFIXES = (".json", ".csv", ".yaml", ".safetensors")  # suffixes of the files that commands read
CODES = (0, 2, 3, 4)
TRIALS = 4_000  # per kind
_SECONDS = 120  # seconds after which a command counts as hanging
_QUICK = {"epochs": 2, "batch_size": 16, "threads": 1}
_COMMON = (
    ["compare", "damaged", "whole", "-o", "compare.png"],
    ["summary", "damaged"],
    ["train", "--resume", "damaged", "--quiet"],
    ["predict", "damaged", "{input}", "--csv", "out.csv"],
    ["evaluate", "damaged", "{data}"],
    ["export", "damaged", "--to", "pt2", "-o", "out.pt2"],
    ["probe", "damaged", "--only", "diagram,flow", "--samples", "8"],
    ["grow", "damaged", "--to", "resnet44", "--name", "grown"],
)
_RESUMED = (["train", "--resume", "damaged", "--quiet"],) * 4
_OF_A_FOLD = tuple([word.replace("damaged", "damaged/fold-1") for word in words] for words in _COMMON)
_LONGER = ["train", "--resume", "damaged", "--quiet", "--epochs", "3"]


@dataclass(frozen=True)
class Kind:
    """Kind of run: its training options and data, the input of predict, and the commands that read it."""

    options: dict[str, Any]
    data: str
    input: str
    commands: tuple[list[str], ...]


KINDS = {
    "images": Kind({"model": "resnet20"}, "kinds", "kinds/a", (*_COMMON, _LONGER)),
    "growth": Kind({"grow": "resnet20:1,resnet32:1"}, "kinds", "kinds/a", (*_COMMON, _LONGER)),
    "classes of a table": Kind({"target": "kind"}, "table.csv", "table.csv", (*_COMMON, _LONGER)),
    "numbers of a table": Kind({"target": "y", "model": "resmlp"}, "table.csv", "table.csv", (*_COMMON, _LONGER)),
    "folds": Kind({"target": "kind", "folds": 2, "epochs": 1}, "table.csv", "table.csv", (*_RESUMED, *_OF_A_FOLD)),
}


def parts(settings: Settings) -> Iterator[Count]:
    """Damage runs of each kind."""
    for kind in KINDS:
        yield isolated(damage_runs, settings.count(f"commands: {kind}", TRIALS), kind)


def damage_runs(count: Count, name: str) -> Count:
    """Repeatedly damage a run of a kind, and run a command on it."""
    draw = random.Random(f"{count.seed} {name}")
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # a warning would be a second line
    signal.signal(signal.SIGALRM, _raise_timeout)
    with tempfile.TemporaryDirectory(prefix="skipway-folders-") as temporary:
        place = Place(Path(temporary), name)
        for _ in count:
            signal.alarm(_SECONDS)
            fault = place.attempt(draw)
            signal.alarm(0)
            if fault:
                count.fault("broken", fault)
        if any(place.folder.rglob(CANARY)):
            count.fault("executed", "the canary file exists")
        os.chdir("/")
    return count


class Place:
    """Working folder with data and an intact run of a kind."""

    def __init__(self, folder: Path, name: str):
        self.folder, self.kind = folder, KINDS[name]
        os.chdir(folder)
        _write_images(folder / "kinds")
        _write_table(folder / "table.csv")
        train(self.kind.data, output=".", name="whole", **{**_QUICK, **self.kind.options})
        (folder / "last").unlink()
        files = sorted(path.relative_to("whole") for path in Path("whole").rglob("*") if path.is_file())
        self.read = [path for path in files if path.suffix in _READ_SUFFIXES]
        self.files = files
        self.kept = {path.name for path in folder.iterdir()}

    def attempt(self, draw: random.Random, number: int | None = None) -> str:
        """Damage a file and run a command, a random one by default; return a text if it ended in a wrong way."""
        for path in self.folder.iterdir():
            if path.name not in self.kept:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree("whole", "damaged", symlinks=True)
        file = draw.choice(draw.choice((self.read, self.read, self.read, self.files)))
        how = damage_file(draw, Path("damaged") / file)
        commands = self.kind.commands
        template = draw.choice(commands) if number is None else commands[number % len(commands)]
        words = [word.format(data=self.kind.data, input=self.kind.input) for word in template]
        code, errors = run_here(words)
        lines = [line for line in errors.splitlines() if line.startswith("skipway: ")]
        wrong = code not in CODES or "Traceback" in errors or (code != 0 and len(lines) != 1)
        return f"{' '.join(words)} after {how} of {file}: exit code {code}, {errors}" if wrong else ""


def run_here(words: list[str]) -> tuple[Any, str]:
    """Run a command in this process; return its exit code and its standard error."""
    stop_signals.STOP = StopFlag()
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            app.main(words)
        except SystemExit as ended:
            return ended.code, errors.getvalue()
    return None, errors.getvalue()


def damage_file(draw: random.Random, path: Path) -> str:
    """Damage the bytes or the structure of a file, remove it, or replace it by a folder; return the kind of damage."""
    how = draw.choice(("removal", "a folder in place", "bytes", "bytes", "structure", "structure", "structure"))
    data = path.read_bytes()
    if how == "structure":
        return "structure" if _restructure(draw, path, data) else _damage_bytes(draw, path, data)
    if how == "bytes":
        return _damage_bytes(draw, path, data)
    path.unlink()
    if how != "removal":
        path.mkdir()
    return how


def _damage_bytes(draw: random.Random, path: Path, data: bytes) -> str:
    path.write_bytes(damage(draw, data))
    return "bytes"


def _restructure(draw: random.Random, path: Path, data: bytes) -> bool:
    """Mutate the values of a JSON, YAML or CSV file; return False for other files."""
    if path.suffix == ".json":
        path.write_bytes(as_json(restructure(draw, json.loads(data))))
        if path.name == "state.json":  # with valid checksums
            reseal(path)
    elif path.suffix == ".yaml":
        path.write_bytes(as_json(restructure(draw, yaml.safe_load(data))))
    elif path.suffix == ".csv":
        rows: Any = restructure(draw, [line.split(",") for line in data.decode().splitlines()])
        rows = rows if isinstance(rows, list | dict) else [rows]
        lines = [",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows or ()]
        path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    else:
        return False
    return True


def reseal(path: Path) -> None:
    """Update the manifest next to a file of a checkpoint, so that its checksum is valid."""
    manifest_path, data = path.parent / "MANIFEST.json", path.read_bytes()
    manifest = json.loads(manifest_path.read_bytes())
    manifest.pop("sha256")
    manifest["files"][path.name] = {"bytes": len(data), "sha256": atomic_files.sha256(data)}
    digest = hashlib.sha256(json.dumps(manifest, separators=(",", ":")).encode()).hexdigest()
    manifest_path.write_bytes(as_json({"sha256": digest, **manifest}))


def _write_images(folder: Path) -> None:
    for k, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng(10 * k + i).integers(0, 90, (8, 8)) + 80 * k
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.png")


def _write_table(path: Path) -> None:
    draw, lines = np.random.default_rng(0), ["a,b,city,day,y,kind"]
    for i in range(60):
        a, b = draw.normal(size=2)
        lines.append(f"{a:.3f},{b:.3f},{'xyz'[i % 3]},2024-01-{1 + i % 28:02},{a + 2 * b:.3f},{'pq'[int(a > b)]}")
    path.write_text("\n".join(lines))


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"not done within {_SECONDS} seconds")
