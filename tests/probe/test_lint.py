"""The mistakes that notes, threads and tutorials about shortcut connections are full of.

Each is a test: ours does it right, and where a user of skipway could make it, an error or a note of `summary` says so.
Tests without a file in front stand below.

| the mistake | where it is held off |
| --- | --- |
| a block whose forward never adds its input | test_skip: with_a_zero_body_the_network_computes_its_shortcut |
| n blocks that are one block n times | a_block_listed_ten_times_is_one_block_..., blocks_built_one_by_one_... |
| a misspelt argument, an argument that is not there | a_misspelt_word_is_answered_with_the_nearest |
| a misspelt method in a forward | a_misspelt_method_is_named_with_its_layer |
| a norm of the wrong name in a forward | a_misspelt_word_is_answered_with_the_nearest |
| the sum in an L2 penalty that is never called | half_the_penalty_is_the_weight_decay_to_the_last_bit |
| a loop that never sets its running loss | test_loop: a_step_is_the_mean_over_its_images_... |
| a norm weight of .5 taken for a variance of .5 | a_norm_s_weight_is_the_spread_it_gives_and_not_the_variance |
| "deep plain chains vanish": this one explodes | gradients_of_the_plain_network_explode_and_those_of_the_skips_do_not |
| evaluation in training mode, training in evaluation mode | evaluation_leaves_the_norms_..., both_modes_... |
| the norm behind the activation | test_blocks: the_order_of_a_body_is_that_of_its_paper |
| the shortcut around other layers than was said | to_skip_k_layers_is_a_body_of_k_layers |
| "100 blocks" that are 10 | summary_says_how_many_shortcuts_there_are |
| a wrapper whose layer is not registered | test_composed_skips: ..._6_parameters_and_not_4; layers_that_are_... |
| sizes that differ and no projection | test_composed_skips: sizes_that_differ_...; stages_that_change_... |
| what was kept before the branch in a concat | test_composed_skips: the_branch_stands_before_what_was_kept_... |
| an activation after the sum that cannot be left out | test_composed_skips: the_activation_comes_after_the_sum_... |
| a shortcut around one layer only | to_skip_k_layers_is_a_body_of_k_layers |
| a sum before the projection | stages_that_change_size_and_channels_are_projected |
| a basic block without its second norm and last activation | a_basic_block_has_both_norms_... |
| convolutions that keep a bias in front of a norm | a_basic_block_has_both_norms_... |
| a stride on two layers of a bottleneck | a_stride_on_two_layers_of_a_bottleneck_gives_14_beside_56 |
| a mode that never reaches the blocks | both_modes_reach_every_layer_and_what_the_shape_pass_makes |
| a count of layers that does not add up | test_resnet: the_number_in_a_name_is_its_number_of_layers |
| "the first convolution reduces the colors" | the_first_convolution_makes_channels_of_the_colors |
| an activation behind a norm that begins at zero | what_follows_zeros_without_a_slope_... |
| a block for equal channels and stride 1 alone | stages_that_change_size_and_channels_are_projected |
| a pool of 2 for every stride | a_pooled_shortcut_follows_the_stride |
| a pool that drops the last row of an odd size | a_pooled_shortcut_follows_the_stride |
| the residual called prediction minus target | the_body_learns_the_target_minus_the_input |
| an identity put in behind an activation | test_blocks: an_identity_block_changes_nothing_behind_an_activation_... |
| shapes that broadcast | shapes_that_would_broadcast_are_refused |
| `branch += x`, an activation in place that begins the body | what_changes_the_shortcut_in_place_is_refused |
| a batch of one and a batch norm | a_batch_of_one_is_refused_by_a_norm_..., ..._are_noted |
"""

import copy
import functools
import re
import statistics

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.data.image_spec import Spec
from skipway.errors import InputError, ShapeError
from skipway.models import registry
from skipway.models.network import build_network
from skipway.nn.blocks import Layers, steps_of
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import Scale
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import Project, make_shortcut
from skipway.nn.skip import Skip
from skipway.probe.summary import summary

SPEC = Spec(1, 8, 8, (0.5,), (0.25,), ("a", "b"))


