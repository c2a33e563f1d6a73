"""How signals flow while a run is trained: measured and drawn after every epoch, with the training as it is without."""

import json
import shutil

import numpy as np
import pytest
import torch
from small_runs import StopAt, Words, image_folder, quick, same_runs

import skipway as sw
from skipway.commands.compare import compare
from skipway.data.sample_order import Shard
from skipway.data.tables.loader import RowBatches
from skipway.errors import InputError, Interrupted
from skipway.runs.train_run import train


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    base = tmp_path_factory.mktemp("watched")
    return quick(image_folder(base / "kinds"), base / "runs", name="plain", optimizer="adamw", drop_path=0.2).path


@pytest.fixture
def data(plain):
    return plain.parent.parent / "kinds"


@pytest.fixture(scope="module")
def watched(plain):
    return quick(plain.parent.parent / "kinds", plain.parent, name="watched", epochs=1, watch=True).path


def flows(run):
    return json.loads((run / "flow.json").read_text())["flows"]


def test_the_flow_is_taken_before_the_first_step_and_after_every_epoch(plain, data, tmp_path):
    said = Words()
    run = quick(data, tmp_path, said, name="seen", optimizer="adamw", drop_path=0.2, watch=True)
    assert same_runs(plain, run.path) and not (plain / "flow.json").exists()
    found = flows(run.path)
    assert list(found) == ["before training", "after epoch 1", "after epoch 2"]
    assert {block["added"] for block in found["before training"]["blocks"]} == {0.0}
    sizes = [np.mean([block["added"] for block in f["blocks"]]) for f in found.values()]
    assert 0 < sizes[1] and sizes[1] != sizes[2]
    assert "flow: 18 of 20 layers get no gradient in this step" in said
    assert "<h3>Signal flow over training</h3>" in run.report.read_text()
    assert "all options are equal" in str(compare([plain, run.path], tmp_path / "both.png"))


@pytest.mark.parametrize("at", [61 + 1, 61 + 4])
def test_a_run_that_goes_on_is_watched_on(data, tmp_path, at):
    whole = quick(data, tmp_path, name="whole", watch=True)
    with pytest.raises(Interrupted):
        quick(data, tmp_path, name="cut", watch=True, stop=StopAt(at))
    cut = train(resume=tmp_path / "cut")
    assert same_runs(whole.path, cut.path) and flows(whole.path) == flows(cut.path)


def test_a_run_may_be_watched_from_where_it_goes_on(plain, tmp_path, data):
    run = quick(data, tmp_path, name="longer", epochs=1)
    train(resume=run.path, epochs=2, watch=True)
    assert list(flows(run.path)) == ["after epoch 2"]


def test_what_grows_on_the_way_has_more_blocks_from_then_on(data, tmp_path):
    run = quick(data, tmp_path, grow="resnet20:1,resnet32:1", model="auto", watch=True)
    assert [len(f["blocks"]) for f in flows(run.path).values()] == [9, 9, 15]


def test_a_run_on_a_table_is_watched_too(tmp_path):
    rows = ["a,b,kind"] + [f"{i % 7},{i % 5},{'high' if i % 7 > 3 else 'low'}" for i in range(80)]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    run = train(tmp_path / "t.csv", target="kind", epochs=1, output=tmp_path, watch=True)
    assert list(flows(run.path)) == ["before training", "after epoch 1"] and flows(run.path)["after epoch 1"]["blocks"]


def test_split_weights_cannot_be_watched(data, tmp_path):
    with pytest.raises(InputError, match="cannot combine --watch with --fsdp: no process has all weights. Drop one"):
        sw.train(data, output=tmp_path, watch=True, fsdp=True)
    assert not list(tmp_path.iterdir())


def test_where_there_is_one_validation_sample_training_ones_are_taken(tmp_path):
    rows = ["a,kind"] + [f"{i % 7},{'high' if i % 7 > 3 else 'low'}" for i in range(40)]
    for split, part in (("train", rows), ("val", rows[:2])):
        (tmp_path / f"{split}.csv").write_text("\n".join(part))
    run = train(tmp_path, target="kind", epochs=1, output=tmp_path / "runs", watch=True)
    assert len(flows(run.path)) == 2


def test_a_lack_of_memory_ends_the_watching_alone(data, tmp_path, monkeypatch):
    def starved(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("skipway.runs.signal_flow_callback.flow", starved)
    said = Words()
    run = quick(data, tmp_path, said, epochs=1, watch=True)
    assert "not enough memory to measure signal flow, so --watch is off" in said and len(run.history) == 1
    assert not (run.path / "flow.json").exists() and run.metrics["epochs"] == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1, "flows": {"before training": 3, "after epoch 1": {"blocks": [4], "layers": []}}}',
        '{"schema": 1, "flows": 3}',
        '{"schema": 1}',
        '{"schema": 1, "flows": {"bef',
        "[1]",
    ],
)
def test_a_damaged_file_of_flows_stops_nothing(watched, tmp_path, text):
    run = shutil.copytree(watched, tmp_path / "run")
    (run / "flow.json").write_text(text)
    train(resume=run, epochs=2)
    assert list(flows(run)) == ["after epoch 2"]


def test_a_process_of_several_watches_the_same_samples_as_one():
    x, y = np.arange(40, dtype=np.float32).reshape(20, 2), np.arange(20)
    whole, part = (RowBatches(x, y, np.arange(20), 4, shard=shard).some(7) for shard in (Shard(0, 1), Shard(1, 2)))
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=True))
    assert whole[1].tolist() == [0, 2, 5, 8, 11, 14, 17]
