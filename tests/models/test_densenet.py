import json

import pytest
import torch
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.models import registry
from skipway.models.densenet import DenseNetPlan, densenet
from skipway.nn.joins import append
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import named_skips

# With 1000 classes as in torchvision, with 10 as in the paper's table (1.0 M, 7.0 M, 27.2 M; 0.8 M, 15.3 M, 25.6 M).
IMAGENET = {
    "densenet121": 7_978_856,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet161": 28_681_000,
    "densenet264": 33_337_704,
}
CIFAR = {
    "densenet40_12": 1_019_722,
    "densenet100_12": 6_979_642,
    "densenet100_24": 27_249_082,
    "densenetbc100_12": 769_162,
    "densenetbc250_24": 15_324_406,
    "densenetbc190_40": 25_624_430,
}
TINY = {"layers": (2, 1), "growth": 4, "num_classes": 3, "stem": "small"}


def tiny(**options):
    return densenet(DenseNetPlan(**{**TINY, **options}))


def on_meta(name, **options):
    with torch.device("meta"):
        return registry.build(name, **options)[0]


@pytest.mark.parametrize("name, count", [*IMAGENET.items(), *CIFAR.items()])
def test_every_network_has_the_published_count(name, count):
    network = on_meta(name)
    assert sum(p.numel() for p in network.parameters()) == count
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    depth = name.removeprefix("densenet").removeprefix("bc").split("_")[0]
    assert len(layers) == int(depth) + (name == "densenet264")  # as the paper's table has it, which gives 265
    assert network.head.out_features == (1000 if name in IMAGENET else 10)


def test_every_layer_is_given_all_that_came_before_it_in_that_order():
    network = tiny(layers=(3,), bottleneck=0, stem_channels=5).eval()
    x = network.stem(torch.randn(2, 3, 6, 6))
    kept = [x]
    for layer in network.stage1:
        kept.append(layer.body(torch.cat(kept, 1)))
    assert torch.equal(network.stage1(x), torch.cat(kept, 1)) and network.stage1(x).shape[1] == 5 + 3 * 4
    assert all(skip.join is append for _, skip in named_skips(network))


@pytest.mark.parametrize("compression, kept", [(1.0, 16), (0.5, 8), (0.3, 4), (0.01, 1)])
def test_a_transition_keeps_its_share_of_the_channels_and_halves_the_image(compression, kept):
    network = tiny(compression=compression)  # 8 channels of the stem and 2 x 4 of its layers
    assert output_shape(network.transition1, (1, 16, 8, 8)) == (1, kept, 4, 4)


@pytest.mark.parametrize("bottleneck, shapes", [(4, [(16, 8, 1, 1), (4, 16, 3, 3)]), (0, [(4, 8, 3, 3)])])
def test_a_bottleneck_stands_before_each_3x3_or_does_not(bottleneck, shapes):
    body = tiny(bottleneck=bottleneck).stage1[0].body
    assert [tuple(m.weight.shape) for m in body if isinstance(m, nn.Conv2d)] == shapes
    order = [name for name, _ in body.named_children()]
    assert order == [f"{kind}{i}" for i in range(1, len(shapes) + 1) for kind in ("norm", "act", "conv")]


def test_dropout_ends_each_layer_and_is_off_at_evaluation():
    network = tiny(dropout=0.5)
    assert all([name for name, _ in skip.body.named_children()][-1] == "dropout" for _, skip in named_skips(network))
    twin, x = tiny(), torch.randn(2, 3, 8, 8)
    twin.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(x), twin.eval()(x))
    assert not torch.equal(network.train().stage1(network.stem(x)), twin.train().stage1(twin.stem(x)))


@pytest.mark.parametrize("stem, size", [("small", 32), ("large", 8)])
def test_the_stem_keeps_the_size_or_quarters_it(stem, size):
    assert output_shape(tiny(stem=stem).stem, (1, 3, 32, 32)) == (1, 8, size, size)


@pytest.mark.parametrize("layers", [[1], [3], [1, 1], [1, 2, 1, 1, 1]])
@pytest.mark.parametrize("in_chans, num_classes", [(1, 1), (4, 5)])
def test_any_layers_from_one_up_are_a_network(layers, in_chans, num_classes):
    options = {"layers": layers, "growth": 4, "stem": "small", "in_chans": in_chans, "num_classes": num_classes}
    network, plan = registry.build("densenet121", **options)
    assert network(torch.randn(2, in_chans, 16, 16)).shape == (2, num_classes)
    assert len(list(named_skips(network))) == sum(layers) and plan["layers"] == layers
    again = registry.rebuild(json.loads(json.dumps(plan)))
    assert repr(again) == repr(network)


def test_a_image_that_is_too_small_is_named_with_its_place():
    with pytest.raises(ShapeError, match=r"AvgPool2d at transition1.pool: expected .*, got .* Use larger"):
        output_shape(tiny(), (1, 3, 1, 1))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"stem": "smal"}, r"densenet: unknown stem 'smal' \(did you mean small\?\): expected one of large, small"),
        ({"layers": []}, "densenet: expected 1 to 1000 layers, got 0. Change layers"),
        ({"layers": [999, 2]}, "densenet: expected 1 to 1000 layers, got 1001. Change layers"),
        ({"layers": [2, 0]}, r"densenet: expected integers of at least 1 for layers, got \[2, 0\]"),
        ({"growth": 0}, "densenet: expected integers of at least 1 for growth, got 0"),
        ({"bottleneck": -1}, "densenet: expected integers of at least 0 for bottleneck, got -1"),
        ({"stem_channels": 0}, "densenet: expected integers of at least 1 for stem_channels, got 0"),
        ({"compression": 0}, "densenet: expected compression above 0 and up to 1, got 0"),
        ({"compression": 1.5}, "densenet: expected compression above 0 and up to 1, got 1.5"),
        ({"compression": float("nan")}, "densenet: expected compression above 0 and up to 1, got nan"),
        ({"compression": "half"}, "densenet: expected compression above 0 and up to 1, got half"),
        ({"dropout": 1}, "densenet: expected dropout of at least 0 and below 1, got 1"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, text):
    with pytest.raises(InputError, match=text) as refused:
        tiny(**options)
    assert len(str(refused.value).splitlines()) == 1
