"""Options of timm on the families beyond ResNet: outputs equal to those that timm 1.0.31 computed in float64.

Weights and inputs follow from timm's names, as described in tests/golden/README.md; the input has 64x64 pixels.
"""

import json
from pathlib import Path

import pytest
import torch
from golden_states import draw, value
from small_networks import SMALL, images, small
from torch import nn

import skipway as sw
from skipway.errors import InputError
from skipway.models import registry
from skipway.models.network import build_meta_network
from skipway.weights.convert import adopt, release

CASES = json.loads((Path(__file__).parent.parent / "timm_options.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['name']}-{case['options']}")
def test_a_network_with_options_computes_what_timm_computes(case):
    name, options = case["name"], {"num_classes": 5, **case["options"]}
    keys = release(build_meta_network(registry.plan_of(name, **options)), "timm")
    state = {key: torch.from_numpy(value(key, v.shape, False)).double() for key, v in keys.items() if v.dim()}
    network = adopt(state, "timm", name, **options)
    x = torch.from_numpy(draw("input", (2, 3, 64, 64)).astype("float32")).double()
    with torch.no_grad():
        outputs = network(x)
    assert list(outputs.shape) == case["shape"]
    assert sum(p.numel() for p in network.parameters()) == case["parameters"]
    torch.testing.assert_close(outputs.flatten()[:4], torch.tensor(case["first"], dtype=torch.float64))
    assert outputs.norm().item() == pytest.approx(case["norm"], rel=1e-9)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "tf_efficientnet_b0", "convnext_atto"])
@pytest.mark.parametrize("output_stride", [8, 16, 32, None])
def test_the_output_stride_limits_the_reduction(name, output_stride):
    network = build_meta_network(registry.plan_of(name, num_classes=0, global_pool="none", output_stride=output_stride))
    side = network(torch.empty(1, 3, 128, 128, device="meta")).shape[-1]
    assert 128 // side == (output_stride or 32)


@pytest.mark.parametrize("name", ["mobilenetv2_050", "convnext_atto"])
def test_dilation_needs_no_other_weights(name):
    plain, dilated = (build_meta_network(registry.plan_of(name, output_stride=o)).state_dict() for o in (None, 8))
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in dilated.items()}


@pytest.mark.parametrize("name", ["densenet121", "mobilenetv2_100"])
def test_group_norms_replace_all_batch_norms(name):
    network = small(name, norm_layer="groupnorm")
    kinds = {type(m) for m in network.modules()}
    assert nn.GroupNorm in kinds and nn.BatchNorm2d not in kinds
    network(images()).sum().backward()


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_100", "densenet121"])
def test_the_activation_is_that_of_all_layers(name):
    activations = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU)
    kinds = {type(m) for m in small(name, act_layer=nn.SiLU).modules() if isinstance(m, activations)}
    assert kinds == {nn.SiLU}


def test_the_initial_head_of_a_convnext_is_scaled():
    plain, scaled = small("convnext_atto"), small("convnext_atto", head_init_scale=0.5)
    torch.testing.assert_close(scaled.head.weight, 0.5 * plain.head.weight)


def test_the_layer_scale_has_timms_name():
    assert registry.plan_of("convnext_atto", ls_init_value=0.1)["layer_scale"] == 0.1


@pytest.mark.parametrize("rate", ["drop_path_rate", "drop_rate"])
@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv2_100"])
def test_rates_have_timms_names(name, rate):
    option = {"drop_rate": "dropout", "drop_path_rate": "drop_path"}[rate]
    assert sw.create_model(name, **SMALL[name], **{rate: 0.25}).plan[option] == 0.25


def test_the_drop_rate_of_a_densenet_is_before_the_head_and_that_of_its_layers_has_timms_name():
    plan = registry.plan_of("densenet121", drop_rate=0.25, proj_drop_rate=0.5)
    assert (plan["drop_rate"], plan["dropout"]) == (0.25, 0.5)


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("convnext_atto", {"output_stride": 4}, "convnext: expected output_stride 8, 16 or 32, got 4"),
        ("efficientnet_b0", {"output_stride": True}, "inverted_residual: expected output_stride 8, 16 or 32, got True"),
        ("densenet121", {"output_stride": 8}, "densenet121: unknown option 'output_stride'.*expected one of layers"),
        ("densenet121", {"drop_path_rate": 0.1}, "got drop_path_rate. Remove it: this family has no stochastic depth"),
        ("convnext_atto", {"act_layer": "gel"}, r"convnext: unknown activation 'gel' \(did you mean gelu"),
        ("efficientnet_b0", {"act_layer": "identity"}, "inverted_residual: unknown activation 'identity'"),
        ("efficientnet_b0", {"norm_layer": "layer"}, "inverted_residual: unknown norm 'layer'"),
        ("convnext_atto", {"head_init_scale": -1}, "convnext: expected head_init_scale from 0 to 1000, got -1. Use 1"),
        ("convnext_atto", {"head_init_scale": True}, "convnext: expected head_init_scale from 0 to 1000, got True"),
    ],
)
def test_an_option_that_a_family_lacks_is_refused_in_one_line(name, options, text):
    with pytest.raises(InputError, match=text) as refused:
        registry.plan_of(name, **options)
    assert "\n" not in str(refused.value)
