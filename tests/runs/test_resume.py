import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import HANG, outputs_of, run, start
from small_runs import QUICK, StopAt, Words, image_folder, numbers, quick, same_runs, table

import skipway as sw
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs.train_run import train
from skipway.training import checkpoint
from skipway.utils import devices
from skipway.utils.atomic_files import Lock

RICH = {"ema": 0.9, "grad_accum_steps": 2, "optimizer": "adamw", "drop_path": 0.2}
DECODED = 1 + 60  # polls before the first step: one at the start, one an image


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A place with data, a whole run, and one that was stopped in its second epoch."""
    base = tmp_path_factory.mktemp("base")
    image_folder(base / "kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        quick("kinds", "runs", name="whole")
        quick("kinds", "runs", name="uncut", **RICH)
        with pytest.raises(Interrupted):
            quick("kinds", "runs", name="half", stop=StopAt(DECODED + 6))
    state = checkpoint.load_checkpoint(base / "runs" / "half" / "weights" / "last").state["state"]
    assert state["epoch"] == 1 and state["batch"] > 0
    return base


@pytest.fixture
def place(base, tmp_path):
    return Path(shutil.copytree(base, tmp_path / "place", symlinks=True))


def test_a_resumed_run_equals_one_that_never_stopped(place, base):
    words = Words()
    run = train(resume=place / "runs" / "half", console=words)
    assert same_runs(run.path, place / "runs" / "whole")
    assert "resuming" in words and "not bit-identical" not in words
    files = [{str(p.relative_to(f)) for p in f.rglob("*")} for f in (run.path, place / "runs" / "whole")]
    assert {f for f in files[0] if "step-" not in f} == {f for f in files[1] if "step-" not in f}
    before, after = ((f / "runs" / "half" / "config.yaml").read_text() for f in (base, place))
    assert before == after
    tables = ("per_class.csv", "confusion_matrix.csv", "predictions.csv", "splits.csv", "skipped.csv")
    assert all((run.path / t).read_text() == (place / "runs" / "whole" / t).read_text() for t in tables)


@pytest.mark.parametrize("at", [0, 30, *(DECODED + polls for polls in (0, 2, 5, 6, 9))])
def test_a_run_stopped_anywhere_and_resumed_equals_one_that_never_stopped(place, monkeypatch, at):
    monkeypatch.chdir(place)
    try:
        quick("kinds", "runs", name="cut", stop=StopAt(at), **RICH)
    except Interrupted:
        if Path("runs/cut").exists():
            train(resume="runs/cut")
        else:
            quick("kinds", "runs", name="cut", **RICH)
    assert same_runs(place / "runs" / "cut", place / "runs" / "uncut")


class Speckle(torch.nn.Module):
    """A transform of somebody else's."""

    def __init__(self, amount):
        super().__init__()
        self.amount = amount

    def extra_repr(self):
        return f"amount={self.amount}"

    def forward(self, x):
        return x + self.amount * torch.randn_like(x)


def test_a_transform_of_the_users_own_is_asked_for_again_and_resumes_exactly(place):
    whole = quick(place / "kinds", place / "runs", name="speckled", transform=Speckle(0.1))
    assert "Speckle(amount=0.1)" in whole.metrics["augmentation"]
    assert not same_runs(whole.path, place / "runs" / "whole")
    with pytest.raises(Interrupted):
        quick(place / "kinds", place / "runs", name="cut", transform=Speckle(0.1), stop=StopAt(DECODED + 6))
    cut = place / "runs" / "cut"
    with pytest.raises(
        InputError, match=r"cannot change transform when resuming: expected Speckle\(amount=0.1\), got none. Pass"
    ):
        train(resume=cut)
    with pytest.raises(InputError, match=r"expected Speckle\(amount=0.1\), got Speckle\(amount=0.2\). Pass the same"):
        train(resume=cut, transform=Speckle(0.2))
    with pytest.raises(InputError, match="expected none, got sorted. Pass the same transform to skipway.train"):
        train(resume=place / "runs" / "half", transform=sorted)
    assert same_runs(train(resume=cut, transform=Speckle(0.1)).path, whole.path)


