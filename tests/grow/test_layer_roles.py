"""What layers do to channels: which of them are widened, and which one is named if it is in the way."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import skipway as sw
from skipway.errors import InputError
from skipway.grow.deepening import deepen, grow_wider, widen

IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))


def between(*layers):
    """Layers for 12 channels of an image between two convolutions."""
    return sw.Chain(nn.Conv2d(3, 12, 3), *layers, nn.Conv2d(12, 4, 1))


def lively(network):
    torch.manual_seed(3)
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.2, 1.2)
    return network.eval()


def need_equal(network, x, factor):
    """Widen a network, compare it in float64 with the old one in both modes, and return it."""
    growth = grow_wider(network, factor, probe=x)
    old, new = (copy.deepcopy(n).double().eval() for n in (network, growth.network))
    for _ in range(2):  # in training, norms see copies of what they saw
        expected, found = old(x.double()), new(x.double())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.detach().abs().max()))
        old.train(), new.train()
    assert sum(p.numel() for p in new.parameters()) > sum(p.numel() for p in old.parameters())
    return growth.network


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
def test_group_norms_of_any_number_of_groups_take_whole_factors(groups, factor):
    wide = need_equal(lively(between(nn.GroupNorm(groups, 12), nn.ReLU())), IMAGES, factor)
    assert (wide[1].num_groups, wide[1].num_channels) == (groups, 12 * factor)


@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet50_gn", {"widths": [12, 24], "layers": [1, 1], "stem_channels": 12}),  # 4 groups of 3 become 8 groups
        ("resnet20", {"norm": "group", "widths": [12, 24], "layers": [2, 1], "shortcut": "project"}),
        ("revnet38", {"norm": "group", "widths": [24, 48], "layers": [2, 1]}),
        ("resnext50_32x4d", {"norm": "group", "widths": [12, 24], "layers": [1, 1], "cardinality": 4}),
    ],
)
def test_planned_networks_with_group_norms_take_whole_factors(name, options, factor):
    network = lively(sw.create_model(name, **options, num_classes=3))
    wide = need_equal(network, torch.randn(2, 3, 16, 16), factor)
    norms = [m for m in wide.modules() if isinstance(m, nn.GroupNorm)]
    assert norms and all(m.num_groups == math.gcd(32, m.num_channels) for m in norms), "groups differ from the plan"


def test_a_factor_that_cuts_groups_is_refused_with_one_that_does_not():
    with pytest.raises(InputError, match=r"at 1: its groups would average .*12 channels become 18.*by an integer"):
        widen(between(nn.GroupNorm(4, 12)), 1.5, probe=IMAGES)
    zeros = lively(sw.create_model("resnet20", norm="group", widths=[12, 20], layers=[1, 1], shortcut="pad"))
    with pytest.raises(InputError, match=r"stage2.0.body.norm2: its groups would average.*by 3 or another odd factor"):
        widen(zeros, 2, probe=IMAGES)
    need_equal(zeros, IMAGES, 3)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(12),
        nn.InstanceNorm2d(12, affine=True, track_running_stats=True),
        nn.PReLU(12),
        nn.PReLU(),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
    ],
    ids=repr,
)
def test_layers_of_images_are_widened(layer):
    need_equal(lively(between(layer)), IMAGES, 2)


@pytest.mark.parametrize(
    "network",
    [
        sw.Chain(nn.Linear(4, 8), nn.RMSNorm(8), nn.Linear(8, 3)),
        sw.Chain(
            nn.Linear(4, 8),
            sw.Skip([nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8)], join="layerscale"),
            sw.Skip(nn.Linear(8, 4), join="concat"),
            sw.Skip([nn.LayerNorm(12), nn.Linear(12, 12)], join="gate"),
            nn.LayerNorm(12),
            nn.Linear(12, 3),
        ),
        sw.Chain(nn.Linear(4, 8), sw.Skip(nn.Linear(8, 10), "pad"), nn.Linear(10, 3), dim=-1),
    ],
    ids=["norms", "skips", "zeros"],
)
@pytest.mark.parametrize("x", [ROWS, SEQUENCES], ids=["rows", "sequences"])
def test_sequences_are_widened_along_their_last_axis(network, x):
    sw.output_shape(network, x)
    wide = need_equal(lively(network), x, 2)
    assert wide[0].out_features == 16


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_the_hidden_layers_of_a_transformer_are_widened_around_its_attention():
    mlp = sw.Skip([nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)])
    network = sw.Chain(nn.Linear(4, 8), sw.Skip([nn.LayerNorm(8), Attention()]), mlp, nn.Linear(8, 2))
    wide = need_equal(lively(network), SEQUENCES, 2)
    assert wide[2].body[1].out_features == 32 and wide[0].out_features == 8


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(12, 12, 1)

    def forward(self, x):
        return self.layer(x)


def pruned():
    return prune.l1_unstructured(nn.Conv2d(12, 12, 1), "weight", amount=3)


BLOCKING = [
    (nn.Softmax(1), "at 1 .*: Softmax computes each output from several channels. Use an elementwise"),
    (nn.LocalResponseNorm(3), "at 1 .*: LocalResponseNorm normalizes over neighboring channels. Use nn.BatchNorm2d"),
    (nn.ConvTranspose2d(12, 12, 1), "at 1 .*: ConvTranspose2d is a transposed convolution. Use nn.Upsample"),
    (nn.ChannelShuffle(2), "at 1 .*: ChannelShuffle moves channels to other places. Widen the layers before"),
    (nn.LayerNorm([12, 4, 4]), "at 1 .*: LayerNorm normalizes over several axes. Use nn.BatchNorm2d"),
    (parametrizations.weight_norm(nn.Conv2d(12, 12, 1)), "at 1 .*: ParametrizedConv2d computes its weight from other"),
    (nn.utils.spectral_norm(nn.Conv2d(12, 12, 1)), "at 1 .*: Conv2d computes its weight from other tensors"),
    (lambda x: x.flip(1), "at 1 .*: the function <lambda> may mix channels. Use a module of torch.nn"),
    (Own(), "at 1 .*: Own runs its layers in an unknown order. Build it from Chain and Skip"),
    (nn.Sequential(nn.Identity(), Own()), "at 1.1 .*: Own runs its layers in an unknown order"),
    (sw.Skip(nn.Sequential(nn.ReLU(), Own())), "at 1.body.1 .*: Own runs its layers"),
    (
        sw.Skip(nn.Conv2d(12, 12, 1), join=lambda a, b: a - b),
        "at 1 .*: Skip has a join that may mix channels",
    ),
    (sw.Skip(nn.ReLU(), after=nn.Conv2d(12, 12, 1)), "at 1 .*: Skip has a layer after the join that mixes channels"),
    (sw.Parallel("add", nn.ReLU(), nn.Softmax(1)), "at 1.branches.1 .*: Softmax computes"),
]


@pytest.mark.parametrize("layer, words", BLOCKING)
def test_the_layer_that_blocks_all_others_is_named_with_the_reason(layer, words):
    with pytest.raises(InputError, match=f"expected layers that can be widened, got none. The layer {words}") as caught:
        widen(between(layer), 2, probe=IMAGES)
    assert "\n" not in str(caught.value)


def test_further_layers_that_block_are_counted():
    network = sw.Chain(nn.Linear(4, 4), nn.Softmax(1), nn.Softmin(1), nn.LogSoftmax(1))
    with pytest.raises(InputError, match="The layer at 1 blocks.* The layers at 2, 3 block too"):
        widen(network, 2, probe=ROWS)


def test_networks_that_torch_runs_in_other_orders_name_what_blocks():
    with pytest.raises(InputError, match="at 1 .*: TransformerEncoderLayer splits its channels into heads"):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        widen(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), 2, probe=SEQUENCES)
    with pytest.raises(InputError, match="at 1 .*: LSTM has gates and a hidden state"):
        widen(nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 8)), 2, probe=SEQUENCES)
    with pytest.raises(InputError, match="expected a hidden layer that factor 2 widens, got none"):
        widen(nn.Linear(4, 4), 2, probe=ROWS)
    both = sw.Chain(nn.Conv1d(5, 5, 1), nn.Linear(4, 8), nn.Linear(8, 2))
    with pytest.raises(InputError, match=r"at 1 .*: Linear has other channels of its input \(3, 5, 4\) than axis 1"):
        widen(both, 2, probe=SEQUENCES)


def test_what_cannot_be_copied_is_named():
    with pytest.raises(InputError, match="cannot copy the layer at 1: its weight is computed by a hook"):
        widen(between(pruned()), 2, probe=IMAGES)
    with pytest.raises(InputError, match="got uninferred ones at 1.join. Call skipway.output_shape"):
        widen(between(sw.Skip(nn.ReLU(), join="layerscale")), 2, probe=IMAGES)


def test_a_layer_that_no_longer_fits_is_named():
    class Strict(nn.ReLU):
        def forward(self, x):
            if x.shape[1] != 12:
                raise ValueError("12 channels, please")
            return x

    Strict.__module__ = nn.ReLU.__module__
    with pytest.raises(InputError, match="no longer fit together: Strict at 1: 12 channels, please. Replace"):
        widen(between(Strict()), 2, probe=IMAGES)


def test_outputs_of_any_structure_are_compared():
    network = sw.Chain(nn.Linear(4, 8), sw.Skip(nn.Linear(8, 8)), lambda x: {"a": x, "b": (x, [x + 1])}).eval()
    assert deepen(network, blocks={"": 2}, probe=ROWS)(ROWS)["b"][1][0].equal(network(ROWS)["b"][1][0])


def test_a_parametrized_or_missing_block_is_named_when_deepening():
    parametrized = sw.Chain(sw.Skip(parametrizations.weight_norm(nn.Linear(4, 4))))
    with pytest.raises(InputError, match="at 0.body is computed by a parametrization. Remove the parametrization"):
        deepen(parametrized, blocks={"": 1}, probe=ROWS)
    projected = sw.Chain(nn.Linear(4, 4), sw.Skip(nn.Linear(4, 4), nn.Linear(4, 4)))
    with pytest.raises(InputError, match="Coupling in the Chain at '', got Linear, Skip with a shortcut. Add such a"):
        deepen(projected, blocks={"": 1}, probe=ROWS)


def test_blocks_with_attention_are_repeated():
    network = sw.Chain(nn.Linear(4, 8), sw.Skip([nn.LayerNorm(8), Attention(), nn.Linear(8, 8)])).eval()
    assert deepen(network, blocks={"": 1}, probe=SEQUENCES)(SEQUENCES).equal(network(SEQUENCES))
