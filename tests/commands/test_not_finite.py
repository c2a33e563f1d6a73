"""NaN and infinite outputs are never an answer: a reason for the row, an error where there is no row."""

import copy
import csv

import numpy as np
import pandas as pd
import pytest
import torch
from export_networks import network_of, random_images, table_network
from small_runs import image_folder
from torch import nn

import skipway as sw
from skipway.cli import app
from skipway.commands.evaluate import evaluate
from skipway.commands.predict import predict
from skipway.commands.prediction_output import NOT_FINITE
from skipway.errors import InputError, NotFiniteError
from skipway.training.losses import Classification, Regression
from skipway.training.metrics import compute_metrics

pytestmark = pytest.mark.usefixtures("one_thread")
FRAME = pd.DataFrame({"age": [30.0, 50.0], "color": ["red", "green"], "height": [160.0, 180.0], "y": [1.0, 2.0]})
ENGINES = [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32")]


def overflowing(network):
    """Its weights are finite, and what it computes is not."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.fill_(3e38)
        last.bias.fill_(3e38)
    return network


def bright_ones_overflow(network):
    """Outputs of bright images are infinite for one class, those of dark ones are finite."""

    def forward_impl(layers, x):
        outputs = torch.zeros(len(x), 3)
        outputs[x.mean((1, 2, 3)) > 0, 1] = torch.inf
        return outputs

    network.forward_impl = forward_impl
    return network


@pytest.fixture
def ended(capfd):
    def run(*words):
        with pytest.raises(SystemExit) as ended:
            app.main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        return ended.value.code or 0, out, err

    return run


@pytest.mark.parametrize("engine, precision", ENGINES)
@pytest.mark.parametrize("tta", [False, True])
def test_images_without_finite_outputs_have_a_reason(engine, precision, tta):
    if engine == "openvino":
        pytest.importorskip("openvino")
    rows = predict(
        overflowing(network_of("resnet20")), list(random_images(2, 30, 40)), engine=engine, precision=precision, tta=tta
    )
    assert [(r.usable, r.top, r.reason) for r in rows] == [(False, (), NOT_FINITE)] * 2
    assert str(rows[0]) == f"array: error: {NOT_FINITE}"


def test_others_still_get_their_answer():
    dark, bright = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    rows = predict(bright_ones_overflow(network_of("resnet20")), [dark, bright, dark.astype(float), dark])
    assert [r.usable for r in rows] == [True, False, False, True] and rows[1].reason == NOT_FINITE != rows[2].reason


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_rows_of_a_table_without_finite_outputs_have_a_reason(task):
    rows = predict(overflowing(table_network(task)), FRAME)
    assert [(r.usable, r.value, r.reason) for r in rows] == [(False, None, NOT_FINITE)] * 2


def test_where_there_is_no_row_for_a_reason_it_is_an_error():
    images = overflowing(network_of("resnet20"))
    arrays = list(random_images(3, 30, 40))
    prepared = [np.zeros((images.spec.size, images.spec.size, 3), np.uint8)]
    message = "cannot predict: expected finite outputs of the model, got NaN or infinity for {} of {} inputs, first for"
    for call in (images.predict, images.predict_proba, sw.export.fuse(images).predict):
        with pytest.raises(NotFiniteError, match=message.format(3, 3) + " number 1. Use precision fp32, or train"):
            call(arrays)
    with pytest.raises(NotFiniteError, match=message.format(1, 1)):
        images.probabilities(prepared)
    dark, bright = np.zeros((9, 9, 3), np.uint8), np.full((9, 9, 3), 255, np.uint8)
    with pytest.raises(NotFiniteError, match=message.format(1, 3) + " number 2"):
        bright_ones_overflow(network_of("resnet20")).predict([dark, bright, dark])
    for task in ("classification", "regression"):
        network = overflowing(table_network(task))
        with pytest.raises(NotFiniteError, match=message.format(2, 2)):
            network.predict(FRAME)
        with pytest.raises(NotFiniteError, match=message.format(1, 1)):
            network.row_outputs(np.zeros((1, *network.spec.input_shape), np.float32))
    with pytest.raises(NotFiniteError, match=message.format(2, 2)):
        overflowing(table_network()).predict_proba(FRAME)


@pytest.mark.parametrize("estimator", [sw.SkipClassifier, sw.SkipRegressor])
def test_estimators_have_no_answer_that_is_not_finite(estimator):
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    model = estimator(layers=1, width=4, epochs=1).fit(X, y)
    with torch.no_grad():
        model.network_.head.weight.fill_(1e308)
        model.network_.head.bias.fill_(1e308)
    calls = [model.predict] + ([model.predict_proba] if estimator is sw.SkipClassifier else [])
    for call in calls:
        with pytest.raises(NotFiniteError, match="cannot predict: expected finite outputs"):
            call(X)
    if estimator is sw.SkipRegressor:
        model.network_.double()
        with torch.no_grad():
            model.network_.head.weight.zero_()
        model.spec_ = copy.copy(model.spec_)
        object.__setattr__(model.spec_, "target_std", (1e10,))
        with pytest.raises(NotFiniteError, match="got NaN or infinity for 30 of 30 inputs"):
            model.predict(X)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_metrics_of_outputs_that_are_not_finite_are_no_metrics(value):
    outputs, y, ids = torch.zeros(4, 3), torch.tensor([0, 1, 2, 1]), np.arange(4)
    outputs[2, 0] = value
    message = "cannot compute metrics: expected finite outputs, got NaN or infinity for 1 of 4 samples. Use precision"
    for task in (Classification(), Regression()):
        with pytest.raises(NotFiniteError, match=message):
            compute_metrics(task.scores(outputs[:, :3] if task == Classification() else outputs[:, :1], y, ids))


def test_the_command_line_ends_with_3_if_nothing_has_an_answer(tmp_path, ended):
    folder = image_folder(tmp_path / "data", 2, kinds=("ant", "bee", "wasp"))
    overflowing(network_of("resnet20")).save(tmp_path / "bad.safetensors")
    code, out, err = ended("predict", tmp_path / "bad.safetensors", folder, "--csv", tmp_path / "p.csv")
    assert code == 3 and "nan" not in out and out.count(f"error: {NOT_FINITE}") == 6
    assert "6 of 6 images could not be used" in err
    with open(tmp_path / "p.csv", newline="") as file:
        assert {(row["status"], row["label"], row["reason"]) for row in csv.DictReader(file)} == {
            ("error", "", NOT_FINITE)
        }
    code, out, err = ended("evaluate", tmp_path / "bad.safetensors", folder)
    assert (code, out) == (3, "") and "got NaN or infinity for 6 of 6 samples" in err
    for task in ("classification", "regression"):
        overflowing(table_network(task)).save(tmp_path / "table.safetensors")
        FRAME.assign(y=["ant", "bee"] if task == "classification" else [1.0, 2.0]).to_csv(tmp_path / "t.csv")
        assert ended("predict", tmp_path / "table.safetensors", tmp_path / "t.csv", "--strict")[0] == 3
        assert ended("evaluate", tmp_path / "table.safetensors", tmp_path / "t.csv")[0] == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_another_dtype_than_the_plan_s_are_refused(tmp_path, dtype):
    network = network_of("resnet20")
    header = {"plan": network.plan, "spec": network.spec.as_dict()}
    state = network.state_dict()
    name, count = next(iter(state)), next(name for name in state if "num_batches" in name)
    word = str(dtype).removeprefix("torch.")
    for changed, text in [
        (
            {key: v.to(dtype) if v.is_floating_point() else v for key, v in state.items()},
            f"{name} is {word}, expected float32",
        ),
        ({**state, name: state[name].to(dtype)}, f"plan: {name} is {word}, expected float32. Write the file again"),
        ({**state, name: state[name].double()}, f"plan: {name} is float64, expected float32. Write the file again"),
        ({**state, count: state[count].float()}, f"plan: {count} is float32, expected int64. Write the file again"),
    ]:
        sw.training.checkpoint.save_weights(tmp_path / "a.safetensors", changed, header)
        with pytest.raises(InputError, match=text):
            sw.load(tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=f"is {word}, expected float32.* Fix .plan or"):
        network.to(dtype).save(tmp_path / "b.safetensors")
    network_of("resnet20").double().save(tmp_path / "c.safetensors")
    assert next(sw.load(tmp_path / "c.safetensors").parameters()).dtype == torch.float64


def test_evaluate_names_how_many_have_no_finite_output(tmp_path):
    folder = image_folder(tmp_path / "data", 4, kinds=("ant", "bee", "wasp"))
    with pytest.raises(NotFiniteError, match=r"got NaN or infinity for \d+ of 12 samples"):
        evaluate(bright_ones_overflow(network_of("resnet20")), folder)
