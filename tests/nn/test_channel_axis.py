import pytest
import torch
from torch import nn
from torch.nn import functional as F

from skipway.errors import InputError, ShapeError
from skipway.nn.blocks import LayerNorm2d
from skipway.nn.chain import Chain
from skipway.nn.channel_axis import channel_axis_of
from skipway.nn.dense import Dense
from skipway.nn.joins import JOINS, Gate, Scale, append, concat, make_join
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import make_shortcut
from skipway.nn.skip import Skip, set_submodule


class Opaque(nn.Module):
    """A layer of unknown axes, (B, *, 6) -> (B, *, 6)."""

    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(
    "layer, axis",
    [
        (nn.Linear(4, 4), -1),
        (Dense(4, 4), -1),
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(4, 4), nn.GELU(), nn.Dropout(0.1)), -1),
        (nn.LayerNorm(4), -1),
        (nn.LayerNorm((4, 4)), None),
        (nn.Conv2d(4, 4, 1), 1),
        (Chain(nn.Linear(4, 4), nn.BatchNorm1d(4), torch.relu), 1),
        (nn.MaxPool2d(2), 1),
        (LayerNorm2d(4), None),
        (nn.ReLU(), None),
        (Chain(nn.Linear(4, 4), lambda x: x.mT), None),
        (Skip(nn.Linear(4, 4)), -1),
        (Skip(nn.ReLU(), dim=-1), -1),
        (Opaque(), None),
    ],
)
def test_the_last_layer_with_channels_tells_their_axis(layer, axis):
    assert channel_axis_of(layer) == axis


@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("shape", [(2, 5, 6), (2, 3, 4, 6), (2, 6)])
def test_a_join_on_the_last_axis_is_that_on_axis_1_of_the_moved_tensors(join, shape):
    branch, shortcut = torch.randn(2, *shape)
    joined = make_join(join, 6)
    moved = joined(branch.movedim(-1, 1), shortcut.movedim(-1, 1)).movedim(1, -1)
    if join in ("concat", "append", "gate", "layerscale"):
        assert torch.allclose(joined(branch, shortcut, dim=-1), moved)
    skip = Skip(nn.Linear(6, 6), join=joined)
    with torch.no_grad():
        skip.body.weight.copy_(torch.eye(6))
        skip.body.bias.zero_()
    out = joined(branch.movedim(-1, 1), branch.movedim(-1, 1)).movedim(1, -1)
    assert torch.allclose(skip(branch), out, atol=1e-6)


