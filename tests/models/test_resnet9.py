import json

import numpy as np
import pytest
import torch
from torch import nn

from skipway.errors import InputError
from skipway.model_factory import auto_model, create_model
from skipway.models import registry
from skipway.models.resnet9 import ResNet9Plan, Whitening, whiten
from skipway.models.resnet9 import resnet9 as rule
from skipway.nn.skip import Skip


def resnet9(**options):
    plan = ResNet9Plan(**options)
    return rule(plan), plan.as_dict()


SMALL = {"widths": (4, 8, 8, 12), "layers": (1, 1, 1)}


def test_the_networks_of_the_source_have_its_parameters():
    assert sum(p.numel() for p in create_model("resnet9").parameters()) == 6_573_120  # printed as 6.6M


@pytest.mark.parametrize("stem", ["small", "whitening"])
@pytest.mark.parametrize("in_chans, size", [(1, 9), (3, 32), (4, 17)])
def test_every_stem_channel_count_and_size_gives_logits(stem, in_chans, size):
    network, plan = resnet9(**SMALL, stem=stem, in_chans=in_chans, num_classes=5)
    assert network(torch.randn(2, in_chans, size, size)).shape == (2, 5)
    again = registry.rebuild({"family": "resnet9", **json.loads(json.dumps(plan))})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_every_activation_is_that_of_the_plan():
    for stem in ("small", "whitening"):
        network, plan = resnet9(**SMALL, stem=stem, activation="gelu")
        kinds = [type(layer) for name, layer in network.named_modules() if name.endswith("act")]
        assert set(kinds) == {nn.GELU} and len(kinds) == 7 and plan["activation"] == "gelu"
    assert create_model("resnet9m_gelu").plan == {
        **create_model("resnet9m").plan,
        "name": "resnet9m_gelu",
        "activation": "gelu",
    }


def test_stages_halve_and_layers_count_the_convolutions_of_each_body():
    network, _ = resnet9(widths=(4, 8, 8, 12), layers=(2, 0, 1))
    bodies = {path: m for path, m in network.named_modules() if isinstance(m, Skip)}
    assert {path: len(m.body) for path, m in bodies.items()} == {"stage1.skip": 2, "stage3.skip": 1}
    assert network[:4](torch.randn(1, 3, 32, 32)).shape == (1, 12, 4, 4)


def test_a_convolution_begins_as_a_partial_identity():
    network, _ = resnet9(**SMALL)
    weight = network.get_submodule("stage1.skip.body.0.conv").weight.detach()
    x = torch.randn(1, 8, 5, 5)
    assert torch.equal(nn.functional.conv2d(x, weight, padding=1), x)


def test_norm_scales_are_fixed_and_logits_scaled():
    network, _ = resnet9(**SMALL)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(n.weight.requires_grad for n in norms) and all(n.bias.requires_grad for n in norms)
    x = torch.randn(2, 3, 16, 16)
    network.eval()
    assert torch.allclose(network(x), network[:-1](x) / 9)


def test_a_whitening_stem_gives_uncorrelated_channels_of_one_size():
    noise = np.random.default_rng(0).standard_normal((200, 3, 12, 12)).cumsum(axis=3)
    x = torch.from_numpy(noise + noise.mean(axis=1, keepdims=True)).float()
    stem = Whitening(3)
    assert not stem.weight.requires_grad
    stem.fit(x)
    out = stem(x).detach().movedim(1, 0).reshape(24, -1)
    assert torch.allclose(out[:12] @ out[:12].T / out.shape[1], torch.eye(12), atol=0.02)
    assert torch.allclose(out[12:], -out[:12], atol=1e-5)


def test_whiten_fits_every_whitening_stem_of_a_network_and_no_other_layer():
    network, _ = resnet9(**SMALL, stem="whitening")
    before = {k: v.clone() for k, v in network.state_dict().items()}
    whiten(network, torch.randn(50, 3, 8, 8))
    assert [k for k, v in network.state_dict().items() if not torch.equal(v, before[k])] == ["stem.white.weight"]


def test_what_auto_picks_can_be_built_for_its_sizes():
    for size in (1, 3, 4, 8, 16, 17, 28, 32, 64, 96, 128):
        name, options = auto_model(size, 500)
        network = create_model(name, 3, 1, **options)
        assert network(torch.randn(2, 1, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"widths": (4, 8)}, "resnet9: expected one more width than layers"),
        ({"widths": (4, 0, 8, 8)}, "resnet9: expected integers of at least 1 for widths"),
        ({"layers": (2, -1, 2)}, "resnet9: expected integers of at least 0 for layers"),
        ({"layers": (2.7, 0, 2)}, "resnet9: expected integers of at least 0 for layers"),
        ({"num_classes": -1}, "resnet9: expected integers of at least 0 for num_classes"),
        ({"activation": "gelo"}, r"resnet9: unknown activation 'gelo' \(did you mean gelu"),
        ({"stem": "whitning"}, r"resnet9: unknown stem 'whitning' \(did you mean whitening\?\)"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(InputError, match=text):
        resnet9(**options)