def test_a_transform_that_cannot_be_one_is_refused(place):
    with pytest.raises(InputError, match=r"cannot use transform: expected a callable on images \(B, C, H, W\), got 3"):
        quick(place / "kinds", place / "runs", transform=3)
    with pytest.raises(
        InputError, match="cannot use transform with wine: expected images, got a table. Drop transform."
    ):
        quick("wine", place / "runs", model="auto", transform=Speckle(0.1))


def test_more_epochs_go_on_for_longer_and_that_is_said(place):
    words = Words()
    run = train(resume=place / "runs" / "whole", epochs=3, console=words)
    assert run.metrics["epochs"] == 3 and len(run.history) == 3 and run.metrics["status"] == "finished"
    assert (
        "not bit-identical to an uninterrupted run: epochs changed from 2 to 3, which stretches the schedule" in words
    )
    assert "epochs: 3" in (run.path / "config.yaml").read_text()


def test_fewer_epochs_than_were_done_are_refused(place):
    with pytest.raises(InputError, match="expected --epochs of at least 2, which are done, got 1. Increase --epochs"):
        train(resume=place / "runs" / "whole", epochs=1)


def test_a_finished_run_is_judged_and_reported_again(place):
    for name in ("metrics.json", "predictions.csv", "confusion_matrix.csv"):
        (place / "runs" / "whole" / name).unlink()
    words = Words()
    run = train(resume=place / "runs" / "whole", console=words)
    assert (
        "already finished after 2 epochs: only evaluated and reported again. To continue training, add --epochs 12"
        in words
    )
    assert numbers(run.path)["epochs"] == 2 and table(run.path / "predictions.csv")


def test_a_run_that_patience_or_time_ended_stays_ended_unless_told_otherwise(place):
    quick(place / "kinds", place / "runs", name="timed", time_limit=0.0)
    words = Words()
    run = train(resume=place / "runs" / "timed", console=words)
    assert run.metrics["epochs"] == 1 and "already stopped by the time limit after 1 epoch: only" in words
    again = train(resume=place / "runs" / "timed", time_limit=1000.0)
    assert again.metrics["epochs"] == 2 and again.metrics["status"] == "finished"


def test_a_run_without_a_checkpoint_starts_from_the_beginning(place):
    shutil.rmtree(place / "runs" / "half" / "weights")
    words = Words()
    run = train(resume=place / "runs" / "half", console=words)
    assert "no checkpoint yet: starting from the beginning" in words
    assert same_runs(run.path, place / "runs" / "whole")


@pytest.mark.parametrize("what", ["", "kinds", "absent"])
def test_a_folder_that_is_no_run_is_refused(place, what):
    with pytest.raises(InputError, match="is not a run folder: expected a config.yaml in it, got none. Pass a folder"):
        train(resume=place / what)
    assert not (place / "absent").exists() and not (place / "kinds" / ".lock").exists()


def test_an_option_of_the_run_cannot_change(place):
    with pytest.raises(
        InputError, match="resuming: batch_size was 16, got 8; lr was unset, got 0.5. Drop --batch-size and"
    ):
        train(resume=place / "runs" / "half", lr=0.5, batch_size=8)
    with pytest.raises(InputError, match="unknown option 'epoch'"):
        train(resume=place / "runs" / "half", epoch=5)
    assert same_runs(train(resume=place / "runs" / "half", seed=0, batch_size=16).path, place / "runs" / "whole")


def test_a_config_that_was_edited_is_refused_with_the_fields(place):
    config = place / "runs" / "half" / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 16", "batch_size: 8"))
    with pytest.raises(InputError, match="was edited since the checkpoint .batch_size: 8 here, 16 in the checkpoint"):
        train(resume=place / "runs" / "half")


