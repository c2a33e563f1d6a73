"""OpenVINO computes what the network computes, as a network that predicts; in int8 nearly."""

import copy
import platform
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from export_networks import SPEC, network_of, random_images, table_network
from processes import run_python
from shrunken import SIZE
from torch import nn

import skipway as sw
from skipway.errors import InputError, MissingExtra, ShapeError
from skipway.export import openvino as home
from skipway.export.openvino import engine, fastest
from skipway.models.network_outputs import with_views

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs(count=8):
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def apart(network, other, x):
    """The largest difference of outputs, over the largest output."""
    with torch.no_grad():
        expected, found = network(x), other(x)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["resnet20", "seresnet50", "densenet121"])
def test_outputs_are_those_of_the_network_for_every_size_of_batch(name):
    network = network_of(name)
    for precision, bound in (("fp32", 1e-5), ("int8", 0.15)):
        made = engine(network, precision, inputs(32))
        assert max(apart(network, made, inputs(count)) for count in (1, 7, 32)) < bound
    assert apart(network, made, inputs()) > 1e-4  # of int8


def test_bf16_is_what_auto_is_where_there_is_bf16(monkeypatch):
    network, hints = network_of("resnet18"), []
    as_it_is = home._compile
    monkeypatch.setattr(home, "_compile", lambda m, half: (hints.append(half), as_it_is(m, half))[1])
    for there in (False, True):
        monkeypatch.setattr(home, "has_bf16", lambda device, there=there: there)
        assert apart(network, engine(network), inputs()) < 4e-2
    assert hints == [False, True] and apart(network, engine(network, "bf16"), inputs()) < 4e-2


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors may lack integer units")
def test_int8_is_computed_by_integers_between_all_convolutions():
    made = engine(network_of("resnet18"), "int8", inputs(32))
    told = [node.get_rt_info() for node in made.forward_impl.model.get_runtime_model().get_ordered_ops()]
    kinds = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in told]
    assert {precision for kind, precision in kinds if kind in ("Convolution", "FullyConnected")} <= {"u8", "i8"}
    assert sum(kind == "Convolution" for kind, _ in kinds) == 8


def test_a_network_stays_one_that_predicts(tmp_path):
    network = network_of("resnet18")
    made, given = engine(network, "fp32"), list(random_images(5, 30, 40))
    assert np.abs(made.predict_proba(given) - network.predict_proba(given)).max() < 1e-5
    assert made.predict(given) == network.predict(given)
    views = np.stack(given)[:, :SIZE, :SIZE]
    assert np.abs(made.probabilities(views, tta=True) - network.probabilities(views, tta=True)).max() < 1e-5
    assert isinstance(made, sw.Network) and made.spec == SPEC and with_views(made, SPEC, tta=True) is not None
    made.save(tmp_path / "network.safetensors")
    assert apart(network, sw.load(tmp_path / "network.safetensors").eval(), inputs()) < 1e-6


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_tables(task):
    network = table_network(task)
    rows = np.abs(np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32))
    expected = network.row_outputs(rows)
    assert np.allclose(engine(network, "fp32").row_outputs(rows), expected, atol=1e-4)
    quantised = engine(network, "int8", torch.from_numpy(rows)).row_outputs(rows)
    assert (
        0
        < np.abs(quantised - expected).max()
        < 0.2 * np.abs(expected - np.array(network.spec.target_mean or 0.0)).max()
    )


def test_the_network_is_as_it_was_and_nothing_is_said(capfd):
    network = network_of("resnet9").train()
    before, x = copy.deepcopy(network.state_dict()), inputs()
    made, seen = engine(network, "fp32"), x.clone()
    expected = made(x)
    assert torch.equal(x, seen) and torch.equal(
        made(x.contiguous(memory_format=torch.channels_last).double()), expected
    )
    assert torch.equal(copy.deepcopy(made)(x), expected)
    assert network.training and all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    with torch.no_grad():
        network.head.weight.zero_()
    assert torch.equal(made(x), expected) and capfd.readouterr() == ("", "")


def test_parts_and_shapes_are_left_to_torch():
    network = network_of("resnet18")
    made = engine(network, "fp32")
    assert [a.shape for a in made.activations(inputs())] == [a.shape for a in network.activations(inputs())]
    assert (made[:2](inputs()) - network[:2](inputs())).abs().max() < 1e-5
    assert sw.output_shape(made, (2, 3, SIZE, SIZE)) == (2, 3)


