"""Runs that grow on the way, stopped and killed anywhere, with equal weights."""

import json
import shutil

import pytest
from small_runs import StopAt, Words, image_folder, numbers, quick, same_runs, table

import skipway as sw
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs.growth_phases import next_phase, phases
from skipway.runs.recipe import Recipe
from skipway.runs.train_run import train
from skipway.training import checkpoint

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


def state_of(folder):
    return checkpoint.load_checkpoint(folder / "weights" / "last").state


def test_a_run_grows_on_the_way_and_says_so(straight, data, tmp_path):
    said = Words()
    run = quick(data, tmp_path, console=said, **GROWN)
    assert "grown from resnet20 to resnet32: 463,411 parameters, largest output difference 0" in said
    assert "grown from resnet32 to resnet44" in said
    assert [(g["epoch"], g["to"]["name"], g["difference"]) for g in run.metrics["grown"]] == [
        (1, "resnet32", 0.0),
        (2, "resnet44", 0.0),
    ]
    assert state_of(run.path)["plan"]["name"] == "resnet44"
    network = sw.load(run.path)
    assert run.metrics["resolved"]["model"] == network.plan["name"]
    assert run.metrics["parameters"] == sum(p.numel() for p in network.parameters())
    assert repr(network) == json.loads((run.path / "env.json").read_text())["network"]
    assert network.plan["layers"] == {1: [3] * 3, 2: [5] * 3, 3: [7] * 3}[run.metrics["best_epoch"]]
    assert len(table(run.path / "results.csv")) == 3


def test_the_report_of_a_grown_run_tells_where_it_grew(straight, tmp_path, monkeypatch):
    monkeypatch.undo()
    shutil.copytree(straight, tmp_path / "run")
    page = html.write(tmp_path / "run").read_text()
    growth = (
        "After epoch 1 the network grew from resnet20 (3-3-3 blocks) to resnet32 (5-5-5 blocks); its outputs changed by"
    )
    assert growth in page
    assert "Repeat that run first" not in page
    hostile = {"epoch": "<b>", "from": {"name": "<i>", "layers": 1}, "to": {"name": "x", "layers": 2}, "difference": 0}
    metrics = {"schema": 1} | numbers(straight) | {"grown": [3, {"from": 1}, hostile]}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics))
    page = html.write(tmp_path / "run").read_text()
    assert "After epoch &lt;b&gt; the network grew from &lt;i&gt;" in page
    recipe = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(recipe.replace(f"grow: {GROWN['grow']}", "grow: null"))
    assert "Repeat that run first, grow it" in html.write(tmp_path / "run").read_text()


def test_a_grown_run_repeats_and_goes_on_from_its_config(straight, data, tmp_path):
    again = train(config=straight / "config.yaml", output=tmp_path, name="again")
    assert same_runs(straight, again.path)


@pytest.mark.parametrize("at", [6, 7, 12])
def test_stopped_anywhere_it_ends_in_the_weights_of_a_straight_run(straight, data, tmp_path, at):
    first = 1 + 60  # polls before the first step
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", stop=StopAt(first + at), **GROWN, **dict(KEPT))
    run = train(resume=tmp_path / "cut")
    assert same_runs(straight, run.path)
    assert numbers(run.path)["grown"] == numbers(straight)["grown"]


def test_killed_while_it_grows_it_ends_in_the_weights_of_a_straight_run(straight, data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("skipway.runs.growth_phases.grow_to", kill)
        with pytest.raises(Killed):
            quick(data, tmp_path, name="cut", **GROWN, **dict(KEPT))
    before = state_of(tmp_path / "cut")
    assert before["state"]["epoch"] == 1 and before["plan"]["name"] == "resnet20"
    assert same_runs(straight, train(resume=tmp_path / "cut").path)


def test_a_grown_run_trains_on_for_longer_in_its_last_network(straight, tmp_path):
    shutil.copytree(straight, tmp_path / "more")
    run = train(resume=tmp_path / "more", epochs=4)
    assert len(run.history) == 4 and state_of(run.path)["plan"]["name"] == "resnet44"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"grow": "resnet20:1"}, "two or more networks with the epochs of each"),
        ({"grow": "resnet20:1,resnet32"}, "two or more networks with the epochs of each"),
        (
            {"grow": "resnet20:1,resnet32:1", "model": "resnet18"},
            "cannot grow: expected --model resnet20, as in --grow, got 'resnet18'",
        ),
        (
            {"grow": "resnet20:2,resnet32:1", "epochs": 2},
            "cannot grow: expected at least 3 epochs, as in --grow, got 2",
        ),
        ({"grow": "resnet20:1,resnet57:1"}, "unknown architecture 'resnet57'"),
        ({"grow": "resnet20:1,resnet50:1"}, "cannot grow to resnet50"),
        ({"grow": "resnet32:1,resnet20:1"}, "expected more blocks per stage than"),
        ({"grow": "resnet20:1,resnet32:1", "fsdp": True}, "cannot combine --grow with --fsdp: sharded weights"),
    ],
)
def test_a_growth_that_cannot_be_is_refused_before_anything_is_decoded(data, tmp_path, options, words):
    with pytest.raises(InputError, match=words):
        train(data, output=tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_the_epochs_of_a_growth_are_its_stages_and_more_go_to_the_last():
    recipe = Recipe.of({"grow": "resnet20:4,resnet32:4,resnet56:8"})
    assert (recipe.model, recipe.epochs) == ("resnet20", 16)
    assert [tuple(p) for p in phases(recipe)] == [("resnet20", 4), ("resnet32", 8), ("resnet56", 16)]
    longer = Recipe.of(recipe.as_dict() | {"epochs": 20})
    assert next_phase(longer, {"name": "resnet32"}) == (8, "resnet56")
    assert next_phase(longer, {"name": "resnet56"}) == (20, "")
    assert next_phase(Recipe.of({"epochs": 3}), {"name": "resnet56"}) == (3, "")
