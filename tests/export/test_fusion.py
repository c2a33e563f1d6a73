"""Fused networks compute what the networks do that they were made of, and leave alone what they do not know."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.errors import InputError, ShapeError
from skipway.export import fused_convolution as home
from skipway.export.fused_convolution import Convolution
from skipway.export.fusion import FusedSkip, fold, run_fused
from skipway.export.quantization import Observer, QuantizedTensor
from skipway.models.convnext import ConvNeXtPlan
from skipway.models.densenet import DenseNetPlan
from skipway.models.inverted_residual import InvertedResidualPlan
from skipway.models.network import build_network
from skipway.models.resnet import ResNetPlan
from skipway.nn.blocks import SameConv2d

WIDTHS = {"layers": (2, 1), "widths": (8, 16), "stem": "small", "num_classes": 5}
INVERTED = {
    **{"layers": (2, 2), "widths": (8, 16), "kernels": (3, 5), "strides": (1, 2), "expansions": (1, 6)},
    **{"stem_channels": 8, "final_channels": 24, "num_classes": 5},
}
PLANS = {
    "basic": ResNetPlan(**WIDTHS),
    "bottleneck": ResNetPlan(**WIDTHS, block="bottleneck"),
    "preact": ResNetPlan(**WIDTHS, block="preact_bottleneck"),
    "plain": ResNetPlan(**WIDTHS, shortcut="none"),
    "pad": ResNetPlan(**WIDTHS, shortcut="pad"),
    "pool": ResNetPlan(**{**WIDTHS, "stem": "deep"}, shortcut="pool"),
    "same": ResNetPlan(**{**WIDTHS, "stem": "large"}, padding="same"),
    "grouped": ResNetPlan(**WIDTHS, block="bottleneck", cardinality=2, base_width=32),
    "se": ResNetPlan(**WIDTHS, attention="se"),
    "scale": ResNetPlan(**WIDTHS, join="layerscale"),
    "gate": ResNetPlan(**WIDTHS, join="gate"),
    "group norm": ResNetPlan(**WIDTHS, norm="group"),
    "fixup": ResNetPlan(**WIDTHS, norm="fixup"),
    "reversible": ResNetPlan(**WIDTHS, block="preact_basic", reversible=True),
    "mobilenet": InvertedResidualPlan(**INVERTED, activation="relu6"),
    "lite": InvertedResidualPlan(**INVERTED, activation="relu6", padding="same", norm_eps=1e-3),
    "efficientnet": InvertedResidualPlan(**INVERTED, attention="se", padding="same"),
    "convnext": ConvNeXtPlan(layers=(2, 1), widths=(8, 16), stem="small", layer_scale=0.5, num_classes=5),
    "dense": DenseNetPlan(layers=(2, 2), growth=4, stem="small", num_classes=5),
}


def lived(network):
    """The network with statistics and weights of norms that are not those of its first day, in evaluation mode."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    for p in network.parameters():
        if not p.any():  # as the last layer of some begins
            nn.init.normal_(p, 0, 0.1)
    return network.eval()


def apart(network, fused, x):
    """The largest difference of outputs, over the largest output."""
    with torch.no_grad():
        expected = network(x)
    return float((fused(x) - expected).abs().max() / expected.abs().max())


def made(plan):
    return build_network({"family": plan.FAMILY, **plan.as_dict()})


def kinds(network):
    return [type(module).__name__ for module in network.modules()]


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-5), ("bf16", 4e-2), ("int8", 0.15)])
def test_every_family_gives_its_own_outputs(name, precision, bound):
    network = lived(made(PLANS[name]))
    x = torch.randn(8, 3, 32, 32)
    fused = sw.export.fuse(network, precision, x if precision == "int8" else ())
    assert apart(network, fused, x) < bound
    assert (
        apart(network, fused, x[:3, :, :28, :20].contiguous()) < 2 * bound
    )  # other sizes than those it was packed for