def test_a_batch_of_none():
    assert engine(network_of("resnet9"), "fp32")(inputs(0)).shape == (0, 3)


def test_no_usage_data_are_sent(tmp_path):
    said = """
import sys
import skipway as sw
from skipway.export.openvino import engine
from torch import nn, ones
network = engine(sw.Chain(nn.Linear(2, 2)), "fp32", ones(1, 2))
assert network(ones(3, 2)).shape == (3, 2)
import openvino.tools.ovc.telemetry_utils as told
assert told.tm.__name__.endswith("telemetry_stub"), told.tm
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry
"""
    home_of_its_own = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = run_python(said, env=home_of_its_own)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("*telemetry*")) and not (tmp_path / "intel").exists()


def test_what_it_cannot_do_is_said(monkeypatch):
    network, chain = network_of("resnet9"), sw.Chain(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Softmax(1))
    with pytest.raises(InputError, match="OpenVINO engine: expected a precision of auto, fp32, bf16, int8, got 'int4'"):
        engine(network, "int4")
    with pytest.raises(InputError, match="OpenVINO engine: expected a network on a CPU, got one on meta"):
        engine(nn.Linear(2, 2, device="meta"))
    for calibration in (
        (),
        inputs(0),
        [inputs(), inputs()[:, :, 1:]],
        inputs() / 0,
        [1, 2],
        inputs().long(),
        inputs()[..., 1:],
    ):
        with pytest.raises(
            InputError, match="expected calibration inputs, .* Pass calibration=x, a finite float tensor"
        ):
            engine(network, "int8", calibration)
    with pytest.raises(InputError, match="expected an input size, got a network without a Spec"):
        engine(chain, "fp32")
    with pytest.raises(InputError, match="in int8: expected convolutions or linear layers, got none"):
        engine(sw.Chain(nn.ReLU()), "int8", inputs())
    with pytest.raises(InputError, match="export: expected the original network, got a fused one"):
        engine(sw.export.fuse(network))
    broken = copy.deepcopy(network)
    broken.head.weight.data[0] = torch.nan
    with pytest.raises(InputError, match="engine in int8: expected finite activations and weights"):
        broken.stem[0].weight.data[0] = torch.nan
        engine(broken, "int8", inputs())
    made = engine(chain, "fp32", inputs())
    for x in (inputs()[:, :, 1:], inputs().byte()):
        with pytest.raises(ShapeError, match=r"expected normalized floats \(B, 3, 16, 16\) on a CPU, got"):
            made(x)
    with pytest.raises(InputError, match="OpenVINO cannot convert this network: .* Use export.fuse"):
        engine(sw.Chain(torch.linalg.svdvals), "fp32", torch.ones(3, 4, 4))
    monkeypatch.setitem(sys.modules, "openvino", None)
    home._openvino.cache_clear()
    with pytest.raises(MissingExtra, match="predicting with OpenVINO needs the extra 'openvino', which is not"):
        engine(network)


def test_the_fastest_is_the_one_that_is_done_first(monkeypatch):
    assert fastest() == ("openvino", "torch") == fastest(1e13) and fastest(1e12) == ("torch", "openvino")
    assert fastest(device="cuda") == ("torch",)
    monkeypatch.setattr(home, "find_spec", lambda name: None)
    assert fastest() == ("torch",)


def test_engines_are_made_in_threads_and_compute_in_them():
    networks, x = [network_of("resnet18"), network_of("resnet9")], inputs()

    def made(i):
        return apart(networks[i % 2], engine(networks[i % 2], "fp32"), x)

    with ThreadPoolExecutor(4) as threads:
        assert max(threads.map(made, range(4))) < 1e-5


def test_signals_are_heard_after_engines_have_come_and_gone():
    script = """
import faulthandler, gc, os, signal, torch
import skipway as sw
from skipway.export.openvino import engine
faulthandler.enable()
heard = []
signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
network, x = sw.Chain(torch.nn.Linear(4, 2)), torch.ones(1, 4)
first, second = (engine(network, "fp32", x) for _ in range(2))
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
print(heard)
"""
    done = run_python(script)
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
