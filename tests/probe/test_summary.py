import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.errors import ShapeError
from skipway.models import registry
from skipway.nn.blocks import EfficientChannelAttention, SameConv2d, SqueezeExcite
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip
from skipway.probe.receptive_field import Fields
from skipway.probe.summary import summary

# GMACs of convolutions and linear layers at 224 pixels.
GMACS = {
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "resnet200": 15.007,
}
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
    assert [r.path for r in first.rows] == [
        "0.linear",
        "0.activation",
        "1.body.linear",
        "1.shortcut.linear",
        "1.shortcut.norm",
        "1.join.transform",
        "head",
    ]
    assert first.macs == 2 * (3 * 4 + 4 * 5 + 4 * 5 + 5 * 5 + 5 * 2)
    assert sum(r.parameters for r in first.rows) == first.parameters == sum(p.numel() for p in network.parameters())


def test_a_summary_prints_a_row_a_layer_and_a_line_of_totals():
    text = str(summary(small(), (2, 3)))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds", "memory"]
    assert lines[1].split() == ["0.linear", "Linear", "2x4", "16", "24", "24", "B"]
    kept = 4 * 2 * (3 + 4 + 5 * 5) + 4 * 2 * 5  # floats of both samples, and the norm's means and variances
    assert lines[-2] == (
        f"113 parameters, 174 multiply-adds, {kept} B of activations saved in training, for an input of 2x3, 1 shortcut"
    )
    assert lines[-1].startswith("note: 1.shortcut.norm: batch norm cannot train on")
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
    assert (found.parameters, found.trainable) == (16, 4) and "16 parameters (12 frozen)" in str(found)


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
)
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
    assert rows == [
        ("layers.0", "Conv2d", 112, 36 * 4 * 27),
        ("layers.1", "Conv2d", 20, 36 * 4 * 4),
        ("head.0", "Flatten", 0, 0),
        ("head.1", "Linear", 290, 288),
        ("", "Written", 4, 0),
    ]
    assert found.parameters == 112 + 20 + 290 + 4 and found.skips == 0 and not found.notes


def test_parameters_that_two_layers_tie_are_counted_where_they_come_first():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    found = summary(nn.Sequential(first, second), (2, 3))
    assert [(r.parameters, r.shared) for r in found.rows] == [(12, False), (3, False)] and found.parameters == 15
    assert not found.notes  # tied on purpose: two layers, each called once


def test_a_misfit_is_named_by_its_path():
    with pytest.raises(ShapeError, match=r"Linear at 1: expected \(\*, 5\), got \(2, 4\)"):
        summary(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 1)), (2, 3))


# Memory


def kept_by_torch(network, shape):
    """Bytes of all tensors that autograd holds on to in a real training step, besides parameters and buffers."""
    known = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    storages = {}

    def hold(tensor):
        storages.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        network.train()(torch.randn(shape))
    return sum(storage.nbytes() for place, storage in storages.items() if place not in known)


BODY = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
KEPT = {
    "linear layers": (lambda: nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 3)), (2, 5)),
    "multiply": (lambda: Parallel("multiply", nn.Linear(3, 3), nn.Identity()), (2, 3)),
    "gate": (lambda: Skip(nn.Linear(6, 6), join="gate"), (2, 6)),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5), nn.Linear(5, 5)), (2, 5)),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU()), (2, 3, 8, 8)),
    "circular": (lambda: nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular"), (2, 3, 9)),
    "reversible": (lambda: Reversible(*(Coupling(nn.Linear(3, 3), nn.Linear(3, 3)) for _ in range(4))), (2, 6)),
    "fixed layers": (lambda: nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 2)), (5, 3)),
    "one layer twice": (lambda: nn.Sequential(*[BODY] * 3), (2, 4, 6, 6)),
    "what takes real tensors": (lambda: Chain(nn.Linear(3, 3), lambda x, c=torch.ones(3): x * c), (2, 3)),  # noqa: B008
    "resnet20": (lambda: registry.build("resnet20")[0], (2, 3, 32, 32)),
    "resnet20, gates": (lambda: registry.build("resnet20", join="gate", dropout=0.1)[0], (2, 3, 32, 32)),
    "resnetv2_18": (lambda: registry.build("resnetv2_18", widths=(8, 8, 8, 8))[0], (2, 3, 64, 64)),
    "seresnet18": (lambda: registry.build("seresnet18", widths=(8, 8, 8, 8))[0], (2, 3, 64, 64)),
    "densenet": (lambda: registry.build("densenet40_12", layers=(2, 2), dropout=0.1)[0], (2, 3, 16, 16)),
    "resnet9m": (lambda: registry.build("resnet9m")[0], (2, 3, 32, 32)),
    "revnet38": (lambda: registry.build("revnet38")[0], (2, 3, 16, 16)),
    "resmlp": (lambda: registry.build("resmlp", norm="layer", join="layerscale")[0], (2, 64)),
}


