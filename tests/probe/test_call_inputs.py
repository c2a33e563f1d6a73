"""Probes of networks with several inputs, inputs of integers, dictionaries, and outputs of any structure."""

import json

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.probe.ablation import lesion
from skipway.probe.block_stats import batches_accuracy, batches_loss
from skipway.probe.diagram import diagram
from skipway.probe.loss_landscape import landscape
from skipway.probe.signal_flow import flow
from skipway.probe.summary import summary


def text_model():
    return nn.Sequential(nn.Embedding(10, 8), nn.Flatten(), nn.Linear(40, 3))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(3, 8)

    def forward(self, x, y):
        return self.first(x) + self.second(y)


class OfDictionary(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.numbers = nn.Embedding(9, 8), nn.Linear(3, 8)

    def forward(self, batch):
        return {"out": self.words(batch["ids"]).mean(1) + self.numbers(batch["x"]), "state": None}


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


IDS = torch.zeros(2, 5, dtype=torch.int64)


def test_a_text_model_is_summarized_from_a_shape_and_a_dtype_or_from_an_example():
    found = summary(text_model(), (2, 5), dtypes=torch.int64)
    assert [(row.layer, row.shape) for row in found.rows] == [
        ("Embedding", (2, 5, 8)),
        ("Flatten", (2, 40)),
        ("Linear", (2, 3)),
    ]
    assert (found.parameters, found.macs, found.input_shape) == (80 + 123, 2 * 40 * 3, (2, 5))
    assert summary(text_model(), IDS).as_dict() == found.as_dict()
    with pytest.raises(ShapeError, match=r"Embedding at 0: expected indices of torch.int64, got torch.float32"):
        summary(text_model(), (2, 5))


@pytest.mark.parametrize(
    "network, inputs, named, shape, text",
    [
        (Two(), [(2, 4), (2, 3)], {}, ((2, 4), (2, 3)), "for inputs of 2x4, 2x3,"),
        (Two(), [(2, 4)], {"y": (2, 3)}, ((2, 4), {"y": (2, 3)}), "for inputs of 2x4, y 2x3,"),
        (Two(), [], {"x": (2, 4), "y": torch.ones(2, 3)}, {"x": (2, 4), "y": (2, 3)}, "for inputs of x 2x4, y 2x3,"),
        (
            OfDictionary(),
            [{"ids": IDS, "x": (2, 3)}],
            {},
            {"ids": (2, 5), "x": (2, 3)},
            "inputs of ids 2x5, x 2x3,",
        ),
    ],
    ids=["positions", "both", "names", "dictionary"],
)
def test_several_inputs_are_counted_once_each(network, inputs, named, shape, text):
    found = summary(network, *inputs, **named)
    assert found.input_shape == shape and text in str(found)
    assert found.parameters == sum(p.numel() for p in network.parameters()) == sum(row.parameters for row in found.rows)
    layers = [layer for layer in network.children() if isinstance(layer, nn.Linear)]  # an embedding multiplies nothing
    assert found.macs == sum(2 * layer.in_features * layer.out_features for layer in layers)
    assert json.loads(json.dumps(found.as_dict()))["memory"] == found.memory > 0
    drawn = diagram(network, *inputs, **named)
    assert drawn.startswith("<svg") and "input " in drawn


def test_a_transformer_is_summarized_down_to_its_layers():
    network = encoder()
    found = summary(network, (2, 5, 8))
    names = [row.path for row in found.rows]
    assert "layers.1.linear2" in names and "layers.0.self_attn" in names
    assert sum(row.parameters for row in found.rows) == sum(p.numel() for p in network.parameters())
    attention = 5 * (4 * 8 * 8) + 2 * 5 * 5 * 8  # four projections, queries times keys, weights times values
    assert found.macs == 2 * 2 * (attention + 5 * 2 * 8 * 16)
    assert all(row.sees_all and row.receptive_field == (5,) for row in found.rows), "attention sees all 5 positions"
    masked = summary(network, (2, 5, 8), src_key_padding_mask=torch.zeros(2, 5, dtype=torch.bool))
    assert masked.macs == found.macs
    assert torch.backends.mha.get_fastpath_enabled()


def test_positions_of_sequences_are_followed_and_their_channels_are_not():
    rows = summary(nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)), (2, 7, 4)).rows
    assert [row.receptive_field for row in rows] == [(1,)] * 3
    assert summary(nn.Conv1d(7, 2, 3), (2, 7, 4)).rows[0].receptive_field == (3,)


