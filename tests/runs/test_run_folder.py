"""The run folder: files of another schema are refused in one line by everything that reads a run."""

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import safe_open
from small_runs import image_folder, quick

import skipway as sw
from skipway.commands.compare import compare
from skipway.commands.export import export_run
from skipway.commands.grow import grow_run
from skipway.commands.probe import probe_run
from skipway.errors import InputError
from skipway.report import html
from skipway.runs import run_folder
from skipway.runs.recipe import Recipe
from skipway.runs.run_folder import read_recipe
from skipway.runs.train_run import train
from skipway.utils.atomic_files import sha256
from skipway.utils.run_schema import SCHEMA


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    base = tmp_path_factory.mktemp("schema")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        return quick(image_folder(base / "kinds"), base, name="run", epochs=1, watch=True).path


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def renumber(path, number):
    """Give a JSON or YAML file another schema number, or none."""
    if path.suffix == ".yaml":
        text = path.read_text()
        line = "" if number is None else f"schema: {number}\n"
        path.write_text(text.replace(f"schema: {SCHEMA}\n", line))
        return
    values = json.loads(path.read_text())
    values.pop("schema")
    path.write_text(json.dumps(values if number is None else {"schema": number, **values}))


def renumber_weights(path, number):
    with safe_open(path, "pt") as file:
        notes = dict(file.metadata())
    notes["written_by"] = json.dumps({"schema": number, "version": "9.9"})
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, notes)


def renumber_checkpoint(folder, number):
    for path in folder.glob("step-*/MANIFEST.json"):
        values = json.loads(path.read_text())
        values.pop("sha256")
        values["schema"] = number
        seal = sha256(json.dumps(values, separators=(",", ":")).encode())
        path.write_text(json.dumps({"sha256": seal, **values}))


def refusal(call):
    """The one line of a refusal."""
    with pytest.raises(InputError, match="expected schema 1, got") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


READERS = {
    "resume": lambda run, tmp_path: train(resume=run),
    "grow": lambda run, tmp_path: grow_run(run, "resnet32"),
    "compare": lambda run, tmp_path: compare([run, run], tmp_path / "c.png"),
    "probe": lambda run, tmp_path: probe_run(run, only=["flow"], samples=4),
    "export": lambda run, tmp_path: export_run(run, "pt2"),
}


@pytest.mark.parametrize("number, got", [(7, "7. Use a newer skipway, or"), (None, "none. Use a run of this")])
@pytest.mark.parametrize("reader", READERS)
def test_a_config_of_another_schema_is_refused_by_every_reader(run, tmp_path, reader, number, got):
    renumber(run / "config.yaml", number)
    message = refusal(lambda: READERS[reader](run, tmp_path))
    assert message.startswith(f"{run / 'config.yaml'}: expected schema 1, got {got}")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize("number", [7, None])
@pytest.mark.parametrize("name", ["metrics.json", "env.json", "config.yaml"])
def test_the_report_refuses_files_of_another_schema(run, monkeypatch, name, number):
    monkeypatch.undo()
    renumber(run / name, number)
    assert refusal(lambda: html.write(run)).startswith(f"{run / name}: expected schema 1, got")


def test_compare_refuses_metrics_of_another_schema(run, tmp_path):
    renumber(run / "metrics.json", 7)
    assert "metrics.json: expected schema 1, got 7" in refusal(lambda: compare([run, run], tmp_path / "c.png"))


def test_weights_of_another_schema_are_refused_by_load_and_predict(run):
    renumber_weights(run / "weights" / "best.safetensors", 7)
    for call in (lambda: sw.load(run), lambda: sw.predict(run, run / "plots"), lambda: sw.evaluate(run, "digits")):
        message = refusal(call)
        assert message.endswith("got 7. Use a newer skipway (9.9 wrote it), or start a new run with this one.")


@pytest.mark.parametrize("call", [lambda run: train(resume=run, epochs=2), lambda run: grow_run(run, "resnet32")])
def test_a_checkpoint_of_another_schema_is_refused_by_resume_and_grow(run, call):
    renumber_checkpoint(run / "weights" / "last", 7)
    assert re.search(r"step-\d+/MANIFEST.json: expected schema 1, got 7. Use a newer", refusal(lambda: call(run)))


def test_a_flow_of_another_schema_is_refused_before_training(run, monkeypatch):
    renumber(run / "flow.json", 7)
    monkeypatch.setattr("skipway.runs.train_phases.fit", lambda *_, **__: pytest.fail("trained"))
    assert refusal(lambda: train(resume=run, epochs=2)).startswith(f"{run / 'flow.json'}: expected schema 1, got 7")


def test_a_recipe_written_by_hand_needs_no_schema_but_has_no_other(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("epochs: 3\n")
    assert Recipe.read(path) == {"epochs": 3}
    path.write_text("schema: 7\nepochs: 3\n")
    assert "mine.yaml: expected schema 1, got 7" in refusal(lambda: train("digits", config=path))
    assert read_recipe(run).epochs == 1


@pytest.mark.parametrize("has_links", [True, False])
def test_windows_gets_a_junction_without_the_right_to_symbolic_links(tmp_path, monkeypatch, has_links):
    junctions = []

    def create_junction(target, link):
        assert Path(target).is_absolute() and Path(target).is_dir()
        junctions.append(link)
        os.symlink(target, link)

    def refuse(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, "A required privilege is not held by the client")

    def replace(source, target):  # Windows does not replace links to folders
        assert not os.path.lexists(target)
        os.rename(source, target)

    monkeypatch.setattr(run_folder, "_IS_WINDOWS", True)
    monkeypatch.setattr(run_folder, "_create_junction", create_junction)
    monkeypatch.setattr(run_folder.os, "replace", replace)
    if not has_links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"name: {name}")
        run_folder.point_last(tmp_path / name)
        assert (tmp_path / "last" / "config.yaml").read_text() == f"name: {name}"
    assert len(junctions) == (0 if has_links else 2) and sorted(os.listdir(tmp_path)) == ["last", "one", "two"]


def test_a_disk_without_links_has_no_last(tmp_path, monkeypatch):
    def refuse(self, target, target_is_directory=False):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run_folder.point_last(tmp_path)
    assert not (tmp_path.parent / "last").exists()
