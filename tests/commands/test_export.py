"""Runs taken elsewhere: files checked on the run's own images, other libraries' weights with their config."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from small_runs import image_folder, quick
from task_networks import TASKS

import skipway as sw
from skipway.cli.app import app
from skipway.commands.export import _images_of_run, export_run
from skipway.errors import InputError, SkipwayError
from skipway.utils.atomic_files import write_file

SMALL = {"layers": [1, 1, 1, 1], "widths": [8, 16, 24, 32]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("exported")
    image_folder(base / "kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipway.report.html.write", lambda folder: folder / "report.html")
        return quick(base / "kinds", base / "runs", name="run", epochs=1).path


def saved(folder, name="resnet18", channels=3, **options):
    """A file of a small network of another family, as `Network.save` writes it."""
    torch.manual_seed(0)
    options = options or SMALL
    network = sw.create_model(name, num_classes=3, in_chans=channels, **options).eval()
    network.spec = sw.Spec(channels, 32, 36, (0.4,) * channels, (0.2,) * channels, ("ant", "bee", "cow"), "crop")
    network.save(folder / "weights.safetensors")
    return folder / "weights.safetensors", network


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_a_run_is_exported_and_checked_on_its_own_images(run, tmp_path, to):
    written = export_run(run, to, tmp_path / f"model.{to}")
    assert written.paths == [tmp_path / f"model.{to}"] and written.num_images == 12
    assert written.check.difference <= 1e-4
    assert "checked on 12 images of the run: largest difference from torch is" in str(written)


@pytest.mark.parametrize("to", ["onnx", "pt2"])
def test_an_export_is_checked_on_the_device(run, tmp_path, to, monkeypatch):
    written = export_run(run, to, tmp_path / f"model.{to}", device="cpu")
    assert written.check.difference <= 1e-4
    with pytest.raises(InputError, match="cannot use --device cuda:7: expected a device that torch finds here"):
        export_run(run, to, tmp_path / f"other.{to}", device="cuda:7")
    monkeypatch.setattr(torch.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    message = {"onnx": "an ONNX file on --device mps: expected an onnxruntime with", "pt2": "an export on --device mps"}
    with pytest.raises(InputError, match=f"cannot verify {message[to]}"):
        export_run(run, to, tmp_path / f"other.{to}", device="mps")
    assert not (tmp_path / f"other.{to}").exists()


def test_weights_for_a_library_are_not_run(run, tmp_path):
    with pytest.raises(InputError, match="cannot use --device with --to timm: expected onnx or pt2, .* Drop --device."):
        export_run(run, "timm", tmp_path / "timm", device="cpu")


def test_an_onnx_file_of_a_run_gives_the_probabilities_of_predict(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_run(run, output=tmp_path / "m.onnx").paths[0]
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    array = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1)).astype(np.uint8)
    (found,) = session.run(None, {"images": array})
    np.testing.assert_allclose(found, sw.load(run).predict_proba(list(array)), atol=1e-5)


def test_the_command_line_writes_into_the_runs_folder(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    app(["export", str(tmp_path / "run"), "--to", "pt2"], result_action="return_value")
    assert f"exported: {tmp_path / 'run' / 'export' / 'resnet20.pt2'}" in capsys.readouterr().out


def test_without_its_data_a_run_is_checked_on_the_images_of_its_report(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "splits.csv").unlink()
    assert export_run(tmp_path / "run", "pt2").num_images == 12
    shutil.rmtree(tmp_path / "run" / "plots")
    found = export_run(tmp_path / "run", "pt2")
    assert found.num_images == 0 and "checked on random inputs" in str(found)


def test_no_image_outside_the_data_is_read(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (outside,) = sorted((run / "plots" / "worst").glob("*.png"))[:1]
    rows = [f"{name},a,val," for name in (outside, f"a/../../../{outside.name}")]
    (tmp_path / "run" / "splits.csv").write_text("\n".join(["file,class,split,sha256", *rows]))
    assert outside not in _images_of_run(tmp_path / "run")


def test_a_file_of_weights_is_exported_beside_it(tmp_path):
    file, _ = saved(tmp_path)
    assert export_run(file, "pt2", raw=True).paths == [tmp_path / "resnet18.pt2"]


@pytest.mark.parametrize("name, channels", [("resnet18", 3), ("resnet50d", 1), ("seresnet50", 3)])
def test_timm_gets_weights_under_its_names_and_a_config(tmp_path, name, channels):
    file, network = saved(tmp_path, name, channels)
    folder = export_run(file, "timm").paths[0].parent
    assert folder == tmp_path / "timm"
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == name and config["label_names"] == ["ant", "bee", "cow"]
    assert config["model_args"]["layers"] == SMALL["layers"] and config["model_args"]["channels"] == SMALL["widths"]
    assert config["model_args"].get("in_chans", 3) == channels
    assert config["pretrained_cfg"]["crop_mode"] == "center" and config["pretrained_cfg"]["crop_pct"] == 0.8889
    state = safetensors.torch.load_file(folder / "model.safetensors")
    again = sw.weights.adopt(state, library="timm", name=name, **SMALL)
    x = torch.randn(2, channels, 32, 32)
    assert again(x).equal(network(x))


@pytest.mark.parametrize(
    "name, options, known, told",
    [
        ("resnet10", {"widths": [8, 16, 24, 32]}, "resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]}),
        ("xresnet18", {"layers": [1, 1, 1, 1]}, "resnet18d", {"layers": [1, 1, 1, 1]}),
        ("resnetv2_50", {"layers": [1, 1, 1, 1]}, "resnetv2_50", {"layers": [1, 1, 1, 1]}),
        (
            "densenet121",
            {"layers": [1, 1, 2, 1], "growth": 8},
            "densenet121",
            {"block_config": [1, 1, 2, 1], "growth_rate": 8},
        ),
    ],
)
def test_what_a_name_does_not_say_is_told_in_the_librarys_words(tmp_path, name, options, known, told):
    config = json.loads(export_run(saved(tmp_path, name, **options)[0], "timm").paths[1].read_text())
    assert config["architecture"] == known and config["model_args"] == told


def test_torchvision_gets_what_its_own_functions_make(tmp_path):
    file, network = saved(tmp_path, "resnet18", dropout=0.1)
    folder = export_run(file, "torchvision", tmp_path / "tv").paths[0].parent
    config = json.loads((folder / "config.json").read_text())
    assert config["model"] == "resnet18" and config["arguments"] == {"num_classes": 3} and config["resize"] == 36
    state = safetensors.torch.load_file(folder / "model.safetensors")
    assert "layer1.0.conv1.weight" in state and len(state) == len(network.state_dict())


@pytest.mark.parametrize(
    "library, name, options, expected",
    [
        ("timm", "efficientnet_lite0", {"padding": "same", "norm_eps": 1e-3}, ("tf_efficientnet_lite0", {})),
        ("timm", "efficientnet_lite0", {}, ("efficientnet_lite0", {})),
        ("timm", "mobilenetv2_050", {"norm_eps": 1e-3}, ("mobilenetv2_050", {"bn_eps": 1e-3})),
        ("torchvision", "mobilenetv2_100", {}, ("mobilenet_v2", None)),
        ("timm", "convnext_atto", {"layers": [1] * 4, "layer_scale": 0.1}, ("convnext_atto", {"depths": [1] * 4})),
        ("torchvision", "efficientnet_b5", {"norm_eps": 1e-3}, ("efficientnet_b5", None)),
    ],
)
def test_families_with_depthwise_convolutions_are_exported_under_the_library_s_name(
    tmp_path, library, name, options, expected
):
    spec = sw.Spec(3, 32, 36, (0.5,) * 3, (0.5,) * 3, ("ant", "bee"))
    network = sw.create_model(name, num_classes=2, **options)
    network.spec = spec
    network.save(tmp_path / "n.safetensors")
    config = json.loads(export_run(tmp_path / "n.safetensors", library).paths[1].read_text())
    assert (config.get("architecture") or config["model"], config.get("model_args")) == expected


def test_what_cannot_be_exported_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="invalid export format: expected one of .*, got 'onx' .did you mean onnx"):
        export_run(run, "onx")
    with pytest.raises(InputError, match="cannot use --raw with --to timm: expected onnx or pt2"):
        export_run(run, "timm", raw=True)
    with pytest.raises(InputError, match="timm has no resnet20 with these options"):
        export_run(run, "timm")
    file, _ = saved(tmp_path)
    with pytest.raises(InputError, match="its resnet18 has no option for a changed layers, widths"):
        export_run(file, "torchvision")
    file, _ = saved(tmp_path, "resnet26")
    with pytest.raises(InputError, match="cannot export to torchvision: it has no architecture resnet26"):
        export_run(file, "torchvision")
    monkeypatch.setattr("skipway.export.onnx_file._MAX_DIFFERENCE", -1.0)
    with pytest.raises(SkipwayError, match="No file was written"):
        export_run(file, "pt2")
    assert not (tmp_path / "resnet26.pt2").exists()


def test_a_table_is_exported_but_not_to_libraries_of_images(tmp_path):
    run = sw.train("wine", output=tmp_path, epochs=1, threads=1)
    assert export_run(run.path, "pt2").check.difference <= 1e-4
    with pytest.raises(InputError, match="expected an image model, got a table model. Use --to onnx"):
        export_run(run.path, "timm")


def test_an_export_never_overwrites_what_is_not_an_export(weights, place, tmp_path):
    run = place / "runs" / "run"
    for output in (run / "weights" / "best.safetensors", run / "config.yaml"):
        before = output.read_bytes()
        with pytest.raises(InputError, match="got a file of the run in|got an input"):
            export_run(run, "pt2", output)
        assert output.read_bytes() == before
    (tmp_path / "resnet20.pt2").write_text("mine")
    with pytest.raises(
        InputError, match="cannot export to .*: expected a new file, got one that exists. Choose another with -o"
    ):
        export_run(weights, "pt2")
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(InputError, match="cannot export to .*: expected a new folder or an earlier export"):
        export_run(saved(tmp_path)[0], "timm", tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"


def test_an_export_to_a_library_that_is_killed_is_never_of_two_networks_and_is_done_again(tmp_path, monkeypatch):
    files = []
    for widths in ([8, 16, 24, 32], [8, 8, 8, 8]):
        (tmp_path / str(len(files))).mkdir()
        files.append(saved(tmp_path / str(len(files)), layers=[1, 1, 1, 1], widths=widths)[0])
    folder, calls = tmp_path / "timm", []

    def export(file, allowed=2):
        calls[:] = [True] * allowed
        return [path.read_bytes() for path in export_run(file, "timm", folder).paths]

    def write(path, data):
        if not calls:
            raise KeyboardInterrupt
        write_file(path, data)
        calls.pop()

    monkeypatch.setattr("skipway.commands.export.write_file", write)
    whole = [export(file) for file in files]
    assert whole[0] != whole[1]
    for number, allowed in ((0, 0), (0, 1), (1, 1), (1, 0)):
        with pytest.raises(KeyboardInterrupt):
            export(files[number], allowed)
        paths = [folder / "model.safetensors", folder / "config.json"]
        assert not paths[0].exists() or [path.read_bytes() for path in paths] in whole
    assert export(files[0]) == whole[0]


@pytest.mark.parametrize("name", ["classes", "labels", "number", "numbers"])
@pytest.mark.parametrize("to", ["timm", "torchvision"])
def test_weights_for_a_library_come_with_the_meaning_of_outputs_that_are_no_classes(tmp_path, name, to):
    outputs = TASKS[name]
    file, network = saved(tmp_path, dropout=0.1)
    network.reset_classifier(len(outputs.get("class_names") or outputs["target_names"]))
    network.spec = sw.Spec(3, 32, 36, (0.4,) * 3, (0.2,) * 3, **outputs)
    network.save(file)
    written = export_run(file, to)
    config = json.loads(written.paths[1].read_text())
    stored = json.loads(json.dumps(network.spec.output_dict()))
    assert config.get("skipway") == (None if name == "classes" else stored)
    numbers = "outputs: standardized numbers; multiply by target_std and add target_mean, both in config.json"
    notes = dict.fromkeys(["number", "numbers"], numbers) | {
        "classes": "",
        "labels": "outputs: logits of the labels; apply a sigmoid, then the thresholds in config.json",
    }
    assert written.note == notes[name] and written.note in str(written).splitlines()[-1]
    if to == "timm":
        again = sw.create_model(f"local-dir:{written.paths[0].parent}", pretrained=True)
        assert (again.spec.task, again.spec.class_names) == (network.spec.task, network.spec.class_names)
        assert again.spec.output_dict() == network.spec.output_dict()