def test_norms_relus_and_joins_are_gone_where_convolutions_do_them():
    found = kinds(sw.export.fuse(made(PLANS["bottleneck"]), "fp32"))
    assert not {"BatchNorm2d", "ReLU", "Skip", "Conv2d", "Project"} & set(found)
    assert (found.count("FusedSkip"), found.count("Convolution")) == (3, 1 + 3 * 3 + 2)


def test_int8_travels_as_codes_between_convolutions_and_pools():
    network = lived(made(ResNetPlan(**{**WIDTHS, "stem": "large", "layers": (1, 2)})))
    x = torch.randn(4, 3, 64, 64)
    fused, seen = sw.export.fuse(network, "int8", x), []
    for module in fused.modules():
        if isinstance(module, Convolution | FusedSkip | nn.AdaptiveAvgPool2d):
            module.register_forward_hook(
                lambda m, given, out: seen.append((type(given[0]).__name__, type(out).__name__))
            )
    fused(x)
    assert seen[0] == ("Tensor", "QuantizedTensor") and seen[-1] == ("Tensor", "Tensor")
    assert {pair for pair in seen[1:-3]} == {("QuantizedTensor", "QuantizedTensor")}


def test_layers_without_convolutions_stay_but_for_those_that_do_nothing():
    network = lived(sw.Chain(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)))
    fused = sw.export.fuse(network, "fp32")
    assert kinds(fused) == ["Chain", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert apart(network, fused, torch.randn(5, 6)) < 1e-5


def test_the_network_itself_is_as_it_was_and_shares_nothing():
    network = made(PLANS["basic"]).train()
    before, shown = copy.deepcopy(network.state_dict()), repr(network)
    fused = sw.export.fuse(network, "fp32")
    assert network.training and repr(network) == shown
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    own = {p.data_ptr() for p in network.parameters()}
    assert not own & {p.data_ptr() for p in fused.parameters()}


def test_a_network_of_images_predicts_as_before_but_cannot_be_saved(tmp_path):
    network = lived(made(PLANS["basic"]))
    network.spec = Spec(3, 32, 32, (0.5,) * 3, (0.25,) * 3, tuple("abcde"))
    fused, images = sw.export.fuse(network), list(np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8))
    assert np.abs(fused.predict_proba(images) - network.predict_proba(images)).max() < 0.02
    with pytest.raises(ShapeError, match="cannot save: the network .* Fix .plan or .spec"):
        fused.save(tmp_path / "fused.safetensors")


@pytest.mark.filterwarnings("ignore:layers of this")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_layer_that_stands_twice_in_a_row_is_done_twice(precision):
    relu, conv, sigmoid = nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Sigmoid()
    block = sw.Skip([nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)], after=nn.ReLU())
    for network in (
        sw.Chain(conv, relu, nn.Conv2d(4, 4, 1), relu),
        sw.Chain(nn.Conv2d(4, 4, 1), block, block, block),
        sw.Skip([sigmoid, conv, sigmoid, conv]),
    ):
        x = torch.randn(4, 4, 8, 8)
        fused = sw.export.fuse(lived(network), precision, x)
        assert apart(network, fused, x) < (1e-5 if precision == "fp32" else 0.05)


def test_a_body_that_is_used_twice_is_right_both_times():
    with pytest.warns(UserWarning, match="share parameters"):
        body = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)]
        network = lived(sw.Chain(sw.Skip(body, after=nn.ReLU()), sw.Skip(body), nn.Conv2d(4, 2, 1)))
    assert apart(network, sw.export.fuse(network, "fp32"), torch.randn(2, 4, 8, 8)) < 1e-5


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_skips_inside_skips_do_not_write_over_what_is_still_needed(precision):
    inner = sw.Skip([nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)], after=nn.ReLU())
    outer = sw.Skip(sw.Chain(inner, sw.Chain(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1)), after=nn.ReLU())
    alone = sw.Skip([nn.Conv2d(4, 4, 1)])
    network = sw.Chain(
        nn.Conv2d(3, 4, 3), nn.ReLU(), outer, alone, nn.Conv2d(4, 4, 1), sw.Skip([lambda x: x, nn.Conv2d(4, 4, 1)])
    )
    x = torch.randn(4, 3, 12, 12)
    fused = sw.export.fuse(network, precision, x if precision == "int8" else ())
    assert kinds(fused).count("FusedSkip") == 4
    assert apart(network.eval(), fused, x) < (1e-5 if precision == "fp32" else 0.05)


