"""What computes a trained network: the fastest that is there unless told, with the same answers."""

import math

import numpy as np
import pytest
import torch
from small_runs import Words, image_folder, quick

import skipway as sw
from skipway.commands import inference_engine
from skipway.commands.evaluate import evaluate
from skipway.commands.inference_engine import with_fastest_engine
from skipway.commands.predict import predict
from skipway.errors import InputError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("engines")
    image_folder(base / "kinds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skipway.report.html.write", lambda folder: folder / "report.html")
        return quick(base / "kinds", base / "runs", name="run", epochs=3).path


@pytest.mark.parametrize("name", ["torch", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_every_engine_and_precision_answers_alike(run, name, precision):
    said = Words()
    files = sorted((run.parent.parent / "kinds").rglob("*.png"))[::6]
    rows = predict(run, files, engine=name, precision=precision, console=said)
    wanted = sw.load(run).predict_proba(files)
    found = [dict(row.top) for row in rows]
    apart = max(
        abs(f[n] - w)
        for f, row in zip(found, wanted, strict=True)
        for n, w in zip(("ant", "bee", "cow"), row, strict=True)
    )
    assert apart < {"fp32": 1e-5, "bf16": 0.05, "int8": 0.2}[precision]
    assert f"engine: {name} ({precision})" in said
    assert ("int8: accuracy" in said) == (precision == "int8")


def test_the_fastest_is_taken_where_nobody_says_which(run, monkeypatch):
    taken = []
    monkeypatch.setattr(inference_engine, "fuse", lambda network, kind, *_: taken.append(("torch", kind)) or network)
    monkeypatch.setattr(
        inference_engine, "openvino_engine", lambda network, kind, *_: taken.append(("openvino", kind)) or network
    )
    monkeypatch.setattr(inference_engine, "has_bf16", lambda device: True)
    macs = sw.summary(sw.load(run), (1, 1, 8, 8)).macs
    fits = ("openvino", "torch"), ("torch",)
    monkeypatch.setattr(inference_engine, "fastest", lambda work=math.inf: fits[work <= 50 * macs])
    evaluate(run, run.parent.parent / "kinds", precision="bf16")
    predict(run, np.zeros((8, 8), np.uint8))
    monkeypatch.setattr(inference_engine, "has_bf16", lambda device: False)
    predict(run, np.zeros((8, 8), np.uint8), engine="openvino")
    assert taken == [("openvino", "bf16"), ("torch", "bf16"), ("openvino", "fp32")]


def test_what_is_computed_in_another_way_already_stays_as_it_is(run):
    fused = sw.export.fuse(sw.load(run), "fp32")
    assert with_fastest_engine(fused) is fused
    table = sw.create_model("resmlp", in_features=4)
    assert with_fastest_engine(table, inputs=10**6) is table
    for network in (fused, table):
        with pytest.raises(InputError, match="only an image model on a CPU, without another engine, supports"):
            with_fastest_engine(network, "openvino")


def test_where_the_fastest_cannot_take_a_network_torch_does(run, monkeypatch):
    network, said, one = sw.load(run), Words(), np.zeros((8, 8), np.uint8)
    network.append(Turned())
    monkeypatch.setattr(inference_engine, "fastest", lambda work=0.0: ("openvino", "torch"))
    expected = predict(network, one, engine="torch", precision="fp32")
    assert predict(network, one, precision="fp32", console=said) == expected
    assert "warning: falling back to torch: torch.export cannot trace" in said
    with pytest.raises(InputError, match="torch.export cannot trace"):
        predict(network, one, engine="openvino")


class Turned(torch.nn.Module):
    """What it does hangs on the numbers."""

    def forward(self, x):
        return x if x.sum().item() > 0 else x.flip(0)


def test_int8_at_too_high_a_price_is_refused(run, monkeypatch):
    accuracies = iter([0.9, 0.87])
    monkeypatch.setattr(inference_engine, "_primary_metric", lambda *_: next(accuracies))
    with pytest.raises(InputError, match="cannot use int8: expected a loss of accuracy of at most 2.00%, got 3.00%"):
        predict(run, np.zeros((8, 8), np.uint8), engine="torch", precision="int8")


def test_unknown_engines_and_what_they_lack_is_refused(run):
    one = np.zeros((8, 8), np.uint8)
    with pytest.raises(InputError, match="invalid engine: expected one of .*, got 'opnvino' .did you mean openvino"):
        predict(run, one, engine="opnvino")
    with pytest.raises(InputError, match="invalid precision: expected one of .*, got 'fp16'. Choose another"):
        predict(run, one, precision="fp16")
    with pytest.raises(InputError, match="cannot calibrate int8: expected a run folder"):
        predict(sw.load(run), one, precision="int8")
    with pytest.raises(InputError, match="cannot calibrate int8: expected a run folder"):
        evaluate(run / "weights" / "best.safetensors", run.parent.parent / "kinds", precision="int8")


def test_evaluating_by_an_engine_gives_the_figures_of_the_network(run):
    data = run.parent.parent / "kinds"
    plain = evaluate(run, data, engine="torch", precision="fp32")
    network = sw.load(run)
    x = [np.asarray(network.predict_proba([f])[0]).argmax() for f in sorted(data.rglob("*.png"))]
    assert plain.accuracy == pytest.approx(np.mean([p == i // 20 for i, p in enumerate(x)]))
    assert torch.is_grad_enabled()
