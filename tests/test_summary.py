import pytest
import torch
from torch import nn

from skipway.blocks import EfficientChannelAttention, SqueezeExcite
from skipway.errors import ShapeError
from skipway.models import registry
from skipway.probe.summary import summary
from skipway.skip import Chain, Dense, Parallel, Skip

# GMACs of convolutions and linear layers at 224 pixels.
GMACS = {"resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801, "resnet152": 11.514,
         "resnet200": 15.007}  # fmt: skip
MMACS = {"resnet20": 40.55, "resnet32": 68.86, "resnet44": 97.17, "resnet56": 125.49, "resnet110": 252.89}


def on_meta(name, **options):
    with torch.device("meta"):
        return registry.build(name, **options)[0]


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds_of_the_large_networks_are_the_known_ones(name):
    found = summary(on_meta(name), (1, 3, 224, 224))
    assert round(found.macs / 1e9, 3) == GMACS[name]


@pytest.mark.parametrize("name", MMACS)
def test_multiply_adds_of_the_small_networks_are_the_known_ones(name):
    found = summary(on_meta(name), (1, 3, 32, 32))
    assert round(found.macs / 1e6, 2) == MMACS[name]
    assert found.skips == 3 * (int(name.removeprefix("resnet")) - 2) // 6


def small():
    return Chain(Dense(None, 4, torch.relu), Skip(Dense(None, 5), "auto", join="gate"), head=nn.Linear(5, 2))


def test_a_network_with_open_sizes_has_the_same_summary_at_first_and_later():
    network = small()
    first = summary(network, (2, 3))
    assert first == summary(network, (2, 3))
    assert [r.path for r in first.rows] == ["0.linear", "0.activation", "1.body.linear", "1.shortcut.linear",
                                            "1.shortcut.norm", "1.join.transform", "head"]  # fmt: skip
    assert first.macs == 2 * (3 * 4 + 4 * 5 + 4 * 5 + 5 * 5 + 5 * 2)
    assert sum(r.parameters for r in first.rows) == first.parameters == sum(p.numel() for p in network.parameters())


def test_a_summary_prints_a_row_a_layer_and_a_line_of_totals():
    text = str(summary(small(), (2, 3)))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["0.linear", "Linear", "2x4", "16", "24"]
    assert lines[-2] == "113 parameters, 174 multiply-adds for an input of 2x3, 1 shortcut"
    assert lines[-1].startswith("note: 1.shortcut.norm: a batch of one sample")
    assert len({len(line) for line in lines[:-2]}) == 1


def test_notes_are_printed_below_the_totals_a_line_each():
    body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    nn.init.zeros_(body[0].weight)
    nn.init.zeros_(body[0].bias)
    with pytest.warns(UserWarning, match="share parameters"):
        network = Chain(body, lambda x: hidden(x), Skip(body))
    found = summary(network, (2, 3))
    lines = str(found).splitlines()
    assert len(found.notes) == 3 and lines[-3:] == [f"note: {note}" for note in found.notes]
    assert not any("note" in line for line in lines[:-3])


def hidden(x, layer=nn.Linear(3, 3)):  # noqa: B008
    return layer(x)


def test_a_layer_used_twice_is_called_shared_and_counted_once():
    layer = nn.Linear(3, 3)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), (2, 3))
    assert [(r.path, r.shared) for r in found.rows] == [("0", False), ("1", False), ("2", True)]
    assert found.parameters == 12 and found.macs == 2 * 2 * 9 and "shared" in str(found)


def test_fixed_parameters_are_said():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    found = summary(network, (2, 3))
    assert (found.parameters, found.trainable) == (16, 4) and "16 parameters (12 fixed)" in str(found)


def test_groups_and_other_numbers_of_axes_count_what_they_cost():
    assert summary(nn.Conv2d(8, 16, 3, groups=4, padding=1), (1, 8, 5, 5)).macs == 16 * 25 * 2 * 9
    assert summary(nn.Conv1d(2, 3, 3), (1, 2, 5)).macs == 3 * 3 * 2 * 3
    assert summary(Parallel("add", nn.Linear(3, 3), nn.Identity()), (2, 3)).macs == 18