def test_inputs_are_never_written_over():
    skip = sw.Skip([nn.Conv2d(4, 4, 1)], after=nn.ReLU())
    x = torch.randn(2, 4, 5, 5).contiguous(memory_format=torch.channels_last)
    for fused, given in ((sw.export.fuse(skip, "fp32"), x), (sw.export.fuse(skip, "int8", x), x)):
        before = given.clone()
        fused(given)
        assert torch.equal(given, before)


def test_what_is_watched_or_unknown_is_left_as_it_is():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

        def forward(self, x):
            return self.rows[0](x) + self.rows[1](x)

    network = lived(sw.Chain(Odd(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    seen = []
    network[2].register_forward_hook(lambda *call: seen.append(1))
    fused = sw.export.fuse(network, "fp32")
    assert apart(network, fused, torch.randn(2, 3, 4, 4)) < 1e-5
    assert kinds(fused)[1:] == ["Odd", "Sequential", "Conv2d", "BatchNorm2d", "Convolution", "BatchNorm2d"]
    assert len(seen) == 2


def test_branches_side_by_side_are_not_taken_for_a_row():
    network = lived(sw.Chain(sw.Parallel("add", nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), nn.ReLU()))
    assert apart(network, sw.export.fuse(network, "fp32"), torch.randn(2, 3, 4, 4)) < 1e-5


def test_without_onednn_the_layers_of_torch_give_the_same(monkeypatch):
    network, x = lived(made(PLANS["bottleneck"])), torch.randn(2, 3, 16, 16)
    fused = sw.export.fuse(network, "fp32")
    monkeypatch.setattr(home, "_has_onednn", lambda x: False)
    assert apart(network, fused, x) < 1e-5


def test_a_fused_network_that_was_used_can_be_copied():
    network, x = lived(made(PLANS["basic"])), torch.randn(2, 3, 16, 16)
    for precision in ("fp32", "int8"):
        fused = sw.export.fuse(network, precision, x)
        assert torch.equal(fused(x), copy.deepcopy(fused)(x))


@pytest.mark.parametrize("relu", [True, False])
def test_a_convolution_in_codes_is_the_one_in_numbers_to_half_a_code(relu):
    torch.manual_seed(0)
    conv, x, shortcut = nn.Conv2d(5, 7, 3, padding=1), torch.randn(3, 5, 9, 9), torch.randn(3, 7, 9, 9)
    layer = Convolution(conv)
    layer.activation = "relu" if relu else "none"
    layer.start_calibration(1)
    with torch.no_grad():
        layer(x, shortcut)
    layer.finish_calibration()
    layer.quantizes_output = True
    x, shortcut = (
        QuantizedTensor((v / 0.05 + 120).round().clamp(0, 255).to(torch.uint8), 0.05, 120) for v in (x, shortcut)
    )
    out = layer(x, shortcut)
    scales = conv.weight.detach().abs().amax((1, 2, 3), keepdim=True) / 64
    exact = (
        nn.functional.conv2d(x.dequantize(), (conv.weight / scales).round() * scales, conv.bias, padding=1)
        + shortcut.dequantize()
    )
    exact = exact.relu() if relu else exact
    within = (exact > out.scale * -out.zero_point) & (exact < out.scale * (255 - out.zero_point))
    assert ((out.dequantize() - exact).abs()[within] <= 0.501 * out.scale).all()
    assert within.float().mean() > 0.4


def test_a_range_keeps_zero_and_leaves_out_what_is_rare():
    seen = Observer()
    seen.observe(torch.cat([torch.linspace(-1, 3, 9999), torch.tensor([400.0])]).view(1, 1, 100, 100))
    scale, zero = seen.choose_params()
    assert 3.5 / 255 < scale and QuantizedTensor(torch.tensor(zero), scale, zero).dequantize() == 0
    seen = Observer()
    seen.observe(torch.rand(1, 2, 30, 30))
    assert seen.choose_params()[1] == 0 and 0.7 / 255 < seen.choose_params()[0] <= 1 / 255
    seen = Observer()
    seen.observe(torch.zeros(1, 1, 2, 2))
    assert seen.choose_params() == (1.0, 0)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size"), [(3, 2, 1, 11), (2, 2, 0, 8), ((3, 1), (1, 2), (1, 0), 7)]
)
def test_codes_are_pooled_as_numbers_are(kernel, stride, padding, size):
    pool = nn.MaxPool2d(kernel, stride, padding)
    values = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    pooled = run_fused([pool], QuantizedTensor(values, 1.0, 0))
    assert torch.equal(pooled.values.float(), pool(values.float()))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"precision": "fp8"}, "fuse: expected a precision of auto, fp32, bf16, int8, got 'fp8'"),
        (
            {"precision": "int8"},
            "expected calibration images, got none or unusable ones. Pass calibration=x",
        ),
        ({"precision": "int8", "calibration": [torch.empty(0, 3, 4, 4)]}, "expected calibration images"),
    ],
)
def test_what_cannot_be_fused_is_refused(change, text):
    with pytest.raises(InputError, match=text):
        sw.export.fuse(sw.Chain(nn.Conv2d(3, 3, 1)), **change)