def notes(network, shape):
    return summary(network, shape).notes


def count(network):
    return sum(p.numel() for p in network.parameters())


# The road from one convolution to a hundred blocks


def road(width, *middle, width2=None):
    """Two convolutions with pools, whatever is in the middle, two linear layers: images of 32 pixels, two classes."""
    last = width2 or width // 2
    return Chain(
        nn.Conv2d(3, width, 3, padding=1),
        torch.tanh,
        nn.MaxPool2d(2),
        nn.Conv2d(width, last, 3, padding=1),
        torch.tanh,
        nn.MaxPool2d(2),
        *middle,
        nn.Flatten(),
        Dense(None, 32, torch.tanh),
        Dense(32, 2),
    )


def third():
    return Chain(nn.Conv2d(16, 16, 3, padding=1), torch.relu)


@pytest.mark.parametrize(
    "make, wanted",
    [
        (lambda: road(16), 18_090),
        (lambda: road(32), 38_386),
        (lambda: road(32, third(), nn.MaxPool2d(2)), 16_130),
        (lambda: road(32, Skip(third()), nn.MaxPool2d(2)), 16_130),
    ],
)
def test_the_networks_of_the_road_have_the_counts_that_are_known(make, wanted):
    network = make()
    assert output_shape(network, (2, 3, 32, 32)) == (2, 2)
    assert count(network) == summary(network, (2, 3, 32, 32)).parameters == wanted


def block(chans=32, gamma=0.5):
    conv, norm = nn.Conv2d(chans, chans, 3, padding=1, bias=False), nn.BatchNorm2d(chans)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    nn.init.constant_(norm.weight, gamma)
    return Chain(conv=conv, norm=norm, act=nn.ReLU())


