"""Runs on images of other channels than 1 and 3, and of more than 8 bits: train, resume, predict, evaluate, export."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from small_runs import StopAt, Words, image_folder, quick, same_runs

import skipway as sw
from skipway.commands import export
from skipway.data.image_spec import Spec
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.runs.train_run import train

KINDS = ("ant", "bee", "cow")


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def values_of(kind, i, channels, side=8):
    noise = np.random.default_rng(100 * kind + i).integers(0, 30, (side, side, channels))
    return noise + 40 * kind  # 0 to 109


def deep_folder(root, kind_of_file, count=12):
    """Class folders of deep images whose brightness tells the kind."""
    for k, kind in enumerate(KINDS):
        (root / kind).mkdir(parents=True)
        for i in range(count):
            path = root / kind / f"{i:02}"
            if kind_of_file == "png":
                Image.fromarray(values_of(k, i, 1)[:, :, 0].astype(np.uint16)).save(path.with_suffix(".png"))
            elif kind_of_file == "bands":
                np.save(path, values_of(k, i, 5).astype(np.uint8))
            else:
                values = (values_of(k, i, 2) / 100 - 0.5).astype(np.float32) * np.float32([1, 1000])
                values[0, 0] = np.nan
                np.save(path, values)
    return root


@pytest.fixture(scope="module", params=["png", "bands", "float"])
def trained(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    words = Words()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "write", lambda folder: folder / "report.html")
        data = deep_folder(place / "data", request.param)
        run = quick(data, place / "runs", words, epochs=6, augment="medium", name="whole")
    return request.param, data, run, words


def test_the_range_and_the_channels_are_in_the_spec(trained):
    kind, _, run, words = trained
    spec = run.network().spec
    channels = {"png": 1, "bands": 5, "float": 2}[kind]
    assert spec.channels == len(spec.mean) == channels and run.network().plan["in_chans"] == channels
    assert (f"input {channels}x8x8" in words) and np.isfinite(spec.mean + spec.std).all()
    if kind == "png":
        assert spec.value_range == ((0.0, 109.0),) and "deep images: values from 0 to 109 are scaled to [0, 1]" in words
    elif kind == "float":
        np.testing.assert_allclose(spec.value_range, [[-0.5, 0.59], [-500, 590]], rtol=1e-4)
        assert "36 NaN, infinite or no-data values replaced" in words
    else:
        assert spec.value_range == () and "without saturation, which needs RGB" in words
    assert run.metrics["val_accuracy"] > 0.8, "dark values are not black"


def test_evaluate_and_predict_give_the_metrics_of_the_run(trained):
    kind, data, run, _ = trained
    held_out = [line.split(",")[0] for line in (run.path / "splits.csv").read_text().splitlines() if ",val," in line]
    words = Words()
    predictions = sw.predict(run.path, [data / name for name in held_out], console=words)
    accuracy = np.mean([p.top[0][0] == name.split("/")[0] for p, name in zip(predictions, held_out, strict=True)])
    assert accuracy == pytest.approx(run.metrics["val_accuracy"])
    assert ("NaN, infinite or no-data values replaced" in words) == (kind == "float")
    assert sw.evaluate(run.path, data).accuracy > 0.8


def test_arrays_are_predicted_like_their_files(trained):
    kind, data, run, _ = trained
    files = sorted((data / "bee").iterdir())[:3]
    network = run.network()
    arrays = [np.asarray(Image.open(f)) if kind == "png" else np.load(f) for f in files]
    if kind == "float":
        with pytest.warns(UserWarning, match="NaN, infinite or no-data values replaced"):
            np.testing.assert_array_equal(network.predict_proba(arrays), network.predict_proba(files))
    else:
        np.testing.assert_array_equal(network.predict_proba(arrays), network.predict_proba(files))
        np.testing.assert_array_equal(network.predict_proba(np.stack(arrays)), network.predict_proba(files))
    if kind == "bands":
        with pytest.raises(InputError, match="image array: expected uint8 of shape"):
            network.predict([arrays[0].astype(np.uint16)])


def test_the_onnx_file_takes_the_values_themselves(trained, tmp_path):
    kind, data, run, _ = trained
    network = run.network()
    exported = sw.export.onnx(network, tmp_path / "network.onnx")
    assert exported.difference < 1e-5 and exported.levels < 1.6
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    files = sorted((data / "cow").iterdir())[:3]
    images = np.stack([np.atleast_3d(np.asarray(Image.open(f)) if kind == "png" else np.load(f)) for f in files])
    images = images if kind == "bands" else images.astype(np.float32)
    assert session.get_inputs()[0].type == f"tensor({'uint8' if kind == 'bands' else 'float'})"
    (probabilities,) = session.run(None, {"images": images})
    with np.errstate(invalid="ignore"):
        if kind == "float":
            with pytest.warns(UserWarning, match="NaN"):
                expected = network.predict_proba(list(images))
        else:
            expected = network.predict_proba(files)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    program = sw.export.program(network, tmp_path / "network.pt2", check=files if kind != "float" else None)
    reloaded = torch.export.load(program.path).module()
    np.testing.assert_allclose(reloaded(torch.from_numpy(images)).detach().numpy(), expected, atol=1e-4)


def test_a_resumed_run_uses_the_range_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deep_folder(tmp_path / "data", "png")
    quick("data", "runs", name="whole")
    with pytest.raises(Interrupted):
        quick("data", "runs", name="half", stop=StopAt(1 + 36 + 3))
    run = train(resume=tmp_path / "runs" / "half")
    assert same_runs(run.path, tmp_path / "runs" / "whole")


def test_pretrained_weights_of_gray_images_are_fitted_to_bands(tmp_path):
    gray = quick(image_folder(tmp_path / "gray", 6), tmp_path / "runs")
    bands = deep_folder(tmp_path / "bands", "float", 6)
    run = quick(bands, tmp_path / "runs", pretrained=str(gray.path), epochs=1)
    spec = run.network().spec
    assert spec.channels == 2 and len(spec.value_range) == 2 and spec.mean == gray.network().spec.mean * 2


def test_images_of_other_channels_are_left_out_with_the_reason(tmp_path):
    data = deep_folder(tmp_path / "bands", "bands", 6)
    np.save(data / "ant" / "rgb.npy", np.zeros((8, 8, 3), np.uint8))
    words = Words()
    run = quick(data, tmp_path / "runs", words, epochs=1, max_unreadable=0.1)
    assert run.network().spec.channels == 5
    assert 'ant/rgb.npy,train,ant,"expected an image of 5 channels, got 3"' in (run.path / "skipped.csv").read_text()
    report = str(sw.check(data))
    assert "5 channels" in report and "ant/rgb.npy: expected an image of 5 channels, got 3" in report


def test_check_prints_the_range(tmp_path):
    report = sw.check(deep_folder(tmp_path / "deep", "float", 6))
    assert "2 channels; deep, values from -0.5 to 0.59, -500 to 590" in str(report)
    assert "18 NaN, infinite or no-data values replaced" in str(report)


def test_configurations_for_other_libraries_have_the_range():
    channels = {"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    plain = Spec(size=8, presize=8, class_names=("ant", "bee"), **channels)
    deep = replace(plain, value_range=((0.0, 4095.0),) * 3)
    network = sw.create_model("resnet18", num_classes=2)
    for describe in (export._timm_config, export._torchvision_config):
        assert "value_range" not in describe(network, plain)
        assert describe(network, deep)["value_range"] == [[0.0, 4095.0]] * 3