def test_int8_needs_convolutions_and_one_place():
    with pytest.raises(InputError, match="expected a network with convolutions on a CPU, got no supported convolution"):
        sw.export.fuse(sw.Chain(nn.Linear(3, 3)), "int8", torch.ones(1, 3))
    with pytest.raises(InputError, match="expected all parameters on one device, got cpu and meta"):
        sw.export.fuse(sw.Chain(nn.Linear(3, 3), nn.Linear(3, 3, device="meta")))


def test_a_layer_that_images_never_reached_stays_in_numbers():
    network = sw.Chain(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    fused = fold(network)
    first, last = fused
    first.start_calibration(1)
    last.start_calibration(1)
    with torch.no_grad():
        first(torch.randn(1, 3, 4, 4))
    first.finish_calibration()
    last.finish_calibration()
    assert (first.quantization is None, last.quantization is None) == (False, True)


def test_weights_that_change_after_first_use_are_packed_anew():
    network, x = lived(made(PLANS["basic"])), torch.randn(2, 3, 16, 16)
    fused = sw.export.fuse(network, "fp32")
    before = fused(x)
    with torch.no_grad():
        fused.stem.conv.weight.mul_(2)
    assert not torch.allclose(fused(x), before)
    after = fused(x)
    assert fused.float().stem.conv._packed is None, "moved weights are not where they were packed"
    assert torch.equal(fused(x), after)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_networks_that_are_fused_and_used_in_inference_mode_work(precision):
    network, x = made(PLANS["basic"]).eval(), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        fused = sw.export.fuse(network, precision)
        first = fused(x)
    assert torch.equal(fused(x), first)


def test_bytes_are_refused_by_every_precision():
    network = sw.Chain(nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="fused network: expected normalized floats, got uint8. Use predict"):
        sw.export.fuse(network)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_int8_elsewhere_than_on_a_cpu_is_refused(monkeypatch):
    x = torch.randn(1, 3, 4, 4)
    fused = sw.export.fuse(sw.Chain(nn.Conv2d(3, 3, 1)), "int8", x)
    with pytest.raises(InputError, match=r"fused in int8: expected \(B, C, H, W\) on a CPU, got \(3, 4, 4\) on"):
        fused(x[0])
    with pytest.raises(InputError, match="on meta. Fuse it in"):
        home._need_images_on_a_cpu(x.to("meta"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(InputError, match="expected a torch build with oneDNN, got one without"):
        sw.export.fuse(sw.Chain(nn.Conv2d(3, 3, 1)), "int8", x)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_sides_that_do_not_fit_are_refused_as_before(precision):
    down = sw.Skip([nn.Conv2d(4, 4, 3, stride=2, padding=1)], shortcut=nn.AvgPool2d(2))
    network = sw.Chain(nn.Conv2d(3, 4, 1), down)
    fused = sw.export.fuse(network, precision, torch.randn(2, 3, 8, 8))
    assert fused(torch.randn(2, 3, 8, 8)).shape == (2, 4, 4, 4)
    for one in (network, fused):
        with pytest.raises(ShapeError, match=r"1: `add`: expected equal shapes, got \(2, 4, 5, 5\) and \(2, 4, 4, 4\)"):
            one(torch.randn(2, 3, 9, 9))


def test_a_norm_of_another_axis_is_not_taken_for_one_of_the_features():
    network = lived(sw.Chain(nn.Linear(5, 4), nn.BatchNorm1d(4)))
    assert apart(network, sw.export.fuse(network, "fp32"), torch.randn(6, 4, 5)) < 1e-5


@pytest.mark.parametrize(
    "network",
    [
        sw.Chain(sw.Parallel("add", nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)), nn.ReLU()),
        sw.Chain(nn.Conv2d(3, 3, 1), sw.Skip([nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)], nn.AvgPool2d(2), join="concat")),
        sw.Chain(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)),
    ],
    ids=["parallel", "a pool at a body's end", "a pool at the end"],
)
def test_codes_go_only_where_they_are_known(network):
    x = torch.randn(4, 3, 8, 8)
    assert apart(network, sw.export.fuse(network, "int8", x), x) < 0.03


