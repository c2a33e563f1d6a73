"""Exported models of every task return probabilities or numbers, equal to those of numpy."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from task_networks import NAMES, TARGETS, TASKS, arrays, image_network, normalized, rows, table_network, values_of

import skipway as sw
from skipway.errors import SkipwayError
from skipway.export import onnx_file
from skipway.export.openvino import engine
from skipway.models.network import read_spec

pytestmark = pytest.mark.usefixtures("one_thread")
CASES = [(name, kind) for name in TASKS for kind in ("images", "rows")]


def case(name, kind):
    """A network, an array of inputs for its export, and what numpy expects."""
    if kind == "images":
        network = image_network(name)
        return network, np.stack(arrays())[:, :, :, None], values_of(network, normalized(arrays()))
    network = table_network(name)
    return network, rows(network).numpy(), values_of(network, rows(network))


def output_name(name):
    return "numbers" if name.startswith("number") else "probabilities"


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_an_onnx_file_has_one_output_named_after_its_meaning(name, kind, tmp_path):
    network, inputs, expected = case(name, kind)
    done = sw.export.onnx(network, tmp_path / "network.onnx")
    session = onnxruntime.InferenceSession(done.path)
    (found,) = session.run([output_name(name)], {kind: inputs})
    assert done.difference < 1e-5 and found.shape == expected.shape
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert found.dtype == (np.float64 if name.startswith("number") else np.float32)
    assert [output.name for output in session.get_outputs()] == [output_name(name)]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_program_returns_the_same(name, kind, tmp_path):
    network, inputs, expected = case(name, kind)
    done = sw.export.program(network, tmp_path / "network.pt2")
    found = torch.export.load(done.path).module()(torch.from_numpy(inputs)).detach().numpy()
    assert done.difference < 1e-5 and np.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_raw_files_return_the_outputs_of_the_network(name, tmp_path):
    network = image_network(name)
    done = sw.export.onnx(network, tmp_path / "network.onnx", raw=True)
    x = normalized(arrays())
    (found,) = onnxruntime.InferenceSession(done.path).run(["outputs"], {"inputs": x.numpy()})
    with torch.no_grad():
        assert np.allclose(found, network(x), atol=1e-5)


@pytest.mark.parametrize("name", TASKS)
def test_metadata_name_the_task_its_names_and_its_thresholds(name, tmp_path):
    network = image_network(name)
    path = sw.export.onnx(network, tmp_path / "network.onnx").path
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert found.pop("skipway_version") and (found := {key: json.loads(value) for key, value in found.items()})
    assert found.pop("plan") == network.plan and read_spec(found.pop("spec")) == network.spec
    numbers = {"task": "regression", "class_names": []}
    expected = {
        "classes": {"task": "classification", "class_names": list(NAMES)},
        "labels": {"task": "multilabel", "class_names": list(NAMES), "thresholds": [0.7, 0.9, 0.4]},
        "number": {**numbers, "target_names": ["y"]},
        "numbers": {**numbers, "target_names": list(TARGETS)},
    }
    assert found == expected[name]


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_a_difference_of_any_number_is_found_in_its_own_unit(kind, tmp_path, monkeypatch):
    network, _, _ = case("numbers", kind)
    right = onnx_file._onnxruntime_function
    for column, shift in ((0, 0.001), (1, 0.02)):  # small for the other target

        def wrong(data, description, provider, column=column, shift=shift):
            return lambda x: right(data, description, provider)(x) + shift * (np.arange(2) == column)

        monkeypatch.setattr(onnx_file, "_onnxruntime_function", wrong)
        with pytest.raises(SkipwayError, match="export verification failed: .* got a difference of 0.00"):
            sw.export.onnx(network, tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_engines_answer_like_the_network(name, precision):
    network, tolerance = image_network(name), {"fp32": 1e-5, "int8": 0.05}[precision]
    expected = network.predict(arrays())
    for made in (
        engine(network, precision, normalized(arrays())),
        sw.export.fuse(network, precision, normalized(arrays())),
    ):
        found = made.predict(arrays())
        if name.startswith("number"):
            assert np.allclose(found, expected, atol=tolerance * max(network.spec.target_std) * 4)
        elif precision == "fp32":
            assert found == expected
        if not name.startswith("number"):
            assert np.allclose(made.predict_proba(arrays()), network.predict_proba(arrays()), atol=tolerance)
