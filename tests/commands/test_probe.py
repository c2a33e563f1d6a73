"""A run looked into: values and plots into its folder, several runs side by side, its report with all of them."""

import json
import shutil

import pytest
import torch
from small_runs import image_folder, quick

import skipway as sw
from skipway.cli.app import app
from skipway.commands.probe import probe_run
from skipway.errors import InputError, Interrupted
from skipway.runs.train_run import train
from skipway.utils.stop_signals import StopFlag


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on one set: twenty layers and thirty-two, of an epoch each."""
    base = tmp_path_factory.mktemp("probed")
    image_folder(base / "kinds")
    return [quick(base / "kinds", base / "runs", name=n, model=n, epochs=1).path for n in ("resnet20", "resnet32")]


@pytest.fixture
def run(runs, tmp_path):
    """A copy that the test may write into, as far from the data as the original."""
    shutil.copytree(runs[0], runs[0].parent / tmp_path.name)
    yield runs[0].parent / tmp_path.name
    shutil.rmtree(runs[0].parent / tmp_path.name)


@pytest.mark.rendered
def test_a_run_is_looked_into_and_its_report_shows_it(run):
    found = probe_run(run, samples=6, points=5)
    assert [p.name for p in found.plots] == [
        "diagram.svg",
        "flow.png",
        "lesion.png",
        "landscape.png",
        "landscape_square.png",
    ]
    assert all(p.stat().st_size > 5000 for p in found.plots)
    values = json.loads((run / "depth.json").read_text())
    assert list(values) == ["schema", "diagram", "flow", "lesion", "landscape"]
    assert set(values["flow"]) == {"fresh weights", "trained"} and len(values["flow"]["trained"]["blocks"]) == 9
    assert len(values["lesion"][run.name]["dropped"]) == 9
    assert len(values["landscape"]["landscape"][run.name]["losses"]) == 5
    page = found.report.read_text()
    assert "Diagnostics" in page and "data:image/svg+xml" in page
    assert all(f"<h3>{name}</h3>" in page for name in ("Signal flow", "Block ablation", "Diagram"))


def test_what_is_measured_is_the_network_of_the_run_on_its_validation_images(run):
    found = probe_run(run, only=["lesion"], samples=1000)
    network = sw.load(run)
    rows = [r for r in (run / "splits.csv").read_text().splitlines()[1:] if ",val," in r]
    files = [run.parent.parent / "kinds" / r.split(",")[0] for r in rows]
    right = [p == r.split(",")[1] for p, r in zip(network.predict(files), rows, strict=True)]
    assert found.values["lesion"][run.name]["score"] == pytest.approx(sum(right) / len(right))


def test_several_runs_are_drawn_side_by_side(run, runs):
    found = probe_run(run, runs[1], only=["flow", "landscape"], samples=6, points=3)
    assert list(found.values["landscape"]["landscape"]) == [run.name, "resnet32"]
    assert [len(f["blocks"]) for f in found.values["flow"].values()] == [9, 9, 15, 15]
    again = probe_run(run, run, only=["diagram"])
    assert again.values["diagram"]["plan"]["name"] == "resnet20"


def test_a_run_on_a_table_is_looked_into_too(tmp_path):
    run = train("diabetes", output=tmp_path, epochs=1, threads=1)
    found = probe_run(run.path, only=["lesion", "landscape"], samples=20, points=3)
    cut = next(iter(found.values["lesion"].values()))
    assert cut["measure"] == "loss" and len(cut["dropped"]) == 1


def test_a_run_whose_network_grew_on_the_way_is_looked_into(runs):
    run = train(
        runs[0].parent.parent / "kinds",
        output=runs[0].parent.parent / "grown",
        epochs=2,
        batch_size=16,
        threads=1,
        precision="fp32",
        grow="resnet20:1,resnet32:1",
    )
    found = probe_run(run.path, only=["lesion"], samples=6)
    assert len(next(iter(found.values["lesion"].values()))["dropped"]) in (9, 15)


def test_the_command_line_looks_and_says_where(run, capsys):
    app(["probe", str(run), "--only", "diagram, flow", "--samples", "6"], result_action="return_value")
    said = capsys.readouterr().out
    assert f"plot: {run / 'plots' / 'diagram.svg'}" in said and f"report: {run / 'report.html'}" in said
    assert "18 of 20 layers get no gradient" in said


def test_what_cannot_be_looked_into_is_refused(run, runs, tmp_path):
    with pytest.raises(InputError, match="invalid analysis: expected some of .*, got 'lesions' .did you mean lesion"):
        probe_run(run, only=["lesions"])
    with pytest.raises(InputError, match="expected at least 2 samples and at least 3 points, got 1"):
        probe_run(run, samples=1)
    with pytest.raises(InputError, match="is not a run folder"):
        probe_run(tmp_path)
    other = quick(image_folder(tmp_path / "others", kinds=("cat", "dog")), tmp_path, epochs=1)
    with pytest.raises(InputError, match="cannot compare the runs: expected the same inputs and classes"):
        probe_run(run, other.path)
    stop = StopFlag()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the diagram analysis"):
        probe_run(run, only=["diagram"], stop=stop)


def test_data_that_has_moved_is_found_where_it_is_said_to_be(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "far" / "away" / "run")
    shutil.copytree(runs[0].parent.parent / "kinds", tmp_path / "elsewhere")
    (tmp_path / "far" / "away" / "run" / "config.yaml").write_text(
        (runs[0] / "config.yaml").read_text().replace(str(runs[0].parent.parent / "kinds"), "gone")
    )
    with pytest.raises(InputError):
        probe_run(tmp_path / "far" / "away" / "run", only=["flow"])
    found = probe_run(tmp_path / "far" / "away" / "run", only=["flow"], samples=6, data=str(tmp_path / "elsewhere"))
    assert found.plots


def test_the_rooms_functions_are_functions_whatever_was_imported_before():
    import skipway.probe.signal_flow  # noqa: F401

    network = sw.create_model("resnet20", widths=[4, 4, 4])
    assert len(sw.probe.flow(network, torch.randn(4, 3, 8, 8)).blocks) == 9
    assert sw.probe.diagram(network).startswith("<svg")