@pytest.mark.parametrize(
    "layer, shape, wanted",
    [
        (nn.ConvTranspose2d(6, 4, 3, 2, groups=2, bias=False), (2, 6, 5, 5), 2 * 6 * 25 * 2 * 9),
        (nn.ConvTranspose1d(3, 4, 4, 2), (2, 3, 5), 2 * 3 * 5 * 4 * 4),
        (nn.Conv2d(8, 8, 3, groups=8), (2, 8, 7, 7), 2 * 25 * 8 * 9),
        (nn.Conv2d(8, 16, 1, 2), (2, 8, 7, 7), 2 * 16 * 16 * 8),
        (nn.Conv3d(2, 3, (1, 2, 3)), (1, 2, 4, 4, 4), 4 * 3 * 2 * 3 * 2 * 6),
        (nn.Linear(5, 7), (2, 3, 4, 5), 2 * 3 * 4 * 5 * 7),
        (Skip(nn.Linear(6, 6), join="gate"), (2, 6), 2 * 6 * 6 * 2),
        (Skip(nn.Conv2d(6, 6, 3, padding=1), join="gate"), (2, 6, 4, 4), 2 * 16 * (6 * 6 * 9 + 6 * 6)),
        (SqueezeExcite(8, 4), (2, 8, 5, 5), 2 * (8 * 4 + 4 * 8)),
        (EfficientChannelAttention(8), (2, 8, 5, 5), 2 * 8 * 3),
        (nn.LSTM(3, 4, batch_first=True), (2, 5, 3), 2 * 5 * 4 * (3 * 4 + 4 * 4)),
        (nn.GRU(3, 4, num_layers=2), (5, 2, 3), 2 * 5 * 3 * (3 * 4 + 4 * 4 + 4 * 4 + 4 * 4)),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)), (2, 3, 4, 4), 0),
    ],
)  # fmt: skip
def test_multiply_adds_are_those_counted_by_hand(layer, shape, wanted):
    found = summary(layer, shape)
    assert found.macs == wanted
    assert sum(r.parameters for r in found.rows) == found.parameters == sum(p.numel() for p in layer.parameters())


def test_every_multiplication_of_a_convolution_and_its_transpose_is_counted():
    """A kernel of ones over an input of ones sums to the multiply-adds of the values that it gives."""
    for layer in (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.ConvTranspose2d(4, 6, 3, 2, groups=2, bias=False)):
        nn.init.ones_(layer.weight)
        assert summary(layer, (2, 4, 7, 7)).macs == layer(torch.ones(2, 4, 7, 7)).sum().item()


def test_layers_of_two_inputs_count_both():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = nn.Bilinear(4, 4, 5)
            self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, batch_first=True)

        def forward(self, x):
            keys, values = x[:, :3, :4], x[:, :3, :6]
            return self.attention(x, keys, values)[0].sum() + self.pair(keys, keys).sum()

    pair = 2 * 3 * 5 * 4 * 4
    projections = 2 * (7 * 8 * 8 + 3 * 4 * 8 + 3 * 6 * 8 + 7 * 8 * 8)
    found = summary(Two(), (2, 7, 8))
    assert found.macs == pair + projections + 2 * (2 * 7 * 3 * 8)  # queries times keys, weights times values
    assert sum(r.parameters for r in found.rows) == found.parameters


class Written(nn.Module):
    """As users write them: no layer of ours, parameters of its own, a list of modules."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)])
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 36, 2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu() * self.scale[:, None, None]
        return self.head(x)


def test_a_network_of_plain_modules_has_rows_for_all_it_computes():
    found = summary(Written(), (1, 3, 8, 8))
    rows = [(r.path, r.layer, r.parameters, r.macs) for r in found.rows]
    assert rows == [("layers.0", "Conv2d", 112, 36 * 4 * 27), ("layers.1", "Conv2d", 20, 36 * 4 * 4),
                    ("head.0", "Flatten", 0, 0), ("head.1", "Linear", 290, 288), ("", "Written", 4, 0)]  # fmt: skip
    assert found.parameters == 112 + 20 + 290 + 4 and found.skips == 0 and not found.notes


def test_parameters_that_two_layers_tie_are_counted_where_they_come_first():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    found = summary(nn.Sequential(first, second), (2, 3))
    assert [(r.parameters, r.shared) for r in found.rows] == [(12, False), (3, False)] and found.parameters == 15
    assert not found.notes  # tied on purpose: two layers, each called once


def test_a_misfit_is_named_by_its_path():
    with pytest.raises(ShapeError, match=r"Linear at 1 got \(2, 4\), but expects \(\*, 5\)"):
        summary(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 1)), (2, 3))