@pytest.mark.parametrize("kind", KEPT)
def test_memory_is_what_torch_keeps_to_the_byte(kind):
    make, shape = KEPT[kind]
    network = make()
    found = summary(network, shape)
    assert found.memory == sum(row.memory for row in found.rows) == kept_by_torch(network, shape) > 0
    assert not any("not known" in note for note in found.notes)


def test_memory_grows_with_the_batch_and_is_told_in_round_numbers():
    assert summary(nn.Linear(256, 1), (4, 256)).memory == 4 * 256 * 4
    for batch, said in ((1, "1.0 KiB"), (1536, "1.5 MiB"), (3 * 2**20, "3.0 GiB")):
        assert f" {said} of activations saved in training" in str(summary(nn.Linear(256, 1), (batch, 256)))
    double = summary(nn.Linear(256, 1).double(), (1, 256))
    assert double.memory == 2048


def test_what_is_kept_between_rows_counts_for_the_row_above():
    found = summary(Chain(nn.Linear(3, 3), Parallel("multiply", nn.Sigmoid(), nn.Tanh())), (1, 3))
    assert [(row.path, row.memory) for row in found.rows] == [("0", 12), ("1.branches.0", 12), ("1.branches.1", 12)]
    found = summary(Chain(nn.Linear(3, 3), Parallel("multiply", nn.Identity(), lambda x: x + 1)), (1, 3))
    assert [row.memory for row in found.rows] == [12, 0, 24]


def test_a_network_that_only_runs_without_gradients_has_a_note_in_place_of_its_memory():
    class Counting(nn.Linear):
        def forward(self, x):
            self.bias.add_(1)
            return super().forward(x)

    found = summary(Counting(3, 3), (1, 3))
    assert found.macs == 9 and found.memory == 0
    (note,) = found.notes
    assert note.startswith("memory and receptive fields are unknown: a leaf Variable") and "\n" not in note

    class Two(nn.Sequential):
        def forward(self, x):
            return self[0](x) if torch.is_grad_enabled() else super().forward(x)

    (note,) = summary(Two(nn.Linear(3, 3), nn.ReLU()), (1, 3)).notes
    assert note.endswith("unknown: the calls with gradients differ from those without")


@pytest.mark.parametrize("kind", ["one layer twice", "what takes real tensors", "dropout"])
def test_a_network_is_as_it_was_after_its_summary(kind):
    make, shape = KEPT[kind]
    network = make().train()
    before = [*network.named_parameters(), *network.named_buffers()]
    values = [(t.clone(), t.requires_grad) for _, t in before]
    summary(network, shape)
    after = [*network.named_parameters(), *network.named_buffers()]
    assert [(name, id(t)) for name, t in after] == [(name, id(t)) for name, t in before]
    for (_, now), (then, wanted) in zip(after, values, strict=True):
        assert torch.equal(now, then) and now.requires_grad == wanted
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


# Receptive fields

# Of convolutions padded on both sides, 224 pixels; VGG-16's as its five groups of 3x3 convolutions and pools.
FIELDS = {"resnet18": 435, "resnet34": 899, "resnet50": 427, "resnet101": 971, "resnet152": 1451}


@pytest.mark.parametrize("name", FIELDS)
def test_the_large_networks_have_their_known_receptive_fields(name):
    rows = {row.path: row for row in summary(on_meta(name), (1, 3, 224, 224)).rows}
    last = [row for path, row in rows.items() if path.startswith("stage4")][-1]
    assert last.receptive_field == (FIELDS[name],) * 2 and not last.sees_all
    assert rows["head"].receptive_field == (224, 224) and rows["head"].sees_all