@pytest.mark.parametrize("kind", ["project", "pad", "pool", "auto"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dims", [0, 1, 2])
def test_a_shortcut_on_the_last_axis_is_that_on_axis_1_of_the_moved_tensor(kind, stride, dims):
    torch.manual_seed(0)
    first = make_shortcut(kind, 4, 6, stride if dims else 1, dims)
    torch.manual_seed(0)
    last = make_shortcut(kind, 4, 6, stride if dims else 1, dims, dim=-1)
    x = torch.randn(2, *[5] * dims, 4)
    assert torch.allclose(last(x), first(x.movedim(-1, 1)).movedim(1, -1), atol=1e-6)
    assert list(last.state_dict()) == list(first.state_dict())


def test_pool_alone_keeps_the_channels_on_the_last_axis():
    pool = make_shortcut("pool", 4, 4, 2, dims=1, dim=-1)
    x = torch.arange(16.0).view(1, 4, 4)
    assert torch.equal(pool(x), x.view(1, 2, 2, 4).mean(2)) and eval(repr(pool), {"Pool": type(pool)}).dim == -1


@pytest.mark.parametrize("shortcut", ["project", "pad", "auto"])
def test_a_body_that_ends_in_a_linear_layer_has_its_shortcut_over_the_channels(shortcut):
    skip = Skip([nn.LayerNorm(4), nn.Linear(4, 6), nn.GELU()], shortcut)
    assert output_shape(skip, (2, 5, 4)) == (2, 5, 6) and skip(torch.ones(2, 7, 4)).shape == (2, 7, 6)


def test_layerscale_of_a_sequence_has_one_scale_per_channel_for_any_length():
    skip = Skip(nn.Linear(4, 4), join="layerscale")
    output_shape(skip, (2, 5, 4))
    assert skip.join.scale.shape == (4,) and skip(torch.ones(2, 9, 4)).shape == (2, 9, 4)


def test_a_sequence_of_unknown_axes_is_refused_with_both_readings():
    for network in (Skip(Opaque(), join="concat"), Parallel("concat", Opaque(), nn.ReLU()), Skip(Opaque(), "project")):
        with pytest.raises(ShapeError, match=r"ambiguous channel axis of \(2, 5, 6\).*\(B, C, L\) .*\(B, T, C\)"):
            output_shape(network, (2, 5, 6))
    with pytest.raises(ShapeError, match=r"Skip at 0: ambiguous channel axis"):
        Chain(Skip(Opaque(), join="concat"))(torch.ones(2, 5, 6))
    mixed = Parallel("concat", nn.Linear(6, 6), nn.Conv1d(5, 5, 1))
    with pytest.raises(ShapeError, match="ambiguous channel axis"):
        mixed(torch.ones(2, 5, 6))
    assert Skip(Opaque(), join="concat")(torch.ones(2, 6)).shape == (2, 12)
    assert Skip(Opaque(), join="concat")(torch.ones(2, 3, 4, 6)).shape == (2, 6, 4, 6)


def test_dim_decides_before_the_body_and_a_chain_for_what_is_inside():
    x = torch.randn(2, 5, 6)
    assert Skip(Opaque(), join="concat", dim=-1)(x).shape == (2, 5, 12)
    assert Skip(nn.Linear(6, 6), join="concat", dim=1)(x).shape == (2, 10, 6)
    inner = Skip(Opaque(), join="concat", dim=1)
    chain = Chain(Skip(Opaque(), join="concat"), nn.Sequential(Parallel("concat", Opaque(), Opaque())), inner, dim=-1)
    assert chain(x).shape == (2, 10, 24)
    chain.append(Skip(Opaque(), join="append"))
    assert chain(x).shape == (2, 10, 48) and "dim=-1" in repr(chain) and "dim=1" in repr(inner)
    assert Skip(Opaque(), join=Gate(5, dim=1), dim=-1)(x).shape == x.shape
    assert repr(Gate(5, dim=1)) == "Gate(5, dim=1)" and repr(Scale(4, dim=-1)) == "Scale(4, dim=-1)"


def test_concat_names_the_axis_and_refuses_one_that_is_not_there():
    a, b = torch.ones(2, 3, 4), torch.zeros(2, 3, 1)
    assert concat(a, b, dim=-1).shape == (2, 3, 5) and append(a, b, dim=-1)[..., 0].sum() == 0
    with pytest.raises(ShapeError, match=r"`concat`: expected shapes that differ only on axis -1, got .* set dim"):
        concat(a, torch.ones(2, 4, 4), dim=-1)
    with pytest.raises(ShapeError, match=r"`concat`: expected shapes that differ only on axis 3"):
        concat(a, a, dim=3)


@pytest.mark.parametrize("dim", [0, True, "last", 1.5])
@pytest.mark.parametrize("kind", [Skip, Chain])
def test_what_is_no_channel_axis_is_refused(kind, dim):
    with pytest.raises(InputError, match=f"{kind.__name__}: expected dim to be the axis of the channels"):
        kind(nn.ReLU(), dim=dim)


def test_an_axis_that_the_tensor_lacks_is_refused():
    with pytest.raises(ShapeError, match=r"Skip: dim=2: expected a tensor with that axis next to the batch axis, got"):
        Skip(nn.ReLU(), join="concat", dim=2)(torch.ones(2, 3))


def test_a_join_set_later_takes_the_axis_of_the_skip():
    chain = Chain(Skip(nn.Linear(6, 6)))
    set_submodule(chain, "0.join", concat)
    assert chain(torch.ones(2, 5, 6)).shape == (2, 5, 12)


class SelfAttention(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)

    def forward(self, x, mask=None, padding=None):
        return self.attention(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0]


def test_a_pre_norm_encoder_of_skips_equals_that_of_torch():
    layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, F.gelu, batch_first=True, norm_first=True)
    norms, linears = (layer.norm1, layer.norm2), (layer.linear1, layer.linear2)
    attention = SelfAttention(16, 4)
    attention.attention.load_state_dict(layer.self_attn.state_dict())
    block = Chain(
        attention=Skip([norms[0], attention]), feedforward=Skip([norms[1], linears[0], F.gelu, linears[1]]), dim=-1
    )
    x = torch.randn(3, 7, 16, requires_grad=True)
    padding = torch.arange(7) >= torch.tensor([[7], [5], [2]])
    causal = torch.triu(torch.ones(7, 7, dtype=torch.bool), 1)
    for options, theirs in (
        ({}, {}),
        ({"padding": padding}, {"src_key_padding_mask": padding}),
        ({"padding": padding, "mask": causal}, {"src_key_padding_mask": padding, "src_mask": causal}),
    ):
        ours, reference = block(x, **options), layer(x, **theirs)
        assert torch.allclose(ours, reference, atol=1e-6)
        (mine,), (other,) = (torch.autograd.grad(out.square().sum(), x) for out in (ours, reference))
        assert torch.allclose(mine, other, atol=1e-4)
    assert output_shape(block, (3, 7, 16)) == (3, 7, 16)
