import copy
import random
import shutil

import pytest
from processes import run_python
from small_runs import Words, image_folder, quick

import skipway as sw
from skipway.commands.export import export_run
from skipway.commands.grow import grow_run
from skipway.commands.probe import probe_run
from skipway.commands.summary import summarize
from skipway.errors import InputError
from skipway.runs.checkpoint_state import read_checkpoint
from skipway.runs.train_run import train
from skipway.training.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("states")
    image_folder(base / "kinds", 12)
    quick(base / "kinds", base / "runs", name="run", epochs=2)
    quick(base / "kinds", base / "runs", name="other", epochs=2, seed=7)
    return base


@pytest.fixture
def run(base, tmp_path, monkeypatch):
    monkeypatch.chdir(base)
    return shutil.copytree(base / "runs" / "run", tmp_path / "run")


ODD = [None, True, -1, 1.5, 10**30, "", "x", "../x", [], {}, [1], {"a": 1}]


def places(values, path=()):
    """The path of every value inside of others."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(values, path, odd):
    values = copy.deepcopy(values)
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    if odd is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = odd
    return values


def test_a_whole_checkpoint_with_an_odd_state_is_refused_in_one_line_or_can_be_used(run, tmp_path):
    last, draw, refused = run / "weights" / "last", random.Random(0), 0
    checkpoint = load_checkpoint(last)
    paths = list(places(checkpoint.state))
    for number, path in enumerate([("state",), ("state", "best"), ("settings", "lr"), *draw.sample(paths, 60)]):
        folder = tmp_path / f"last-{number}"
        state = changed(checkpoint.state, path, draw.choice([*ODD, KeyError]))
        save_checkpoint(folder, checkpoint.step, {}, state)
        try:
            read_checkpoint(folder)
        except InputError as error:
            assert "state.json: expected the state of a run, got an invalid one" in str(error)
            assert "\n" not in str(error) and len(str(error)) < 600
            refused += 1
    assert refused > 30
    assert read_checkpoint(last).state == checkpoint.state


@pytest.mark.parametrize(
    "path, odd",
    [
        (("settings", "label_smoothing"), {"a": 1}),
        (("settings", "lr"), None),
        (("state", "history"), [1, 2]),
        (("state", "history", 0, "seconds"), "x"),
        (("state", "best", "epoch"), "x"),
        (("state", "epoch"), KeyError),
        (("recipe",), None),
        (("device",), KeyError),
        (("plan", "name"), {}),
    ],
)
def test_an_odd_state_is_no_crash_of_resume_and_grow(run, path, odd):
    last = run / "weights" / "last"
    checkpoint = load_checkpoint(last)
    shutil.rmtree(last)
    save_checkpoint(last, checkpoint.step, checkpoint.tensors, changed(checkpoint.state, path, odd))
    for resume in (lambda: train(resume=run, epochs=3), lambda: grow_run(run, "resnet32")):
        with pytest.raises(InputError, match="cannot read the checkpoint .*: expected the state of a run, got an inv"):
            resume()


def test_weights_of_another_epoch_or_run_are_refused(run, base):
    best = run / "weights" / "best.safetensors"
    tensors, header = load_weights(best)
    epoch = header["metrics"]["epoch"]
    save_weights(best, tensors, {**header, "metrics": {**header["metrics"], "epoch": epoch - 1}})
    with pytest.raises(
        InputError, match=rf"expected weights of epoch {epoch}, the best epoch of the run, got weights of epoch"
    ):
        train(resume=run)
    shutil.copy(base / "runs" / "other" / "weights" / "best.safetensors", best)
    with pytest.raises(InputError, match="got weights of the same epoch of another run|got weights of epoch"):
        train(resume=run)
    words = Words()
    assert train(resume=run, epochs=3, console=words).metrics["best_epoch"] == 3
    assert f"best.safetensors does not hold the weights of epoch {epoch}" in words
    best.unlink()
    with pytest.raises(InputError, match=r"best.safetensors: expected a file, got nothing"):
        train(resume=run)


USES = {
    "load": lambda run, base: sw.load(run),
    "file": lambda run, base: sw.load(run / "weights" / "best.safetensors"),
    "predict": lambda run, base: sw.predict(run, base / "kinds" / "ant"),
    "evaluate": lambda run, base: sw.evaluate(run, base / "kinds"),
    "export": lambda run, base: export_run(run, "pt2"),
    "probe": lambda run, base: probe_run(base / "runs" / "run", run, only=["lesion"]),
    "summary": lambda run, base: summarize(str(run)),
    "grow": lambda run, base: grow_run(run, "resnet32"),
    "pretrained": lambda run, base: quick(base / "kinds", run.parent / "out", pretrained=str(run)),
}


@pytest.mark.parametrize("use", USES)
def test_every_use_of_a_run_refuses_weights_that_are_not_its_best(run, base, use):
    best = run / "weights" / "best.safetensors"
    expected = "expected weights of epoch ., the best epoch of the run, got "
    tensors, header = load_weights(best)
    foreign = base / "runs" / "other" / "weights" / "best.safetensors"
    shutil.copy(foreign, best)
    with pytest.raises(InputError, match=f"{expected}weights of (the same epoch of another run|epoch .)"):
        USES[use](run, base)
    if use in ("load", "file"):
        save_weights(best, tensors, {**header, "metrics": {**header["metrics"], "epoch": 0}})
        with pytest.raises(InputError, match=f"{expected}weights of epoch 0. Restore the original file, or move"):
            USES[use](run, base)
        sw.load(foreign).save(run.parent / "plain.safetensors")
        shutil.copy(run.parent / "plain.safetensors", best)
        with pytest.raises(InputError, match=f"{expected}weights of no run"):
            USES[use](run, base)
        shutil.rmtree(run / "weights" / "last")  # without a history there is nothing to compare with
        assert USES[use](run, base).plan == sw.load(foreign).plan


def test_weights_of_the_epoch_that_is_just_over_belong_to_a_run_that_trains(run):
    best, last = run / "weights" / "best.safetensors", run / "weights" / "last"
    tensors, header = load_weights(best)
    checkpoint = load_checkpoint(last)
    save_weights(best, tensors, {**header, "metrics": {**header["metrics"], "epoch": 3}})
    with pytest.raises(InputError, match="got weights of epoch 3"):
        sw.load(run)
    state = changed(checkpoint.state, ("state", "status"), "running")
    save_checkpoint(last, checkpoint.step + 1, checkpoint.tensors, state)
    assert sw.load(run).plan == header["plan"]
    for path, odd in (
        (("state", "best"), []),
        (("state", "best"), {"a": 1}),
        (("state",), 3),
        (("state", "epoch"), "x"),
    ):
        save_checkpoint(last, checkpoint.step + 2, {}, changed(checkpoint.state, path, odd))
        assert sw.load(run).plan == header["plan"]  # a checkpoint that cannot be used refuses nothing else


def test_an_edit_of_config_yaml_is_reported(run):
    words = Words()
    train(resume=run, console=words)
    assert "config.yaml was edited" not in words
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("save_every: 120.0", "save_every: 60.0"))
    train(resume=run, console=words)
    assert "config.yaml was edited since the checkpoint: save_every: 60.0 here, 120.0 in the checkpoint" in words


def test_weights_of_equal_runs_are_equal_in_bytes_in_every_process(base, tmp_path):
    code = (
        "import sys; from skipway.training.checkpoint import load_weights, save_weights\n"
        "save_weights(sys.argv[2], *load_weights(sys.argv[1]))"
    )
    best = base / "runs" / "run" / "weights" / "best.safetensors"
    for number in range(2):  # the order of a hash table is another one in each
        assert run_python(code, best, tmp_path / f"{number}.safetensors").returncode == 0
        assert (tmp_path / f"{number}.safetensors").read_bytes() == best.read_bytes()
    again = quick(base / "kinds", tmp_path, name="again", epochs=2)
    assert (again.path / "weights" / "best.safetensors").read_bytes() == best.read_bytes()