def test_changed_images_are_refused_with_the_list(place):
    half, ants = place / "runs" / "half", place / "kinds" / "ant"
    config = (half / "config.yaml").read_bytes()
    edits = {
        "1 added: ant/99.png": lambda: (ants / "99.png").write_bytes(other),
        "1 removed: ant/00.png": lambda: (ants / "00.png").unlink(),
        "1 renamed: ant/01.png to ant/zz.png": lambda: (ants / "01.png").rename(ants / "zz.png"),
        "1 edited: ant/02.png": lambda: (ants / "02.png").write_bytes(other),
    }
    from PIL import Image

    Image.new("L", (8, 8), 7).save(place / "other.png")
    other = (place / "other.png").read_bytes()
    for said, edit in edits.items():
        shutil.copytree(place / "kinds", place / "kept")
        edit()
        with pytest.raises(InputError, match="expected the same images .*, or add --allow-changed-data") as caught:
            train(resume=half, epochs=3)
        assert said in str(caught.value) and "\n" not in str(caught.value)
        shutil.rmtree(place / "kinds")
        (place / "kept").rename(place / "kinds")
    assert (half / "config.yaml").read_bytes() == config
    (ants / "02.png").write_bytes(other)
    words = Words()
    run = train(resume=half, allow_changed_data=True, console=words)
    assert "warning: the images have changed (1 edited: ant/02.png" in words and run.metrics["epochs"] == 2


def test_other_classes_are_refused(place):
    (place / "kinds" / "ant").rename(place / "kinds" / "wasp")
    with pytest.raises(
        InputError, match="cannot resume: expected the classes ant, bee, cow, got the classes bee, cow, wasp. Restore"
    ):
        train(resume=place / "runs" / "half", allow_changed_data=True)


def test_other_threads_and_precision_are_said(place):
    words = Words()
    train(resume=place / "runs" / "half", threads=2, precision="bf16", console=words)
    said = "not bit-identical to an uninterrupted run: threads changed from 1 to 2; precision changed from fp32 to bf16"
    assert said in words


def test_what_the_machine_decided_stays_decided(place, monkeypatch):
    monkeypatch.setattr(devices, "available_threads", lambda: devices.ThreadCount(2, "cores"))
    monkeypatch.setattr(devices, "fastest_threads", lambda available: available)
    quick(place / "kinds", place / "runs", name="auto", epochs=1, threads=None, precision="auto")
    state = checkpoint.load_checkpoint(place / "runs" / "auto" / "weights" / "last").state
    monkeypatch.setattr(devices, "available_threads", lambda: devices.ThreadCount(1, "cores"))
    monkeypatch.setattr("skipway.runs.defaults.has_bf16", lambda device: state["precision"] != "bf16")
    words = Words()
    run = train(resume=place / "runs" / "auto", epochs=2, console=words)
    assert run.metrics["resolved"]["precision"] == state["precision"] and "threads changed" not in words
    assert state["threads"] == checkpoint.load_checkpoint(run.path / "weights" / "last").state["threads"] == 2
    assert "threads: null" in (run.path / "config.yaml").read_text()