def test_parts_and_activations_of_an_int8_network_are_numbers():
    network, x = sw.Chain(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.MaxPool2d(2)), torch.randn(2, 3, 4, 4)
    fused = sw.export.fuse(network, "int8", x)
    with torch.no_grad():
        for found, expected in zip(fused.activations(x), network.activations(x), strict=True):
            assert (found - expected).abs().max() < 0.1
        assert torch.equal(fused[:2](x), fused.activations(x)[1])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_somebody_sees_is_not_written_over(precision):
    body = lambda: [nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)]  # noqa: E731
    network = sw.Chain(nn.Conv2d(4, 4, 1), sw.Skip(body()), sw.Skip(body()), sw.Skip(body()), nn.Conv2d(4, 4, 1))
    x = torch.randn(2, 4, 6, 6)
    for path in ("1", "1.body", "1.last", "2", "2.body.0", "3.last"):
        fused, seen = sw.export.fuse(network, precision, x), []

        def note(module, given, out=None, seen=seen):
            for value in (given[0], out):
                if value is not None:
                    plain = value.values if isinstance(value, QuantizedTensor) else value
                    seen.append((plain, plain.clone()))

        fused.get_submodule(path).register_forward_pre_hook(note)
        fused.get_submodule(path).register_forward_hook(note)
        fused(x)
        assert seen and all(torch.equal(now, then) for now, then in seen), path


