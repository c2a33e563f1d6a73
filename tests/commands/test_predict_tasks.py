"""Predictions of classes, labels and numbers for images and tables, equal to those of numpy."""

import numpy as np
import pytest
import torch
from small_runs import table
from task_networks import FRAME, NAMES, TARGETS, TASKS, arrays, image_network, normalized, table_network, values_of
from task_networks import rows as encoded

import skipway as sw
from skipway.commands.prediction_output import Prediction, write_predictions
from skipway.data.images.crop_zoom_flip import tta_views
from skipway.errors import InputError

LABELS = (("ant", "wasp"), ("ant",), ("wasp",), (), ("ant",))  # of the arrays
OF_ROWS = (("wasp",), ("wasp",), ("bee", "wasp"), ("ant",))
CASES = [(name, kind) for name in TASKS for kind in ("images", "rows")]


def case(name, kind):
    """A network, its inputs, and what numpy expects."""
    if kind == "images":
        network = image_network(name)
        return network, arrays(), values_of(network, normalized(arrays()))
    network = table_network(name)
    return network, FRAME, values_of(network, encoded(network))


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_methods_of_a_network_return_classes_labels_or_numbers(name, kind):
    network, inputs, expected = case(name, kind)
    found = network.predict(inputs)
    if name == "classes":
        assert found == [NAMES[i] for i in expected.argmax(1)]
    elif name == "labels":
        assert tuple(found) == (LABELS if kind == "images" else OF_ROWS)
    else:
        assert found.shape == ((len(expected),) if name == "number" else expected.shape)
        assert found.dtype == np.float64 and np.allclose(found.reshape(expected.shape), expected, rtol=1e-6)
    if name in ("number", "numbers"):
        with pytest.raises(
            InputError, match="cannot predict probabilities: expected a model of classes or labels, got"
        ):
            network.predict_proba(inputs)
        if kind == "images":
            with pytest.raises(
                InputError, match="cannot predict probabilities: .* got a regression model. Use predict"
            ):
                network.probabilities([pixels[:, :, None] for pixels in inputs])
        return
    assert np.allclose(network.predict_proba(inputs), expected, atol=1e-6)
    if kind == "images":
        assert np.allclose(network.probabilities([pixels[:, :, None] for pixels in inputs]), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_every_input_has_the_answer_of_its_task(name, kind):
    network, inputs, expected = case(name, kind)
    found = sw.predict(network, inputs, top=2, precision="fp32")
    assert [p.noun for p in found] == [kind[:-1]] * len(expected) and all(p.usable for p in found)
    for prediction, values in zip(found, expected, strict=True):
        if name in ("number", "numbers"):
            assert [target for target, _ in prediction.values] == list(TASKS[name]["target_names"])
            assert [number for _, number in prediction.values] == pytest.approx(values.tolist(), rel=1e-6)
            assert prediction.value == (prediction.values[0][1] if name == "number" else None)
            assert not prediction.top and prediction.labels is None
        else:
            order = np.argsort(-values)[:2]
            assert [label for label, _ in prediction.top] == [NAMES[i] for i in order]
            assert [share for _, share in prediction.top] == pytest.approx(values[order].tolist(), abs=1e-6)
            assert not prediction.values and prediction.value is None
    if name == "labels":
        labels = [tuple(label for label, _ in p.labels) for p in found]
        assert tuple(labels) == (LABELS if kind == "images" else OF_ROWS)
        assert all(share == dict(p.top).get(label, share) for p in found for label, share in p.labels)
    else:
        assert all(p.labels is None for p in found)


def test_a_line_names_all_labels_or_numbers():
    found = [str(p) for p in sw.predict(image_network("labels"), arrays(), top=1, precision="fp32")]
    assert found[0] == "array: ant 89.2%, wasp 40.0%" and found[3] == "array: no label (most likely: ant 67.2%)"
    assert [str(p) for p in sw.predict(image_network("numbers"), arrays(), precision="fp32")][0] == (
        "array: height -3.47962, weight 69.5653"
    )
    assert str(sw.predict(table_network("number"), FRAME)[0]) == "row 0: 2003.27"


@pytest.mark.parametrize("name", TASKS)
def test_test_time_augmentation_averages_probabilities_or_numbers(name):
    network = image_network(name)
    views = tta_views(normalized(arrays()), mirrored=False)
    expected = np.mean([values_of(network, view) for view in views], axis=0)
    found = sw.predict(network, arrays(), tta=True, top=3, precision="fp32")
    for prediction, values in zip(found, expected, strict=True):
        if prediction.values:
            assert [number for _, number in prediction.values] == pytest.approx(values.tolist(), rel=1e-6)
        else:
            assert [dict(prediction.top)[label] for label in NAMES] == pytest.approx(values.tolist(), abs=1e-6)
    if name == "labels":
        assert [len(p.labels) for p in found] == (expected >= TASKS["labels"]["thresholds"]).sum(1).tolist()


def test_outputs_that_are_not_finite_are_a_reason_for_every_task():
    for name in TASKS:
        network = image_network(name)
        with torch.no_grad():
            network.head.bias[-1] = torch.inf  # whose sigmoid is 1
        assert {p.reason for p in sw.predict(network, arrays(), precision="fp32")} == {
            "the outputs of the model are not finite (NaN or infinity)"
        }


def written(tmp_path, predictions, top=1):
    write_predictions(tmp_path / "p.csv", predictions, top)
    return table(tmp_path / "p.csv")


def test_labels_of_a_table_are_joined_as_in_the_training_data(tmp_path):
    predictions = sw.predict(image_network("labels"), [*arrays(), np.zeros((2, 2))], top=2, precision="fp32")
    found = written(tmp_path, predictions, 2)
    assert list(found[0]) == [
        *("file", "status", "labels", "probabilities", "label", "probability", "label_2", "probability_2", "reason"),
        *("remark", *(f"p_{name}" for name in NAMES)),
    ]
    assert [row["labels"] for row in found] == ["ant;wasp", "ant", "wasp", "", "ant", ""]
    assert [row["status"] for row in found] == ["ok"] * 5 + ["error"] and found[5]["reason"] and not found[5]["label"]
    assert found[0]["probabilities"] == "{:.6f};{:.6f}".format(*(share for _, share in predictions[0].labels))
    assert (found[3]["label"], found[3]["label_2"]) == ("ant", "wasp")


def test_numbers_of_a_table_have_a_column_each(tmp_path):
    found = written(tmp_path, sw.predict(table_network("numbers"), FRAME))
    assert list(found[0]) == ["row", "status", *(f"predicted_{name}" for name in TARGETS), "reason", "remark"]
    assert float(found[3]["predicted_weight"]) == pytest.approx(136.7331, abs=1e-3)
    found = written(tmp_path, sw.predict(image_network("number"), [*arrays(), np.zeros((2, 2))]))
    assert list(found[0]) == ["file", "status", "predicted", "reason", "remark"] and found[5]["predicted"] == ""


def test_a_separator_that_is_in_no_label_is_used_if_the_data_had_none(tmp_path):
    network = image_network("labels")
    assert network.spec.separator == ";"
    for names, separator in ((NAMES, "|"), (("a|b", "c", "d"), ";"), (("a|b", "c;d", "e,f/g"), "\t")):
        spec = type(network.spec)(1, 8, 8, (0.5,), (0.5,), names, task="multilabel")
        assert spec.separator == separator and spec.thresholds == (0.5, 0.5, 0.5)
    found = written(tmp_path, [Prediction("a.png", (("=x", 0.9),), labels=(("=x", 0.9), ("y", 0.8)))])
    assert found[0]["labels"] == "'=x|y"