def test_vgg_sees_212_pixels():
    layers = []
    for count in (2, 2, 3, 3, 3):
        layers += [layer for _ in range(count) for layer in (nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(inplace=True))]
        layers.append(nn.MaxPool2d(2))
    assert summary(nn.Sequential(nn.Conv2d(3, 2, 1), *layers), (1, 3, 224, 224)).rows[-1].receptive_field == (212, 212)


def test_fields_are_printed_where_there_are_positions():
    text = str(summary(nn.Sequential(nn.Conv2d(1, 1, (3, 5)), nn.Flatten(), nn.Linear(24, 1)), (1, 1, 8, 8)))
    rows = [line.split() for line in text.splitlines()]
    assert rows[0][-2:] == ["receptive", "field"] and [row[-1] for row in rows[1:4]] == ["3x5", "3x5", "all"]


@st.composite
def layers_of_one_axis(draw):
    """A layer of one channel and positive weights on (1, 1, L)."""
    kernel, stride, gap = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    edge = draw(st.integers(0, 2))
    conv = nn.Conv1d(1, 1, kernel, stride, edge, gap, bias=False)
    kind = draw(
        st.sampled_from(["conv", "pool", "up", "apart", "pad", "cut", "skip", "both", "mirror", "adaptive", "corners"])
    )
    return {
        "conv": lambda: conv,
        "pool": lambda: nn.AvgPool1d(kernel, stride, min(edge, kernel // 2), ceil_mode=draw(st.booleans())),
        "up": lambda: nn.Upsample(None, stride, draw(st.sampled_from(["nearest", "linear", "nearest-exact"]))),
        "apart": lambda: nn.ConvTranspose1d(1, 1, kernel + stride - 1, stride, min(edge, kernel - 1), bias=False),
        "pad": lambda: nn.ConstantPad1d((edge, -kernel), 0.0),
        "cut": lambda: lambda x: x[:, :, edge::stride],
        "skip": lambda: Skip(nn.Conv1d(1, 1, 2 * kernel - 1, stride, kernel - 1, bias=False), "project"),
        "both": lambda: Parallel("add", *(nn.Conv1d(1, 1, 2 * k + 1, padding=k, bias=False) for k in (edge, 2))),
        "mirror": lambda: nn.ReflectionPad1d(edge),
        "adaptive": lambda: nn.AdaptiveAvgPool1d(20 + kernel),
        "corners": lambda: nn.Upsample(20 + kernel, mode="linear", align_corners=True),
    }[kind]()


@settings(max_examples=60)
@given(st.lists(layers_of_one_axis(), min_size=1, max_size=4))
def test_receptive_fields_are_where_a_change_of_the_input_is_felt(layers):
    """Nothing is felt from outside; in the middle, far from what edges do, it is felt from both ends."""
    network = Chain(*layers, nn.Identity()).eval()
    try:
        output_shape(network, (1, 1, 64))
    except ShapeError:
        assume(False)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
        inputs = torch.eye(64, dtype=torch.float64)[:, None]  # a pixel each
        felt = (network.double()(inputs) - network(0 * inputs))[:, 0].T > 1e-9
        with Fields() as fields:
            fields.begin(inputs)
            out = network(inputs)
    (span,) = fields._get(out)
    assert span.dim == -1 and len(span.low) == len(felt)
    for changes, low, high in zip(felt, span.low, span.high, strict=True):
        found = changes.nonzero().flatten().tolist()
        assert not found or low <= found[0] <= found[-1] <= high
        assert not (20 <= low <= high <= 43) or (found[0], found[-1]) == (low, high)
    row = summary(network, (1, 1, 64)).rows[-1]
    assert row.receptive_field == (max(span.high - span.low) + 1,) and not row.sees_all


class Tokens(nn.Module):
    """Patches as tokens, a layer for each, and attention between them where it is asked for."""

    def __init__(self, attention):
        super().__init__()
        self.patch, self.each = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if attention else None
        self.back = nn.Identity()

    def forward(self, x):
        tokens = self.each(self.patch(x).flatten(2).transpose(1, 2)).softmax(-1)
        if self.attention is not None:
            tokens = self.attention(tokens, tokens, tokens)[0]
        return self.back(tokens.transpose(1, 2).view(len(x), 8, 4, 4))


def on_last(layer):
    """A layer of the last axis, given the channels there."""
    return Chain(lambda x: x.movedim(1, -1), layer, lambda x: x.movedim(-1, 1).contiguous())


# What is made of 3 channels of 16x16 -> pixels that each position sees, or None for all of them.
SEEN = {
    "the functions of one number": (
        Chain(nn.PReLU(3), nn.Hardswish(), nn.GELU(), nn.LogSigmoid(), nn.Softmax(1), nn.Dropout(0.1)),
        (1, 1),
    ),
    "norms": (Chain(nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.LayerNorm(16), nn.InstanceNorm2d(3)), (1, 1)),
    "channels mixed": (Chain(nn.LocalResponseNorm(2), nn.Conv2d(3, 4, 1), nn.GLU(1)), (1, 1)),
    "a highway": (Skip(nn.Conv2d(3, 3, 1), join="gate"), (1, 1)),
    "layers of the last axis": (on_last(nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4))), (1, 1)),
    "two kernels": (Chain(nn.Conv2d(3, 3, (1, 5)), nn.Conv2d(3, 3, (3, 1), dilation=2)), (5, 5)),
    "the wider of two ways": (Skip(nn.Conv2d(3, 3, 5, padding=2), nn.AvgPool2d(3, 1, 1)), (5, 5)),
    "what was before, appended": (Skip(nn.Conv2d(3, 3, 3, padding=1), join="append"), (3, 3)),
    "two ways that lie apart": (Parallel("add", nn.ZeroPad2d((4, 0, 0, 0)), nn.ZeroPad2d((0, 4, 0, 0))), (1, 5)),
    "reflection": (Chain(nn.ReflectionPad2d(2), nn.Conv2d(3, 3, 3)), (3, 3)),
    "flax's padding": (Chain(SameConv2d(3, 3, 3, 2), SameConv2d(3, 3, 3, 2)), (7, 7)),
    "largest of windows": (Chain(nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, ceil_mode=True)), (5, 5)),
    "windows of the size that it takes": (nn.AdaptiveAvgPool2d(5), (4, 4)),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (2, 2)),
    "up and down": (Chain(nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 3, padding=1), nn.PixelShuffle(2)), (6, 6)),
    "half of the channels": (Coupling(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)), (5, 5)),
    "tokens": (Tokens(attention=False), (4, 4)),
    "attention": (Tokens(attention=True), None),
    "squeeze and excitation": (SqueezeExcite(3, 2), None),
    "one mean": (nn.AdaptiveAvgPool2d(1), None),
    "means along one axis": (Chain(lambda x: x.mean(3, keepdim=True)), (1, 16)),
    "of no position left": (Chain(nn.Conv2d(3, 3, 3), lambda x: x.amax((2, 3))), None),
    "less than all": (Chain(lambda x: x[:, :, 4:, 2:-2], lambda x: x.sum((2, 3))), (12, 12)),
    "wrapped around": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), None),
    "turned around": (Chain(lambda x: x.flip(2)), None),
    "what is not known": (Chain(lambda x: torch.fft.fft(x).real), None),
    "what has no part in it": (Chain(lambda x: torch.ones(1, 3, 2, 2)), ()),
    "kernels made of the input": (Chain(lambda x: F.conv2d(torch.ones(1, 3, 16, 16), x)), None),
}


@pytest.mark.parametrize("kind", SEEN)
def test_what_one_position_can_depend_on(kind):
    layer, wanted = SEEN[kind]
    channels = 4 if kind == "half of the channels" else 3
    row = summary(Chain(layer, nn.Identity()), (1, channels, 16, 16)).rows[-1]
    assert row.receptive_field == ((16, 16) if wanted is None else wanted) and row.sees_all == (wanted is None)


def test_three_axes_are_followed_and_rows_of_numbers_have_none():
    found = summary(Chain(nn.Conv3d(1, 1, (1, 2, 3)), nn.MaxPool3d((1, 2, 2)), nn.Identity()), (1, 1, 6, 6, 6))
    assert found.rows[-1].receptive_field == (1, 3, 4)
    assert all(row.receptive_field == () for row in summary(small(), (2, 3)).rows)
