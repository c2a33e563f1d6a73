"""Fuzzing of file readers: a million damaged files, read with the functions of the package.

Files with a checksum (weights, checkpoints) must be refused or load unchanged. Other files, which users may also edit,
must be read, or refused with an InputError or StorageError. Content must not be executed, which a canary file and an
audit hook on process starts and class look-ups detect. No files may be written, and no other exception may be raised.
"""

import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from faults import formats
from faults.counting import Count, Settings, isolated
from faults.mutations import CANARY
from skipway.errors import SkipwayError
from skipway.training import checkpoint
from skipway.weights import unpickle_worker

SECONDS = 20  # seconds after which a reader counts as hanging
SEALED = {"weights": True, "checkpoint": False}  # kind of file: True for weights
_RUNS_SOMETHING = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pickle.find_class")


class Executed:
    """Audit hook that records events which execute something while `armed`. Audit hooks cannot be removed."""

    def __init__(self) -> None:
        self.armed = False
        self.events: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        # The process that reads pickles is allowed; the canary file detects execution in it.
        if self.armed and event in _RUNS_SOMETHING and unpickle_worker.__file__ not in str(arguments):
            self.events.append(f"{event} {arguments}"[:200])


def parts(settings: Settings) -> Iterator[Count]:
    """Read damaged files of each kind."""
    yield isolated(truncate, settings.count("files: truncations of weights and a checkpoint", 10**9))
    yield isolated(flip, settings.count("files: flipped bits of weights and a checkpoint", 100_000))
    for name, planned in (
        ("weights", 100_000),
        ("weights with a right seal", 20_000),
        ("checkpoint", 100_000),
        ("state.json with a right seal", 60_000),
        ("another library's safetensors", 60_000),
        ("Flax's msgpack", 40_000),
        *((f"{kind} image", 70_000) for kind in formats.IMAGES),
        ("CSV table", 60_000),
        ("Parquet table", 30_000),
        ("config.yaml", 20_000),
        ("results.csv", 30_000),
        ("metrics.json", 30_000),
        ("answer of the Hub", 30_000),
        ("torch's pickles", 200),
    ):
        yield isolated(mutate, settings.count(f"files: {name}", planned), name)


def truncate(count: Count) -> Count:
    """Truncate each sealed file at every byte."""
    with Place() as place:
        sealed = place.sealed()
        lengths = [(file, length) for file in sealed for length in range(len(sealed[file]))]
        count.planned = min(count.planned, len(lengths))
        for number in count:
            file, length = lengths[number * len(lengths) // count.planned]
            place.judge(count, file, sealed[file][:length])
    return count


def flip(count: Count) -> Count:
    """Flip one bit of a sealed file."""
    draw = random.Random(count.seed)
    with Place() as place:
        sealed = place.sealed()
        for _ in count:
            file = draw.choice(list(sealed))
            content = bytearray(sealed[file])
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
            place.judge(count, file, bytes(content))
    return count


def mutate(count: Count, name: str) -> Count:
    """Damage files of one kind."""
    draw = random.Random(f"{count.seed} {name}")
    with Place() as place:
        if name in SEALED:
            sealed = {file: data for file, data in place.sealed().items() if (file == place.weights) == SEALED[name]}
            for _ in count:
                file = draw.choice(list(sealed))
                place.judge(count, file, formats.damage_sealed(draw, file, sealed[file]))
        else:
            attempt = formats.ATTEMPTS[name](place.folder)
            for _ in count:
                place.guarded(count, lambda: attempt(draw))
        if any(place.folder.parent.rglob(CANARY)):
            count.fault("executed", "the canary file exists")
    return count


class Place:
    """Folder, in memory if possible, with the files to damage."""

    def __init__(self) -> None:
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self._temporary = tempfile.TemporaryDirectory(prefix="skipway-faults-", dir=memory)
        self.folder = Path(self._temporary.name) / "here"
        self.folder.mkdir()
        self.hook = Executed()
        os.chdir(self.folder)
        torch.set_num_threads(1)
        self.weights, self.last = formats.write_sealed(self.folder)
        self.expected = {self.weights: checkpoint.load_weights(self.weights)}
        step = checkpoint.load_checkpoint(self.last)
        self.expected[self.last] = (step.tensors, step.state)
        self.files = set(self.folder.rglob("*"))

    def __enter__(self) -> "Place":
        signal.signal(signal.SIGALRM, _raise_timeout)
        return self

    def __exit__(self, *error: object) -> None:
        os.chdir("/")
        self._temporary.cleanup()

    def sealed(self) -> dict[Path, bytes]:
        """Return the content of the sealed files by path."""
        files = [self.weights, *sorted(path for path in self.last.rglob("*") if path.is_file())]
        return {path: path.read_bytes() for path in files}

    def judge(self, count: Count, file: Path, content: bytes) -> None:
        """Count a fault unless a sealed file with this content is refused or loads unchanged."""
        original = file.read_bytes()
        file.write_bytes(content)
        self.guarded(count, lambda: self._read_sealed(count, file))
        file.write_bytes(original)

    def _read_sealed(self, count: Count, file: Path) -> None:
        key = self.weights if file == self.weights else self.last
        if key == self.weights:
            result = checkpoint.load_weights(file)
        else:
            step = checkpoint.load_checkpoint(self.last)
            result = (step.tensors, step.state)
        if not _equal(result, self.expected[key]):
            count.fault("wrong", f"{file.name} loaded with other values")

    def guarded(self, count: Count, work: Callable[[], object]) -> None:
        """Run `work`, and count executed content and undocumented exceptions."""
        signal.alarm(SECONDS)
        self.hook.armed = True
        try:
            work()
        except SkipwayError as error:
            if error.exit_code == 70 or "\n" in str(error):
                count.fault("broken", f"{type(error).__name__}: {error}")
        except Exception as error:
            count.fault("broken", f"{type(error).__name__}: {error} in {_where(error)}")
        finally:
            self.hook.armed = False
            signal.alarm(0)
        if self.hook.events:
            count.fault("executed", self.hook.events.pop())
            self.hook.events.clear()


def _equal(left: Any, right: Any) -> bool:
    (tensors, values), (expected, others) = left, right
    same = set(tensors) == set(expected) and values == others
    return same and all(tensors[k].dtype == v.dtype and torch.equal(tensors[k], v) for k, v in expected.items())


def _where(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"


def _raise_timeout(*_: object) -> None:
    raise TimeoutError(f"not read within {SECONDS} seconds")
