import random
import shutil

import pytest
from small_runs import pictures, quick

from skipway.cli import app
from skipway.report import html
from skipway.utils import stop_signals
from skipway.utils.stop_signals import StopFlag

COMMANDS = (
    ["compare", "damaged", "runs/run", "-o", "c.png"],
    ["summary", "damaged"],
    ["train", "--resume", "damaged", "--quiet"],
    ["evaluate", "damaged", "kinds"],
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("damaged")
    pictures(place / "kinds", 6)
    quick(place / "kinds", place / "runs", name="run", epochs=1)
    return place


def damaged(draw, data):
    """The bytes of a file: cut, with some of them changed, or with more behind them."""
    kind, at = draw.randrange(3), draw.randrange(len(data) + 1)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + draw.randbytes(draw.choice([1, 8])) + data[at + 1 :]
    return data + draw.choice([b"\0", b"\xff\xfe", data])


@pytest.mark.parametrize("seed", range(16))
def test_a_damaged_file_of_a_run_is_one_line_and_no_fault_of_ours(place, monkeypatch, capfd, seed):
    draw = random.Random(seed)
    monkeypatch.chdir(place)
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")
    shutil.rmtree("damaged", ignore_errors=True)
    folder = shutil.copytree("runs/run", place / "damaged")
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".csv", ".yaml", ".safetensors"))
    file = draw.choice(files)
    file.write_bytes(damaged(draw, file.read_bytes()))
    with pytest.raises(SystemExit) as ended:
        app.main(list(COMMANDS[seed % len(COMMANDS)]))
    err = capfd.readouterr().err
    assert ended.value.code in (0, 2, 3, 4) and "Traceback" not in err, (file, err)
    assert sum(line.startswith("skipway: ") for line in err.splitlines()) == (ended.value.code != 0)