def test_another_torch_and_processor_are_said(place, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OLD")
    words = Words()
    train(resume=place / "runs" / "half", console=words)
    assert "processor changed from" in words and "to OLD" in words


def test_a_run_that_moved_goes_on_from_anywhere(place, monkeypatch):
    (place / "work").mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(Interrupted):
        quick("kinds", "runs", name="cut", stop=StopAt(DECODED + 6))
    monkeypatch.chdir(place / "work")
    assert "data: kinds\n" in (place / "runs" / "cut" / "config.yaml").read_text()
    (place / "link").symlink_to("runs")
    run = train(resume=Path("../link/cut"))
    assert same_runs(run.path, place / "runs" / "whole")
    assert "data: kinds\n" in (place / "runs" / "cut" / "config.yaml").read_text()
    (place / "runs").rename(place / "moved")
    monkeypatch.chdir(place / "moved")
    again = train(resume="last", epochs=3)
    assert again.path == Path("cut") and again.metrics["epochs"] == 3
    for path in Path("cut").rglob("*"):
        assert not path.is_file() or str(place).encode() not in path.read_bytes(), path


def test_a_run_called_as_its_data_goes_on(tmp_path):
    run = train("digits", output=tmp_path, name="digits", **{**QUICK, "epochs": 1})
    assert train(resume=run.path, epochs=2).metrics["epochs"] == 2


def test_two_runs_never_write_into_one_folder(place):
    with Lock(place / "runs" / "half"):
        with pytest.raises(InputError, match="another run is using it .process"):
            train(resume=place / "runs" / "half")
        (place / "runs" / "new").mkdir()
    with Lock(place / "runs" / "new"), pytest.raises(InputError, match="another run is using it"):
        quick(place / "kinds", place / "runs", name="new")
    (place / "runs" / "half" / ".lock").write_text(json.dumps({"pid": 1, "host": "gone"}))
    assert train(resume=place / "runs" / "half").metrics["epochs"] == 2


def test_a_damaged_checkpoint_is_passed_over_and_that_is_said(place):
    quick(place / "kinds", place / "runs", name="often", save_every=0)
    last = place / "runs" / "often" / "weights" / "last"
    newest = max(last.glob("step-*")) / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    data[-9] ^= 1
    newest.write_bytes(data)
    words = Words()
    run = train(resume=place / "runs" / "often", console=words)
    assert "skipped a checkpoint: " in words and "checksum" in words
    assert same_runs(run.path, place / "runs" / "whole")


def test_a_damaged_table_of_splits_harms_nothing(place):
    (place / "runs" / "half" / "splits.csv").write_bytes(b"\xff\xfe,")
    (place / "kinds" / "ant" / "00.png").unlink()
    with pytest.raises(InputError, match="expected the same images in .*, got changed ones"):
        train(resume=place / "runs" / "half")


def newest_step(folder):
    return max((int(path.name[5:13]) for path in folder.glob("step-*")), default=0)


@pytest.mark.slow
def test_a_run_killed_at_a_random_moment_ends_in_the_same_bits(place):
    command = [sys.executable, "-m", "skipway", "train"]
    options = [
        "-m",
        "resnet20",
        "--epochs",
        "3",
        "-b",
        "16",
        "--threads",
        "1",
        "--precision",
        "fp32",
        "--save-every",
        "0",
    ]
    process = start(*command, "kinds", *options, "--name", "killed", cwd=place)
    while process.poll() is None and newest_step(place / "runs" / "killed" / "weights" / "last") < 5:
        time.sleep(0.01)
    process.kill()
    outputs_of(process)
    done = run(*command, "--resume", "runs/killed", cwd=place)
    assert done.returncode == 0, done.stderr
    whole = quick(place / "kinds", place / "runs", name="unkilled", epochs=3)
    assert same_runs(place / "runs" / "killed", whole.path)
    assert sw.load(place / "runs" / "killed").plan["name"] == "resnet20"


def test_a_signal_while_training_ends_with_75_and_one_line(place):
    command = [sys.executable, "-m", "skipway", "train"]
    words = ["kinds", "-m", "resnet20", "--epochs", "2000", "-b", "16", "--threads", "1", "--name", "sig"]
    process = start(*command, *words, cwd=place)
    while "1/2000" not in process.stdout.readline():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=HANG)
    assert process.returncode == 75 and len(err.splitlines()) == 1, err
    assert "stopped by SIGTERM after step" in err and "Resume with --resume runs/sig" in err
    train(
        resume=place / "runs" / "sig",
        epochs=checkpoint.load_checkpoint(place / "runs" / "sig/weights/last").state["state"]["epoch"],
    )