def test_outputs_of_several_tensors_are_printed_one_after_the_other():
    found = summary(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 8, batch_first=True)), (2, 5, 4))
    assert found.rows[1].shape == ((2, 5, 8), ((1, 2, 8), (1, 2, 8)))
    assert "2x5x8, 1x2x8, 1x2x8 " in str(found) and "5 × 8, 2 × 8, 2 × 8" in diagram(
        nn.Sequential(nn.LSTM(4, 8, batch_first=True)), (2, 5, 4)
    )
    attention = summary(sw.Skip(encoder().layers[0]), (2, 5, 8), (5, 5))
    assert attention.rows[0].layer == "MultiheadAttention" and "2x5x8 " in str(attention).splitlines()[1]


def test_the_older_name_of_the_first_input_still_works():
    assert summary(nn.Linear(4, 2), input_shape=(3, 4)).input_shape == (3, 4)
    assert diagram(nn.Linear(4, 2), input_shape=(3, 4)).startswith("<svg")


@pytest.mark.parametrize("probe", [summary, diagram])
def test_inputs_that_do_not_fit_are_refused_in_a_line(probe):
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for network, inputs, words in (
        (image, [(3, 8, 8)], r"the batch axis is missing: expected \(1, 3, 8, 8\)"),
        (sw.create_model("resnet20"), [(3, 32, 32)], r"the batch axis is missing: expected \(1, 3, 32, 32\)"),
        (Two(), [(2, 4)], "missing 1 required positional argument: 'y'"),
        (image, ["abc"], "expected shapes of non-negative integers"),
        (image, [5], "expected shapes of non-negative integers"),
        (image, [(2, 3.5, 8, 8)], "expected shapes of non-negative integers"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            probe(network, *inputs)
        assert "\n" not in str(caught.value)


def test_a_batch_norm_of_one_sample_is_noted_for_one_of_several_inputs():
    network = sw.Parallel("add", nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.Linear(5, 3))
    (note,) = summary(network, (2, 4), (2, 5)).notes
    assert "batch norm cannot train on a batch of one sample" in note


def test_the_flow_of_networks_with_several_inputs_is_measured():
    two = flow(Two(), (torch.randn(6, 4), torch.randn(6, 3)))
    assert [layer.path for layer in two.layers] == ["first", "second"] and all(x.gradient_norm for x in two.layers)
    ids = flow(text_model(), torch.randint(0, 10, (4, 5)))
    assert [layer.path for layer in ids.layers] == ["0", "2"] and ids.loss > 0
    batch = {"ids": torch.randint(0, 9, (4, 5)), "x": torch.randn(4, 3)}
    assert flow(OfDictionary(), batch, loss=lambda out, y: out["out"].square().mean()).loss > 0
    lstm = sw.Chain(nn.LSTM(4, 8, batch_first=True), lambda out: out[0][:, -1], sw.Skip(nn.Linear(8, 8)))
    assert [block.path for block in flow(lstm, torch.randn(4, 5, 4)).blocks] == ["2"]


class TwoWithBlock(Two):
    def __init__(self):
        super().__init__()
        self.block = sw.Skip(nn.Linear(8, 8))

    def forward(self, x, y):
        return self.block(super().forward(x, y))


def test_blocks_and_losses_of_networks_with_several_inputs_are_measured():
    torch.manual_seed(0)
    x, y = (torch.randn(6, 4), torch.randn(6, 3)), torch.arange(6)
    network = TwoWithBlock().eval()
    loss, accuracy = batches_loss(x, y, batch_size=4)(network)
    assert loss == pytest.approx(float(nn.functional.cross_entropy(network(*x), y).detach()), rel=1e-5)
    assert accuracy == float((network(*x).argmax(1) == y).double().mean())
    cut = lesion(network, batches_accuracy(x, y), cuts=["drop"])
    assert cut.score == accuracy and [drop.path for drop in cut.dropped] == ["block"]
    without = Two().eval()
    without.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("block")})
    assert cut.dropped[0].score == batches_accuracy(x, y)(without)
    assert landscape(network, batches_loss(x, y), points=3).losses[1] == pytest.approx(loss)
    with pytest.raises(InputError, match="expected tensors of the same number of samples"):
        batches_loss((x[0], x[1][:5]), y)


@pytest.mark.parametrize(
    "network, x, words",
    [
        (Two(), torch.randn(6, 4), "got .6, 4.: .* missing 1 required positional argument: 'y'. Pass a tuple"),
        (Two(), [], "invalid x: expected a batch as a tensor"),
        (Two(), (torch.randn(6, 4), 3), "invalid x: expected a batch as a tensor"),
        (nn.LSTM(4, 8), torch.randn(6, 5, 4), r"cannot draw random classes: .*, got tuple. Pass y or a loss"),
        (text_model(), torch.rand(4, 5), r"invalid x: expected inputs that the network takes, got \(4, 5\)"),
    ],
)
def test_batches_that_a_network_cannot_take_are_refused_in_a_line(network, x, words):
    with pytest.raises(InputError, match=words) as caught:
        flow(network, x)
    assert "\n" not in str(caught.value)
