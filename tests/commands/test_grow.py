"""Runs that are grown from their folders into runs of their own, which train on."""

import shutil
import signal

import pytest
import torch
from small_runs import StopAt, best, image_folder, quick, same_runs

import skipway as sw
from skipway.cli.app import app
from skipway.commands import grow as grow_module
from skipway.commands.grow import grow_run, parse_blocks
from skipway.errors import InputError, Interrupted, StorageError
from skipway.report import html
from skipway.runs.train_run import train
from skipway.training import checkpoint
from skipway.utils.stop_signals import StopFlag

GROWN = {"grow": "resnet20:1,resnet32:1,resnet44:1", "model": "auto", "epochs": 3}
KEPT = ("ema", 0.9), ("optimizer", "adamw")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("grown") / "kinds")


@pytest.fixture(scope="module")
def straight(data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        return quick(data, data.parent / "runs", name="straight", **GROWN, **dict(KEPT)).path


@pytest.fixture
def short(data, tmp_path):
    """A run of two epochs with an average and AdamW, a copy of its own for each test."""
    if not (kept := data.parent / "runs" / "short").exists():
        quick(data, data.parent / "runs", name="short", **dict(KEPT))
    shutil.copytree(kept, tmp_path / "short")
    return tmp_path / "short"


def state_of(folder):
    return checkpoint.load_checkpoint(folder / "weights" / "last").state


@pytest.mark.parametrize(
    "how, name, layers, widths",
    [
        ({"to": "resnet32"}, "resnet32", [5, 5, 5], [16, 32, 64]),
        ({"blocks": {"stage2": 2}}, "resnet20", [3, 5, 3], [16, 32, 64]),
        ({"factor": 1.5}, "resnet20", [3, 3, 3], [24, 48, 96]),
    ],
)
def test_a_run_is_grown_into_one_that_trains_on(short, tmp_path, how, name, layers, widths):
    before = {p: p.read_bytes() for p in short.rglob("*") if p.is_file()}
    grown = grow_run(short, **how)
    assert (
        grown.path.parent == short.parent and grown.network == name and grown.status == "finished" and grown.epochs == 2
    )
    assert before == {p: p.read_bytes() for p in short.rglob("*") if p.is_file()}, "the old run has changed"
    old, new = sw.load(short), sw.load(grown.path)
    assert new.plan["layers"] == layers and new.plan["widths"] == widths and new.spec == old.spec
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(new(x), old(x), rtol=0, atol=0 if "factor" not in how else 1e-5)
    assert grown.difference == 0 or ("factor" in how and grown.difference < 1e-5 * grown.largest)
    kept = state_of(grown.path)
    assert kept["state"] == state_of(short)["state"] and kept["grown"][0]["to"]["layers"] == layers
    tensors = checkpoint.load_checkpoint(grown.path / "weights" / "last").tensors
    assert {"average.n_averaged", "optimizer.stem.conv.weight.exp_avg_sq"} <= tensors.keys()
    parameters = dict(new.named_parameters())
    for key, value in tensors.items():
        prefix, _, rest = key.partition(".")
        path, _, leaf = rest.rpartition(".")
        if prefix == "optimizer" and leaf != "step":
            assert value.shape == parameters[path].shape, key
    run = train(resume=grown.path, epochs=4)
    assert len(run.history) == 4 and run.metrics["grown"] == kept["grown"]
    assert (short.parent / "last").resolve() == grown.path.resolve()


def test_a_run_grown_in_the_middle_of_an_epoch_goes_on_there(data, tmp_path):
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", stop=StopAt(61 + 2))
    grown = grow_run(tmp_path / "cut", "resnet32", output=tmp_path / "elsewhere", name="bigger")
    assert grown.path == tmp_path / "elsewhere" / "bigger" and grown.status == "running"
    assert state_of(grown.path)["state"]["batch"] > 0 and not (grown.path / "weights" / "best.safetensors").exists()
    assert str(grown).endswith(f"continue with skipway train --resume {grown.path}")
    one = train(resume=grown.path)
    shutil.rmtree(one.path)
    again = train(resume=grow_run(tmp_path / "cut", "resnet32", output=tmp_path / "elsewhere", name="bigger").path)
    assert len(again.history) == 2 and best(again.path).keys() == sw.load(again.path).state_dict().keys()


def test_a_grown_run_resumes_exactly(short, tmp_path):
    grown = grow_run(short, "resnet32").path
    shutil.copytree(grown, tmp_path / "other" / grown.name)
    whole = train(resume=grown, epochs=4)
    with pytest.raises(Interrupted):
        train(resume=tmp_path / "other" / grown.name, epochs=4, stop=StopAt(61 + 4))
    assert same_runs(whole.path, train(resume=tmp_path / "other" / grown.name).path)


def test_the_command_line_grows_a_run_and_shows_the_proof(short, capsys):
    app(["grow", str(short), "--blocks", "stage1=1,stage3=2", "--name", "bigger"], result_action="return_value")
    said = capsys.readouterr().out
    assert "grown to resnet20, " in said and "largest change of an output: 0 (largest" in said
    assert f"skipway train --resume {short.parent / 'bigger'} --epochs 4" in said


def test_what_a_run_cannot_grow_to_is_refused(short, data, tmp_path, straight):
    for options in ({}, {"to": "resnet32", "factor": 2}):
        with pytest.raises(InputError, match="cannot grow: expected exactly one of --to NAME"):
            grow_run(short, **options)
    with pytest.raises(InputError, match="cannot grow to resnet50"):
        grow_run(short, "resnet50")
    with pytest.raises(InputError, match="is not a run folder"):
        grow_run(data, "resnet32")
    with pytest.raises(InputError, match="holds a run already"):
        grow_run(short, "resnet32", name="short")
    assert not (short.parent / "kinds-resnet50").exists()
    for text in ("stage2", "stage2=x", "stage2=1;stage3=1", "=1", "stage2=1,", "", "stage1=1,stage1=2"):
        with pytest.raises(InputError, match="invalid --blocks: expected each stage once with a number"):
            parse_blocks(text)
    assert parse_blocks("stage2=4,3=2") == {"stage2": 4, "3": 2}
    shutil.rmtree(short / "weights" / "last")
    with pytest.raises(InputError, match="expected a checkpoint in weights/last, got none"):
        grow_run(short, "resnet32")


def test_a_run_that_is_still_to_grow_by_itself_is_left_to_it(data, tmp_path, straight):
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", stop=StopAt(61 + 1), **GROWN)
    with pytest.raises(InputError, match="its growth plan .* is not finished"):
        grow_run(tmp_path / "cut", "resnet56")
    assert grow_run(straight, "resnet56", output=tmp_path).network == "resnet56"


def test_the_best_weights_of_a_smaller_network_grow_by_as_much(data, tmp_path):
    run = quick(data, tmp_path, name="run", **(GROWN | {"grow": "resnet20:1,resnet32:1", "epochs": 2}))
    early = grow_run(shallow_best(run.path, data, tmp_path), blocks={"stage1": 1})
    assert sw.load(early.path).plan["layers"] == [4, 3, 3]
    assert train(resume=early.path, epochs=3).metrics["epochs"] == 3


def shallow_best(path, data, tmp_path):
    """The run with the best weights of its first network, from before it grew."""
    first = quick(data, tmp_path, name="first", epochs=1).path / "weights" / "best.safetensors"
    tensors, header = checkpoint.load_weights(first)
    own = path / "weights" / "best.safetensors"
    checkpoint.save_weights(own, tensors, {**header, "metrics": checkpoint.load_weights(own)[1]["metrics"]})
    return path


def test_a_folder_with_files_in_it_is_not_written_into(short):
    (short.parent / "mine").mkdir()
    (short.parent / "mine" / "results.csv").write_text("kept")
    with pytest.raises(InputError, match="cannot start a run in .*expected a new or empty folder"):
        grow_run(short, "resnet32", name="mine")
    assert (short.parent / "mine" / "results.csv").read_text() == "kept"


def test_a_run_of_the_default_network_and_optimizer_is_widened(data, tmp_path):
    run = train(data, output=tmp_path, epochs=1, threads=1)
    assert run.metrics["resolved"]["optimizer"] == "muon"
    grown = grow_run(run.path, factor=2)
    assert len(train(resume=grown.path, epochs=2).history) == 2


def test_networks_of_other_layers_are_refused_before_training(data, tmp_path):
    with pytest.raises(InputError, match="which changes the layers at"):
        train(data, output=tmp_path, grow="wide_resnet40_1:1,wide_resnet40_2:1")


def test_a_run_stopped_by_the_clock_says_what_it_needs(short):
    kept = checkpoint.load_checkpoint(short / "weights" / "last")
    late = kept.state | {"state": kept.state["state"] | {"status": "stopped by the time limit"}}
    checkpoint.save_checkpoint(short / "weights" / "last", kept.step, kept.tensors, late)
    assert "(set another --time-limit or --patience: the run was" in str(grow_run(short, "resnet32"))


class Killed(BaseException):
    """As far as files go, the death of the process: nothing is tidied up."""


STEPS = ("write_file", "write_results", "save_weights", "save_checkpoint", "write_recipe", "place_run_folder")


@pytest.mark.parametrize(
    "step, fault",
    [*((step, Killed()) for step in STEPS), (STEPS[3], StorageError("no space")), (STEPS[2], KeyboardInterrupt())],
)
def test_a_grow_that_fails_or_is_killed_leaves_no_half_of_a_run(short, monkeypatch, step, fault):
    def fail(*_, **__):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(f"skipway.commands.grow.{step}", fail)
        if isinstance(fault, Killed):
            patch.setattr("skipway.runs.run_folder.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(type(fault)):
            grow_run(short, "resnet32", name="bigger")
    left = [p.name for p in short.parent.iterdir() if p != short]
    assert len(left) == isinstance(fault, Killed) and all(name.startswith(".tmp-") for name in left)
    grown = grow_run(short, "resnet32", name="bigger")
    assert not grown.is_found and sorted(p.name for p in short.parent.iterdir()) == ["bigger", "last", "short"]


def test_a_grow_that_was_killed_when_it_was_done_is_complete_and_says_so(short, monkeypatch):
    def fail(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("skipway.commands.grow.point_last", fail)
        with pytest.raises(Killed):
            grow_run(short, "resnet32", name="bigger")
    before = {p: p.read_bytes() for p in (short.parent / "bigger").rglob("*") if p.is_file()}
    found = grow_run(short, "resnet32", name="bigger")
    assert found.is_found and "bigger after 2 epochs, already created by an earlier call; continue with" in str(found)
    assert before == {p: p.read_bytes() for p in found.path.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="holds a run already"):
        grow_run(short, "resnet44", name="bigger")
    assert len(train(resume=found.path, epochs=3).history) == 3
    with pytest.raises(InputError, match="holds a run already"):
        grow_run(short, "resnet32", name="bigger")


def test_a_signal_after_the_grown_run_is_written_comes_too_late(short, monkeypatch):
    stop = StopFlag()
    stop.interrupts = True
    placed = grow_module.place_run_folder
    monkeypatch.setattr(
        grow_module, "place_run_folder", lambda *a: [signal.raise_signal(signal.SIGTERM), placed(*a)][1]
    )
    with stop:
        grown = grow_run(short, "resnet32", name="bigger", stop=stop)
    assert stop.requested and (grown.path / "config.yaml").is_file()


def test_a_grown_run_takes_the_place_of_what_a_killed_start_left(short):
    folder = short.parent / "bigger"
    folder.mkdir()
    (folder / ".lock").write_text("")
    (folder / ".tmp-probe-0123456789abcdef-999999999").write_text("")
    assert sorted(p.name for p in grow_run(short, "resnet32", name="bigger").path.iterdir())[0] == "config.yaml"


def test_another_network_is_offered_growth_or_a_beginning_with_these_weights(short):
    with pytest.raises(InputError, match="skipway grow.*--pretrained"):
        train(resume=short, model="resnet56")