def test_weights_that_are_put_in_place_of_others_are_used():
    fused, x = sw.export.fuse(sw.Chain(nn.Conv2d(3, 3, 1, bias=False)), "fp32"), torch.randn(1, 3, 4, 4)
    before = fused(x)
    state = {name: 2 * value for name, value in fused.state_dict().items()}
    assert torch.allclose(torch.func.functional_call(fused, state, (x,)), 2 * before)
    assert torch.equal(fused(x), before)
    fused.load_state_dict(state, assign=True)
    assert torch.allclose(fused(x), 2 * before)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shapes_are_told_without_harm(precision):
    network, x = lived(made(PLANS["basic"])), torch.randn(2, 3, 16, 16)
    fused = sw.export.fuse(network, precision, x)
    assert sw.output_shape(fused, (2, 3, 16, 16)) == (2, 5)
    assert apart(network, fused, x) < (1e-5 if precision == "fp32" else 0.15)


def test_a_network_of_another_type_is_fused_to_float32():
    network, x = lived(made(PLANS["basic"])), torch.randn(2, 3, 16, 16)
    fused = sw.export.fuse(copy.deepcopy(network).double(), "fp32")
    assert torch.allclose(fused(x.double()), fused(x)) and apart(network, fused, x) < 1e-5


@pytest.mark.parametrize(
    "wrong", [torch.randn(3, 4, 4), torch.full((1, 3, 4, 4), torch.nan), torch.ones(1, 3, 4, 4, dtype=torch.uint8)]
)
def test_images_that_no_range_can_be_chosen_by_are_refused(wrong):
    with pytest.raises(InputError, match="a finite float tensor .B, C, H, W. of normalized images"):
        sw.export.fuse(sw.Chain(nn.Conv2d(3, 3, 1)), "int8", [torch.randn(1, 3, 4, 4), wrong])


def test_weights_that_are_not_finite_are_refused_for_int8():
    network = sw.Chain(nn.Conv2d(3, 3, 1))
    nn.init.constant_(network[0].weight, torch.inf)
    with pytest.raises(InputError, match="fuse in int8: expected finite activations, got NaN or infinity"):
        sw.export.fuse(network, "int8", torch.randn(1, 3, 4, 4))


def test_whatever_is_fused_gives_float32_without_gradients():
    body = lambda: nn.Conv2d(2, 2, 1)  # noqa: E731
    for network in (sw.Reversible(sw.Coupling(body(), body())), sw.Skip([nn.Conv2d(4, 4, 1)]), nn.Conv2d(4, 4, 1)):
        out = sw.export.fuse(network, "bf16")(torch.randn(2, 4, 3, 3))
        assert out.dtype == torch.float32 and not out.requires_grad


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (17, 16), (15, 19)])
@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_tensorflow_s_padding_and_bounded_activations_are_done_by_the_convolution(
    activation, size, onednn, monkeypatch
):
    if not onednn:
        monkeypatch.setattr(home, "_has_onednn", lambda x: False)
    plan = InvertedResidualPlan(**INVERTED, activation=activation, padding="same")
    network = lived(made(plan))
    fused = sw.export.fuse(network, "fp32")
    assert not {"SameConv2d", "BatchNorm2d", "ReLU6", "SiLU"} & set(kinds(fused))
    x = 3 * torch.randn(2, 3, *size)
    assert apart(network, fused, x) < 1e-5
    assert fused.stem[0].output_shape((2, 3, *size)) == tuple(fused.stem(x).shape)
    assert apart(network, sw.export.fuse(network, "bf16"), x) < 0.05
    assert f"fp32, {activation}" in repr(fused).replace("float32", "fp32")


def test_same_padding_that_a_convolution_cannot_place_stays_as_it_is():
    layer = SameConv2d(3, 4, 3, 2, dilation=2)
    assert fold(layer) is layer


def test_relu6_is_bounded_in_int8():
    network = lived(made(InvertedResidualPlan(**INVERTED, activation="relu6", padding="same")))
    x = 3 * torch.randn(8, 3, 16, 16)
    fused = sw.export.fuse(network, "int8", calibration=x)
    assert apart(network, fused, x) < 0.2
    assert {m.activation for m in fused.modules() if isinstance(m, Convolution)} == {"none", "relu6"}
