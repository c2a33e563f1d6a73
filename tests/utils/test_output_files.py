import os
from types import SimpleNamespace

import pytest

from skipway.errors import InputError
from skipway.export.onnx_file import write_verified
from skipway.model_factory import create_model
from skipway.models import registry
from skipway.utils.output_files import refuse_output


@pytest.fixture
def run(tmp_path):
    (tmp_path / "run" / "weights").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("schema: 1\n")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["in.csv", "./in.csv", "link.csv", "folder/a.png"])
def test_an_output_that_is_an_input_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    for file in ("in.csv", "folder/a.png"):
        (tmp_path / file).write_text("mine")
    os.symlink("in.csv", tmp_path / "link.csv")
    with pytest.raises(InputError, match="cannot write to .*, got an input of this command. Choose another path"):
        refuse_output(tmp_path / name, [tmp_path / "in.csv", tmp_path / "folder"])


@pytest.mark.parametrize("name", ["config.yaml", "weights/best.safetensors", "plots/x.png", "metrics.json"])
def test_an_output_that_belongs_to_a_run_is_refused(run, name):
    with pytest.raises(InputError, match="cannot write to .*, got a file of the run in"):
        refuse_output(run / name)


@pytest.mark.parametrize("name", ["mine.csv", "export/model.onnx", "../other.csv", "../plots/x.png"])
def test_other_outputs_are_free(run, name):
    refuse_output(run / name, [run, run.parent / "missing.csv"])


@pytest.mark.parametrize(("name", "kind"), [(".", "folder"), ("pipe", "device, pipe"), ("last", "symbolic link")])
def test_an_output_that_is_no_plain_file_is_refused(tmp_path, name, kind):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "last").symlink_to("nothing")
    with pytest.raises(InputError, match=f"cannot write to .*: expected a regular file, got a {kind}"):
        refuse_output(tmp_path / name)


@pytest.mark.parametrize("name", ["RESULTS.csv", "Weights/x"])
def test_files_of_a_run_are_found_without_case(run, name):
    with pytest.raises(InputError, match="got a file of the run in"):
        refuse_output(run / name)


@pytest.mark.parametrize("name", ["/tmp/x", "../../x", "a/b", "a\\b", "", ".x", "a\n", "x" * 101, 3])
def test_a_plan_whose_name_could_be_a_path_is_refused(name):
    with pytest.raises(InputError, match="cannot read the plan: expected a name of up to 100 letters"):
        registry.rebuild({**registry.plan_of("resnet20"), "name": name})


def test_a_network_and_its_export_are_never_saved_over_a_file_of_a_run(run):
    network = create_model("resnet20", num_classes=2)
    with pytest.raises(InputError, match="got a file of the run in"):
        network.save(run / "weights" / "best.safetensors")
    description = SimpleNamespace()  # the path is refused before anything is compared
    with pytest.raises(InputError, match="got a file of the run in"):
        write_verified(run / "report.html", b"", function=len, description=description, inputs=[])
    assert not list((run / "weights").iterdir()) and not (run / "report.html").exists()