def deep(blocks, size=32):
    stem = Chain(nn.Conv2d(3, 32, 3, padding=1), torch.relu, nn.MaxPool2d(2))
    head = Chain(nn.MaxPool2d(2), nn.Flatten(), Dense(32 * (size // 4) ** 2, 32, torch.relu), Dense(32, 2))
    return Chain(stem=stem, blocks=Chain(*blocks), head=head)


@pytest.mark.parametrize("times", [10, 100])
def test_a_block_listed_ten_times_is_one_block_said_at_once_and_noted(times):
    with pytest.warns(UserWarning, match="layers of this Chain share parameters .* Build a new layer for each"):
        network = deep(times * [Skip(block())])
    assert count(network) == 75_810
    (note,) = notes(network, (2, 3, 32, 32))
    assert note == (
        f"blocks.0, blocks.1, blocks.2 and {times - 3} more: the same Skip is called {times} times and shares its "
        f"parameters; its batch norms see {times} batches in each forward pass. Create a new module for each place to "
        "get separate weights"
    )
    network(torch.randn(2, 3, 32, 32))
    state = network.state_dict()
    assert network.blocks[0].body.norm.num_batches_tracked == times
    assert len(state) == 6 * times + 6 and len({t.data_ptr() for t in state.values()}) == 12


@pytest.mark.parametrize("times, wanted", [(10, 159_330), (100, 994_530)])
def test_blocks_built_one_by_one_have_weights_of_their_own_and_no_note(times, wanted):
    network = deep([Skip(block()) for _ in range(times)])
    found = summary(network, (2, 3, 32, 32))
    assert found.parameters == sum(r.parameters for r in found.rows) == wanted and not found.notes


def test_summary_says_how_many_shortcuts_there_are():
    text = str(summary(deep([Skip(block()) for _ in range(10)]), (2, 3, 32, 32)))
    assert text.splitlines()[-1].endswith("an input of 2x3x32x32, 10 shortcuts")


@pytest.mark.parametrize(
    "ask, text",
    [
        (
            lambda: registry.build("resnet20", in_chan=32),
            r"unknown option 'in_chan' \(did you mean in_chans\?\): expected",
        ),
        (
            lambda: registry.build("resnet20", norm="bacth"),
            r"resnet: unknown norm 'bacth' \(did you mean batch\?\)",
        ),
        (
            lambda: Chain(conv=nn.ReLU(), conv2_batchnorm=nn.ReLU())["conv_batchnorm"],
            r"this Chain has no layer 'conv_batchnorm' \(did you mean conv2_batchnorm\?\). Use one of its layers: conv",
        ),
        (lambda: Chain()["head"], "this Chain has no layer 'head'. Use one of its layers: none"),
        (lambda: Skip(nn.ReLU(), "projekt"), r"unknown shortcut 'projekt' \(did you mean project\?\)"),
        (lambda: Skip(nn.ReLU(), join="ad"), r"unknown join 'ad' \(did you mean add\?\)"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_nearest(ask, text):
    with pytest.raises(InputError, match=text):
        ask()


def test_a_misspelt_method_is_named_with_its_layer():
    with pytest.raises(ShapeError, match=r"^Function at head\.1 cannot process \(2, 4\): 'Tensor' .* attribute 'veiw'"):
        output_shape(Chain(head=Chain(nn.Linear(3, 4), lambda x: x.veiw(-1))), (2, 3))


def test_half_the_penalty_is_the_weight_decay_to_the_last_bit():
    networks = [Chain(Dense(6, 5, torch.tanh), Skip(Dense(5, 5)), Dense(5, 2)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    optimisers = [
        torch.optim.SGD(n.parameters(), 0.1, weight_decay=d) for n, d in zip(networks, (0, 0.002), strict=True)
    ]
    for _ in range(5):
        x, y = torch.randn(8, 6), torch.randint(2, (8,))
        for network, optimiser, penalty in zip(networks, optimisers, (0.001, 0), strict=True):
            loss = F.cross_entropy(network(x), y)
            if penalty:
                loss = loss + penalty * sum(p.pow(2.0).sum() for p in network.parameters())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))


def test_a_norm_s_weight_is_the_spread_it_gives_and_not_the_variance():
    out = block(8).norm(3 + 2 * torch.randn(64, 8, 16, 16, dtype=torch.float32)).detach().numpy()
    assert out.std(axis=(0, 2, 3)) == pytest.approx(0.5, rel=1e-3)
    assert out.var(axis=(0, 2, 3)) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.slow
def test_gradients_of_the_plain_network_explode_and_those_of_the_skips_do_not():
    def median(blocks, around):
        norms = []
        for seed in range(3):
            torch.manual_seed(seed)
            network = deep([around(block()) for _ in range(blocks)], 16)
            F.cross_entropy(network(torch.randn(8, 3, 16, 16)), torch.randint(2, (8,))).backward()
            norms.append(network.stem[0].weight.grad.norm().item())
        return statistics.median(norms)

    plain, skips = ([median(n, around) for n in (10, 30, 100)] for around in (lambda body: body, Skip))
    assert max(skips) < 10 and min(skips) > 0.1
    assert plain[0] < 10 < plain[1] < 1000 and plain[2] > 1e5


def test_evaluation_leaves_the_norms_as_they_were_and_gives_the_mode_back():
    network = build_network(registry.plan_of("resnet20", num_classes=2, in_chans=1), SPEC)
    before = copy.deepcopy(network.state_dict())
    network.predict([np.zeros((8, 8), np.uint8)])
    summary(network, (1, 1, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(m.training for m in network.modules())


def test_both_modes_reach_every_layer_and_what_the_shape_pass_makes():
    network = Chain(Skip([nn.Linear(3, 4), Skip([nn.BatchNorm1d(4), Dense(None, 5)], "auto")], "project", join="gate"))
    for mode in (False, True):
        assert all(m.training == mode for m in network.train(mode).modules())
        output_shape(network, (2, 3))
        assert all(m.training == mode for m in network.modules())
    x = torch.randn(4, 3)
    assert not torch.equal(network(x), network.eval()(x))


def test_to_skip_k_layers_is_a_body_of_k_layers():
    second, third = nn.Linear(3, 3), nn.Linear(3, 3)
    first_out = torch.randn(2, 3)
    both = Skip([second, third])(first_out)
    assert torch.equal(both, third(second(first_out)) + first_out)
    one = Chain(second, Skip(third))(first_out)
    assert torch.equal(one, third(second(first_out)) + second(first_out)) and not torch.allclose(both, one)


# Layers that the network does not know of


class Wrapper:
    """As in the thread: a callable with a layer in it that nobody registers."""

    def __init__(self):
        self.inner = nn.Linear(3, 3)

    def __call__(self, x):
        return self.inner(x) + x

    def run(self, x):
        return self.inner(x)


class Holder(nn.Module):
    def __init__(self, held):
        super().__init__()
        self.held = held

    def forward(self, x):
        return x


GLOBAL = nn.Linear(3, 3)


def of_the_file(x):
    return GLOBAL(x)


def default(x, layer=GLOBAL):
    return layer(x)


def closure():
    layer = nn.Linear(3, 3)
    return lambda x, *kept: sum(kept, layer(x))


@pytest.mark.parametrize(
    "make, note",
    [
        (lambda: Holder([nn.Linear(3, 3)]), r"1.held[0] (Linear): hidden in a list"),
        (lambda: Holder((nn.ReLU(), nn.Linear(3, 3))), "1.held[1] (Linear): hidden in a tuple"),
        (lambda: Holder({"a": [nn.Linear(3, 3)]}), "1.held['a'][0] (Linear): hidden in a dict"),
        (lambda: Holder([nn.Parameter(torch.ones(12))]), "1.held[0] (Parameter): hidden in a list"),
        (lambda: Holder(Wrapper()), "1.held.inner (Linear): hidden in a Wrapper"),
        (Wrapper, "1.function.inner (Linear): hidden in a Wrapper"),
        (lambda: Wrapper().run, "1.function.__self__.inner (Linear): hidden in a method"),
        (lambda: nn.Linear(3, 3).forward, "1.function.__self__ (Linear): hidden in a method"),
        (closure, "1.function.layer (Linear): hidden in a function"),
        (lambda: of_the_file, "1.function.GLOBAL (Linear): hidden in a function"),
        (lambda: default, "1.function.__defaults__[0] (Linear): hidden in a function"),
        (lambda: functools.partial(closure()), "1.function.layer (Linear): hidden in a partial"),
        (
            lambda: functools.partial(lambda x, layer: layer(x), layer=GLOBAL),
            "1.function.keywords['layer'] (Linear): hidden in a partial",
        ),
        (lambda: Skip(nn.ReLU(), join=closure()), "1.join.layer (Linear): hidden in a function"),
        (lambda: Parallel(closure(), nn.ReLU()), "1.join.layer (Linear): hidden in a function"),
    ],
)
def test_layers_that_are_hidden_from_the_network_are_named(make, note):
    network = Chain(nn.Linear(3, 3), make())
    assert count(network) == 12
    (found,) = notes(network, (2, 3))
    assert found.startswith(note + ", so 12 values are not trained, moved or saved. Use an nn.Module")


@pytest.mark.parametrize(
    "make, replacement",
    [
        (lambda: Holder([nn.Linear(3, 3)]), "ModuleList"),
        (lambda: Holder({"a": nn.Linear(3, 3)}), "ModuleDict"),
        (lambda: Chain(Wrapper()), "Module subclass"),
    ],
)
def test_the_fix_for_a_hidden_layer_fits_its_container(make, replacement):
    (note,) = notes(nn.Sequential(make()), (2, 3))
    assert note.endswith(f" Use an nn.{replacement}")


def test_what_is_registered_or_has_nothing_to_learn_is_not_called_hidden():
    layer = nn.Linear(3, 3)
    holder = Holder([layer, nn.ReLU(), 3, "text", [layer], torch.relu, nn.Linear, np])
    holder.again = {"layer": layer, "itself": holder.held}
    holder.held.append(holder.held)
    tied = Chain(
        layer, lambda x: x @ layer.weight, holder, torch.nn.functional.gelu, nn.LSTM(3, 4), lambda pair: pair[0]
    )
    assert notes(tied, (2, 3)) == []


def test_many_hidden_layers_are_one_note():
    (note,) = notes(Chain(nn.Linear(3, 3), Holder([nn.BatchNorm1d(3) for _ in range(10)])), (2, 3))
    assert "1.held[2] (BatchNorm1d) and 7 more: hidden in a list, so 130 values" in note


# Layers that no gradient reaches


def first_block(*end):
    """The body of a course's first block: it ends with a norm that begins at zero, and whatever `end` is."""
    body = Chain(
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        *end,
    )
    nn.init.zeros_(body[4].weight)
    return body


def gradients(network, shape=(2, 4, 5, 5)):
    network(torch.randn(shape)).add(1).square().sum().backward()
    return [p.grad.abs().max().item() for p in network.parameters()]


DEAD = "this activation has zero slope at 0, and its input"


def test_what_follows_zeros_without_a_slope_is_dead_for_ever_and_noted():
    network = Chain(Skip(first_block(nn.ReLU())))
    assert max(gradients(network)) == 0
    (note,) = notes(network, (2, 4, 5, 5))
    assert note == (
        f"0.body.5: {DEAD} 0.body.4 is zero at initialization, so no gradient ever passes. Remove the activation, or "
        "initialize the weight or bias to nonzero"
    )


def zero(layer):
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


@pytest.mark.parametrize(
    "make, where",
    [
        (lambda: Skip(first_block(nn.ReLU6())), "body.5"),
        (lambda: Skip(first_block(nn.Identity(), nn.Dropout(0.9), torch.relu)), "body.7"),
        (lambda: Skip(first_block(nn.GELU(), nn.ReLU())), "body.6"),
        (lambda: Skip(first_block(lambda x: x * x)), "body.5"),
        (lambda: Skip(nn.Sequential(nn.Sequential(zero(nn.Conv2d(4, 4, 1))), nn.ReLU())), "body.1"),
        (lambda: Skip(nn.Sequential(zero(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4), nn.ReLU(inplace=True))), "body.2"),
        (lambda: nn.Sequential(nn.Flatten(), zero(nn.Linear(100, 5)), nn.ReLU(), nn.Linear(5, 1)), "2"),
        (lambda: nn.Sequential(zero(nn.ConvTranspose2d(4, 4, 1, bias=False)), nn.Hardshrink()), "1"),
    ],
)
def test_every_way_to_end_in_zeros_without_a_slope_is_noted(make, where):
    network = make()
    (note,) = notes(network, (2, 4, 5, 5))
    assert note.startswith(f"{where}: {DEAD}") and 0 in gradients(network)


def test_a_dense_layer_s_own_activation_counts():
    network = Chain(Skip(Dense(4, 4, torch.relu)))
    zero(network[0].body.linear)
    (note,) = notes(network, (2, 4))
    assert note.startswith(f"0.body.activation: {DEAD} 0.body.linear") and max(gradients(network, (2, 4))) == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skip(first_block(), after=nn.ReLU()),
        lambda: Skip(first_block(nn.GELU())),
        lambda: Skip(first_block(nn.LeakyReLU())),
        lambda: Skip(first_block(nn.PReLU())),
        lambda: Skip(first_block(lambda x: x.clamp(min=0))),  # torch's slope there is 1
        lambda: Skip(first_block(nn.Softmax(1))),
        lambda: Skip(first_block(nn.Sigmoid(), nn.ReLU())),
        lambda: Skip(first_block(nn.Conv2d(4, 4, 1), nn.ReLU())),
        lambda: Skip(first_block(nn.AdaptiveAvgPool2d(5))),
        lambda: Chain(first_block(), Skip(nn.Conv2d(4, 4, 1)), nn.ReLU()),
    ],
)
def test_what_has_a_slope_at_zero_or_follows_the_join_lives(make):
    network = make()
    assert notes(network, (2, 4, 5, 5)) == []
    assert gradients(network)[6] > 0  # of the norm that begins at zero


def test_what_a_sequential_of_the_user_s_own_order_does_is_not_guessed():
    class Backwards(nn.Sequential):
        def forward(self, x):
            return self[0](self[1](x))

    network = Backwards(zero(nn.Linear(4, 4)), nn.ReLU())
    assert notes(network, (2, 4)) == [] and max(gradients(network, (2, 4))) > 0


def test_a_norm_that_begins_just_above_zero_lives():
    network = Skip(first_block(nn.ReLU()))
    nn.init.constant_(network.body[4].bias, 1e-3)
    assert notes(network, (2, 4, 5, 5)) == [] and max(gradients(network)) > 0


def test_a_zero_scale_around_a_zero_body_is_dead_for_ever_and_noted():
    network = Chain(block=Skip(first_block(), join="scale"))
    assert max(gradients(network)) == 0
    (note,) = notes(network, (2, 4, 5, 5))
    assert note == (
        "block: its scale and block.body.4, the end of its body, are both zero at initialization, so neither ever gets "
        "a gradient. Initialize one of them to nonzero"
    )
    for lives in (Skip(first_block(), join=Scale(init=1.0)), Skip(nn.Conv2d(4, 4, 1), join="scale")):
        assert notes(lives, (2, 4, 5, 5)) == [] and max(gradients(lives)) > 0


def test_weights_that_nobody_knows_yet_are_not_called_zero():
    with torch.device("meta"):
        network = Skip(first_block(nn.ReLU()))
    assert notes(network, (2, 4, 5, 5)) == []


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet20", {}),
        ("resnet20", {"norm": "fixup"}),
        ("resnet20", {"norm": "none", "join": "scale"}),
        ("resnet20", {"block": "preact_basic", "norm": "none"}),
        ("resnet20", {"shortcut": "none"}),
        ("resnet20", {"attention": "se"}),
        ("densenetbc100_12", {"layers": [2, 2]}),
        ("resnet9", {}),
        ("resmlp", {"norm": "layer"}),
        ("resmlp", {"norm": "fixup"}),
        ("resmlp", {"join": "gate", "norm": "none"}),
    ],
)
def test_no_network_of_ours_makes_a_mistake(name, options):
    network, plan = registry.build(name, **options)
    shape = (2, plan["in_features"]) if "in_features" in plan else (2, 3, 32, 32)
    assert notes(network, shape) == []


# The tutorial's networks


@pytest.mark.parametrize("channels, stride", [(4, 1), (8, 1), (4, 2), (8, 2), (8, 3)])
@pytest.mark.parametrize("kind", ["auto", "project", "pool", "pad"])
def test_stages_that_change_size_and_channels_are_projected(channels, stride, kind):
    body = nn.Conv2d(4, channels, 3, stride, 1)
    assert output_shape(Skip(body, kind), (2, 4, 12, 12)) == (2, channels, 12 // stride, 12 // stride)
    if (channels, stride) != (4, 1):
        with pytest.raises(
            ShapeError, match='^Skip: `add`: expected equal shapes, got .* Set shortcut="project" on the Skip'
        ):
            output_shape(Skip(body), (2, 4, 12, 12))


def test_a_basic_block_has_both_norms_an_activation_after_the_sum_and_no_biases_before_a_norm():
    network, _ = registry.build("resnet18")
    for skip in (skip for stage in (network.stage1, network.stage3) for skip in stage):
        assert [n for n, _ in skip.body.named_children()] == ["conv1", "norm1", "act1", "conv2", "norm2"]
        assert isinstance(skip.after, nn.ReLU)
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv2d))


def test_a_stride_on_two_layers_of_a_bottleneck_gives_14_beside_56():
    wrong = Skip(Chain(nn.Conv2d(256, 64, 1), nn.Conv2d(64, 64, 3, 2, 1), nn.Conv2d(64, 512, 1, 2)), Project(256, 512))
    with pytest.raises(ShapeError, match=r"\(1, 512, 14, 14\) and \(1, 512, 56, 56\) \(body first\)"):
        output_shape(wrong, (1, 256, 56, 56))
    body = Layers().body(256, steps_of("bottleneck", 128, 2))
    assert [m.stride[0] for m in body if isinstance(m, nn.Conv2d)] == [1, 2, 1]
    assert output_shape(Skip(body, make_shortcut("project", 256, 512, 2)), (1, 256, 56, 56)) == (1, 512, 28, 28)


@pytest.mark.parametrize("in_chans", [1, 3, 5])
def test_the_first_convolution_makes_channels_of_the_colors(in_chans):
    first = next(m for m in registry.build("resnet18", in_chans=in_chans)[0].modules() if isinstance(m, nn.Conv2d))
    assert tuple(first.weight.shape) == (64, in_chans, 7, 7)


# The course's block


@pytest.mark.parametrize("size, stride, wanted", [(28, 2, 14), (29, 2, 15), (28, 3, 10), (29, 3, 10), (30, 4, 8)])
def test_a_pooled_shortcut_follows_the_stride(size, stride, wanted):
    body = nn.Conv2d(4, 8, 3, stride, 1)
    assert output_shape(Skip(body, "pool"), (2, 4, size, size)) == (2, 8, wanted, wanted)
    halves = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(4, 8, 1))
    if wanted != size // 2:
        with pytest.raises(
            ShapeError, match=rf"\(2, 8, {wanted}, {wanted}\) and \(2, 8, 14, 14\)|and \(2, 8, 15, 15\)"
        ):
            output_shape(Skip(body, halves), (2, 4, size, size))


def test_the_body_learns_the_target_minus_the_input():
    torch.manual_seed(0)
    skip, x = Skip(nn.Linear(3, 3)), torch.randn(64, 3)
    target = x @ torch.randn(3, 3) + 1
    optimiser = torch.optim.LBFGS(skip.parameters(), max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = F.mse_loss(skip(x), target)
        loss.backward()
        return loss

    optimiser.step(closure)
    assert torch.allclose(skip.body(x), target - x, atol=1e-2)


# What broadcasts, works in place, or sees one value


@pytest.mark.parametrize(
    "body, shape, given, kept",
    [
        (nn.Linear(5, 1), (8, 5), (8, 1), (8, 5)),
        (nn.Conv2d(32, 1, 1), (2, 32, 4, 4), (2, 1, 4, 4), (2, 32, 4, 4)),
        (nn.Flatten(0), (8, 1), (8,), (8, 1)),
        (nn.AdaptiveAvgPool2d(1), (2, 3, 4, 4), (2, 3, 1, 1), (2, 3, 4, 4)),
    ],
)
@pytest.mark.parametrize("join", ["add", "multiply", "scale", "gate"])
def test_shapes_that_would_broadcast_are_refused(body, shape, given, kept, join):
    text = re.escape(f"Skip at part.0: `{join}`: expected equal shapes, got {given} and {kept} (body first)")
    with pytest.raises(ShapeError, match=f"^{text}"):
        output_shape(Chain(part=nn.Sequential(Skip(body, join=join))), shape)
    if join in ("add", "multiply"):
        with pytest.raises(ShapeError, match=f"^{text}"):
            Chain(part=nn.Sequential(Skip(body, join=join)))(torch.ones(shape))


CHANGES = "modifies its input in place, but both need it unchanged. Use layers"


@pytest.mark.parametrize("first", [lambda: [], lambda: [Dense(None, 3)]], ids=["quickly", "closely"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Skip([nn.Identity(), nn.ReLU(inplace=True), nn.Linear(3, 3)]),
        lambda: Skip([lambda x: x.view(-1).relu_().view(2, 3)]),
        lambda: Skip([lambda x: x[:, :1].mul_(2).expand(2, 3) * 1]),
        lambda: Skip([lambda x: x.add_(1)]),
        lambda: Skip(nn.Linear(3, 3), nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))),
        lambda: Skip(Skip([nn.Flatten(), nn.Hardtanh(inplace=True)])),
        lambda: Skip(Parallel("add", nn.Sequential(nn.Dropout(), nn.ReLU(inplace=True)), nn.Linear(3, 3))),
    ],
)
def test_what_changes_the_shortcut_in_place_is_refused(make, first):
    network = Chain(*first(), stage=nn.Sequential(make()))
    with pytest.raises(InputError, match=rf"^(Skip|Parallel) at stage\.0(\.body)?: .*{CHANGES}"):
        output_shape(network, (2, 3))


def test_what_works_in_place_on_its_own_tensors_is_not_refused():
    network = Chain(Skip([nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Linear(3, 3)], after=nn.ReLU(inplace=True)))
    assert output_shape(network, (2, 3)) == (2, 3) and summary(network, (2, 3)).notes == []


@pytest.mark.parametrize(
    "network, shape, text",
    [
        (
            Chain(nn.Flatten(), norm=nn.BatchNorm1d(3)),
            (1, 3),
            r"BatchNorm1d at norm: cannot normalize \(1, 3\): exp",
        ),
        (Skip(nn.BatchNorm1d(3)), (1, 3), r"BatchNorm1d at body: cannot normalize \(1, 3\)"),
        (
            Chain(a=nn.Sequential(nn.Identity(), Skip(nn.Sequential(nn.BatchNorm2d(3))))),
            (1, 3, 1, 1),
            r"BatchNorm2d at a\.1\.body\.0: cannot normalize \(1, 3, 1, 1\): .* Use batches of 2 .* call eval\(\)",
        ),
        (Parallel("add", Holder([]), nn.BatchNorm1d(3)), (1, 3), r"BatchNorm1d at branches\.1: cannot normalize"),
        (Chain(nn.InstanceNorm2d(3)), (2, 3, 1, 1), r"InstanceNorm2d at 0: .* Use another norm there"),
        (Chain(nn.GroupNorm(3, 3)), (1, 3, 1, 1), r"GroupNorm at 0: .* Use another norm there"),
    ],
)
def test_a_batch_of_one_is_refused_by_a_norm_in_one_line_with_its_path(network, shape, text):
    with pytest.raises(ShapeError, match=f"^{text}") as refused:
        network(torch.randn(shape))
    assert len(str(refused.value).splitlines()) == 1


def test_a_batch_of_one_passes_where_there_is_something_to_norm():
    network = Chain(nn.BatchNorm2d(3), Skip(nn.BatchNorm2d(3)))
    assert network(torch.randn(1, 3, 2, 1)).shape == (1, 3, 2, 1)
    assert network.eval()(torch.randn(1, 3, 1, 1)).shape == (1, 3, 1, 1)


def test_a_user_s_own_error_comes_through_as_it_is():
    def fails(x):
        raise ValueError("of the user") from KeyError("cause")

    with pytest.raises(ValueError, match="^of the user$") as raised:
        Chain(Skip([nn.ReLU(), fails]))(torch.ones(2))
    assert type(raised.value) is ValueError and isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("batch", [1, 4])
def test_norms_that_a_batch_of_one_would_fail_are_noted(batch):
    network = Chain(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), late=nn.Sequential(nn.BatchNorm2d(3)))
    (note,) = notes(network, (batch, 3, 4, 4))
    assert note.startswith(
        "late.0: batch norm cannot train on a batch of one sample, which has one value per channel here"
    )


@pytest.mark.parametrize("norm", [nn.GroupNorm(3, 3), nn.Sequential(nn.Flatten(), nn.Linear(3, 1), nn.LayerNorm(1))])
def test_norms_of_single_values_are_noted(norm):
    (note,) = notes(Chain(nn.AdaptiveAvgPool2d(1), norm), (2, 3, 4, 4))
    assert note.endswith(
        "each mean is over a single value, so the output is the bias for every input. Use fewer groups or another norm"
    )


def test_a_norm_that_is_called_by_keyword_is_noted():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.norm(input=x)

    (note,) = notes(Keyword(), (2, 3))
    assert note.startswith("norm: batch norm cannot train on a batch of one sample")


def test_a_network_for_batches_of_one_size_has_notes_too():
    network = Chain(nn.Linear(3, 3), lambda x: x.view(4, 3), Holder([nn.Linear(3, 3)]))
    assert len(notes(network, (4, 3))) == 1


def test_a_layer_that_its_module_calls_twice_is_noted_by_its_one_path():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())

        def forward(self, x):
            return self.inner(self.inner(x))

    (note,) = notes(nn.Sequential(Twice()), (2, 3))
    assert note.startswith("0.inner: the same Sequential is called 2 times and shares its parameters. Create")
