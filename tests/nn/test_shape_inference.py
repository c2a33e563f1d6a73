import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.models import registry
from skipway.nn import shape_inference
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import calls, evaluation, output_shape
from skipway.nn.skip import Skip


def trees(width, depth):
    """Modules from (B, width) to some (B, n), with sizes given and left open, and n."""
    sizes = st.integers(1, 5)
    dense = st.builds(lambda n, open_: (Dense(None if open_ else width, n, torch.relu), n), sizes, st.booleans())
    if depth == 0:
        return dense
    inner = trees(width, depth - 1)
    return st.one_of(
        dense,
        st.builds(lambda a, kind: (Skip(a[0], kind), a[1]), inner, st.sampled_from(["auto", "project"])),
        st.builds(lambda a: (Skip(a[0], join="concat"), a[1] + width), inner),
        st.builds(lambda join: (Skip(nn.Linear(width, width), join=join), width), st.sampled_from(["gate", "scale"])),
        st.builds(lambda a, b: (Parallel("concat", a[0], b[0]), a[1] + b[1]), inner, inner),
        inner.flatmap(lambda a: trees(a[1], depth - 1).map(lambda b: (Chain(a[0], b[0]), b[1]))),
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5).flatmap(lambda width: st.tuples(st.just(width), trees(width, 2), st.integers(2, 4))))
def test_the_shape_of_any_tree_is_the_shape_of_what_it_computes(case):
    width, (module, size), batch = case
    shape = output_shape(module, (batch, width))
    assert shape == (batch, size) == tuple(module(torch.randn(batch, width)).shape)
    assert all(type(p) is nn.Parameter for p in module.parameters())
    assert output_shape(module, (batch, width)) == shape


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["conv", "auto", "pad", "pool", "concat"]),
            st.integers(1, 3),
            st.integers(0, 2),
            st.sampled_from([1, 3]),
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_the_shape_of_any_tower_of_convolutions_is_the_shape_of_what_it_computes(layers, height, width):
    channels, tower = 2, []
    for kind, stride, more, kernel in layers:
        stride = 1 if kind == "concat" else stride
        conv = nn.Conv2d(channels, channels + more, kernel, stride, kernel // 2)
        tower.append({"conv": conv, "concat": Skip(conv, join="concat")}.get(kind) or Skip(conv, kind))
        channels = 2 * channels + more if kind == "concat" else channels + more
    network = Chain(*tower)
    shape = output_shape(network, (2, 2, height, width))
    assert shape == tuple(network.eval()(torch.randn(2, 2, height, width)).shape)


def test_several_inputs_and_several_outputs_have_their_shapes():
    assert output_shape(nn.Bilinear(2, 3, 5), (4, 2), (4, 3)) == (4, 5)
    assert output_shape(Parallel("add", nn.Linear(2, 5), nn.Linear(3, 5)), (4, 2), (4, 3)) == (4, 5)
    assert output_shape(Parallel(lambda *outs: outs, nn.Linear(2, 5), nn.Linear(2, 3)), (4, 2)) == ((4, 5), (4, 3))
    assert output_shape(nn.LSTM(3, 4), (5, 2, 3)) == ((5, 2, 4), ((1, 2, 4), (1, 2, 4)))
    assert output_shape(Parallel(lambda a, b: {"a": a, "b": [b]}, nn.Identity(), nn.Identity()), (4, 2)) == (
        (4, 2),
        ((4, 2),),
    )


def test_whole_numbers_of_any_kind_are_sizes():
    assert output_shape(nn.Linear(3, 4), np.array([2, 3]).tolist()) == (2, 4)
    assert output_shape(nn.Linear(3, 4), (np.int64(2), np.int32(3))) == (2, 4)
    assert output_shape(nn.Linear(3, 4), torch.Size([2, 3])) == (2, 4)


class Written(nn.Module):
    """As users write them: a list of layers, arithmetic, a branch on the mode, a layer used twice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.LazyLinear(4)])
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        self.seen = self.seen * 0.9 + x.detach().mean(0)
        return self.norm(self.layers[0](x)).reshape(-1, 2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_user_s_module_has_a_shape_on_its_own_dtype(dtype):
    module = Written().to(dtype)
    assert output_shape(module, (3, 4)) == (3, 2, 2)
    assert {p.dtype for p in module.parameters()} == {dtype}
    assert type(module.layers[1].weight) is nn.Parameter and type(module.seen) is torch.Tensor
    assert module(torch.ones(3, 4, dtype=dtype)).shape == (3, 2, 2)


def test_the_shape_pass_leaves_no_trace():
    module = Written()
    module(torch.randn(5, 4))
    module.norm.eval()
    chain = Chain(module, nn.Flatten(), nn.Dropout(0.5), Skip(nn.Linear(4, 4), drop_path=0.5))
    called = []
    chain.register_forward_hook(lambda *args: called.append(1))
    state = {k: v.clone() for k, v in chain.state_dict().items()}
    modes = [m.training for m in chain.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in chain.modules()]
    generator = torch.get_rng_state()
    assert output_shape(chain, (3, 4)) == (3, 4)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [m.training for m in chain.modules()] == modes and modes.count(False) == 1
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in chain.modules()] == hooks
    assert all(torch.equal(v, state[k]) for k, v in chain.state_dict().items())
    assert all(p.grad is None for p in chain.parameters())


def test_the_shape_pass_leaves_no_trace_when_it_fails():
    chain = Chain(nn.BatchNorm1d(4), nn.Linear(4, 3), nn.Linear(4, 2))
    with pytest.raises(ShapeError, match="Linear at 2"):
        output_shape(chain, (3, 4))
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in chain.modules())


def test_the_shape_pass_runs_on_the_meta_device():
    network = Chain(nn.Linear(4, 4), Skip(Dense(4, 6), "auto", join="gate")).to("meta")
    assert output_shape(network, (3, 4)) == (3, 6)
    assert {p.device.type for p in network.parameters()} == {"meta"}


def test_a_module_made_to_do_more_at_eval_is_not_asked_to():
    class Loud(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("asked")

    assert output_shape(Loud(3, 4), (2, 3)) == (2, 4)


def test_evaluation_gives_each_module_its_own_mode_back():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
    network[1].eval()
    with pytest.raises(KeyError), evaluation(network):
        assert not network[0].training
        raise KeyError
    assert network.training and network[0].training and not network[1].training


def test_torch_s_lazy_layers_are_filled_with_real_parameters():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2)).double()
    assert output_shape(network, (2, 3, 8, 8)) == (2, 2)
    assert [type(m) for m in network] == [nn.Conv2d, nn.BatchNorm2d, nn.Flatten, nn.Linear]
    assert {(type(p), p.dtype) for p in network.parameters()} == {(nn.Parameter, torch.float64)}
    assert network(torch.randn(2, 3, 8, 8).double()).shape == (2, 2)
    assert not any(m._forward_pre_hooks for m in network.modules())


def test_a_dense_layer_without_a_size_says_how_to_give_it_one():
    network = Chain(nn.ReLU(), body=Chain(Dense(None, 3)))
    with pytest.raises(ShapeError, match="Dense at body.0: its in_features are uninferred. Call skipway.output_shape"):
        network(torch.ones(2, 4))
    output_shape(network, (2, 4))
    assert network(torch.ones(2, 4)).shape == (2, 3)


def deep(bad):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.ReLU(), bad)

        def forward(self, x):
            return self.inner(x)

    return Chain(nn.Identity(), stage=nn.Sequential(nn.Identity(), Skip([nn.Identity(), Own()], join="concat")))


@pytest.mark.parametrize(
    "bad, shape, text",
    [
        (nn.Linear(5, 2), (2, 4), r"Linear at {}: expected \(\*, 5\), got \(2, 4\). Set in_features"),
        (nn.Conv1d(5, 2, 3), (2, 4, 9), r"Conv1d at {}: expected \(B, 5, L\) with L at least .*, got \(2, 4, 9\)"),
        (nn.Conv2d(5, 2, 3), (2, 4, 9, 9), r"Conv2d at {}: expected \(B, 5, H, W\) .* Set in_channels to that"),
        (
            nn.Conv2d(4, 2, 11),
            (2, 4, 9, 9),
            r"Conv2d at {}: expected .* or change the kernel \(11, 11\), stride",
        ),
        (nn.BatchNorm2d(5), (2, 4, 9, 9), r"BatchNorm2d at {}: expected 5 channels on axis 1, got .* Set num_features"),
        (nn.LayerNorm(5), (2, 4), r"LayerNorm at {}: expected \(\*, 5\), got \(2, 4\). Set normalized_shape"),
        (Skip(nn.Linear(4, 1)), (2, 4), r"Skip at {}: `add`: expected equal shapes, got \(2, 1\) and \(2, 4\)"),
        (Parallel("add", nn.Linear(4, 1), nn.Identity()), (2, 4), r"Parallel at {}: `add`: expected equal shapes"),
        (Parallel("add", nn.Identity(), nn.Conv1d(5, 2, 3)), (2, 4, 9), r"Conv1d at {}.branches.1: expected"),
    ],
)
def test_a_misfit_deep_inside_is_named_by_its_path(bad, shape, text):
    with pytest.raises(ShapeError, match=text.format(r"stage\.1\.body\.1\.inner\.1")) as refused:
        output_shape(deep(bad), shape)
    assert len(str(refused.value).splitlines()) == 1


def test_a_misfit_at_the_second_call_of_a_layer_is_named_by_its_second_place():
    layer = nn.Linear(3, 4)
    with pytest.raises(ShapeError, match=r"Linear at 1\.1: expected \(\*, 3\), got \(2, 4\)"):
        output_shape(nn.Sequential(layer, nn.Sequential(nn.ReLU(), layer)), (2, 3))
    skip = Skip(nn.Linear(3, 3))
    with pytest.raises(ShapeError, match=r"Linear at 2\.body: expected \(\*, 3\), got \(2, 5\)"):
        output_shape(nn.Sequential(skip, nn.Linear(3, 5), skip), (2, 3))


def test_a_layer_that_one_module_calls_twice_has_one_path():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ShapeError, match=r"Linear at layer: expected \(\*, 3\), got \(2, 4\)"):
        output_shape(Twice(), (2, 3))


def test_a_misfit_of_types_is_not_called_one_of_shapes():
    class Whole(nn.Module):
        def forward(self, x):
            return x.long()

    with pytest.raises(ShapeError, match=r"Conv2d at 1: expected an input of torch.float32, got torch.int64. Convert"):
        output_shape(nn.Sequential(Whole(), nn.Conv2d(3, 4, 3)), (2, 3, 8, 8))


def test_a_call_that_depends_on_the_data_is_refused_in_one_line():
    class Depends(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ShapeError, match=r"Depends at the top cannot process \(2, 3\): .*\. Change this") as refused:
        output_shape(Depends(), (2, 3))
    assert len(str(refused.value).splitlines()) == 1


def test_a_module_that_goes_on_after_a_failed_call_does_not_confuse_the_paths():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.bad = nn.Linear(9, 9), nn.Linear(3, 4), nn.Linear(9, 1)

        def forward(self, x):
            try:
                return self.first(x)
            except RuntimeError:
                return self.second(x)

    assert output_shape(nn.Sequential(Tries()), (2, 3)) == (2, 4)
    with pytest.raises(ShapeError, match="Linear at 1: expected"):
        output_shape(nn.Sequential(Tries(), nn.Linear(9, 1)), (2, 3))


def test_a_wrong_number_of_inputs_is_said_once():
    with pytest.raises(InputError, match="^Parallel at 0: expected 1 or 2 inputs for its 2 branches, got 3"):
        output_shape(Three(Parallel("add", nn.Identity(), nn.Identity())), (2, 3))


class Three(nn.Sequential):
    def forward(self, x):
        return self[0](x, x, x)


@pytest.mark.parametrize(
    "shapes", [(2, 3), ((2, 3.0),), ((2, -3),), ("23",), ((None, 3),), ({"x": (2, -3)},), ([(2, 3), 4],)]
)
def test_what_is_no_shape_is_refused(shapes):
    with pytest.raises(InputError, match="output_shape: expected shapes of non-negative integers with the batch first"):
        output_shape(nn.Linear(3, 4), *shapes)


def test_paths_lead_from_the_outermost_of_ours_however_it_was_put_together():
    skip = Skip(nn.Linear(3, 1))
    network = Chain(nn.Linear(3, 3), stage=nn.Sequential(nn.ReLU()))
    network.stage.append(skip)
    for root, path in (
        (network, "stage.1"),
        (network.stage, "1"),
        (copy.deepcopy(network), "stage.1"),
        (network[1:], "stage.1"),
        (nn.Sequential(nn.ReLU(), network), "1.stage.1"),
    ):
        with pytest.raises(ShapeError, match=f"^Skip at {path}: `add`"):
            output_shape(root, (2, 3))
    network.stage[1] = nn.ReLU()
    network.stage[0] = Chain(nn.Linear(3, 3), Skip(nn.Linear(3, 1)))
    for call in (lambda: network(torch.ones(2, 3)), lambda: network.activations(torch.ones(2, 3))):
        with pytest.raises(ShapeError, match=r"^Skip at stage\.0\.1: `add`"):
            call()


def test_a_layer_outside_of_the_network_that_fails_keeps_its_own_name():
    outside = Chain(nn.ReLU(), Skip(nn.Linear(3, 1)))
    with pytest.raises(ShapeError, match="^Skip at 1: `add`"):
        Chain(nn.ReLU(), nn.ReLU(), lambda x: outside(x))(torch.ones(2, 3))


def test_every_call_is_listed_with_what_the_pass_itself_has_made():
    network = Chain(Dense(None, 4), Skip(Dense(None, 5), "auto", join="gate"))
    called = [call.path for call in calls(network, (2, 3))]
    assert called == [call.path for call in calls(network, (2, 3))]
    assert {"1.shortcut.linear", "1.shortcut.norm", "1.join.transform"} <= set(called) and called[-1] == ""


def test_a_call_knows_the_shapes_that_go_in_and_out():
    both = Parallel("add", nn.Linear(2, 5), b=nn.Linear(3, 5))
    found = {c.path: (c.inputs, c.output) for c in calls(both, (4, 2), (4, 3))}
    assert found["branches.0"] == (((4, 2),), (4, 5)) and found["branches.b"] == (((4, 3),), (4, 5))
    assert found[""] == (((4, 2), (4, 3)), (4, 5)) and list(found)[-1] == ""


# The quick pass, which the exact one follows where it fails


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: registry.build("resnet20")[0], (2, 3, 32, 32)),
        (lambda: registry.build("resnetv2_50", norm="group")[0], (1, 3, 65, 40)),
        (lambda: registry.build("densenetbc100_12", layers=[2, 2])[0], (2, 3, 16, 16)),
        (lambda: registry.build("seresnet18", padding="same")[0], (2, 3, 33, 33)),
        (lambda: registry.build("resmlp", join="gate")[0], (2, 64)),
        (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.LayerNorm(5), nn.Upsample(scale_factor=2)), (2, 4, 7)),
        (lambda: nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4, track_running_stats=False)), (3, 4)),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), (2, 4)),
    ],
)
def test_both_passes_find_the_same_calls(make, shape, monkeypatch):
    network = make()
    with monkeypatch.context() as patch:
        patch.setattr(shape_inference, "_infer_on_fakes", lambda *args: pytest.fail("the meta device was enough"))
        quick = calls(network, shape)
    monkeypatch.setattr(shape_inference, "_infer_on_meta", lambda *args: 1 / 0)
    assert calls(network, shape) == quick and quick[-1].output == tuple(network(torch.randn(shape)).shape)


def test_the_quick_pass_gives_everything_back():
    layer = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = layer.weight
    network = nn.Sequential(layer, nn.BatchNorm1d(3), tied, layer, nn.Sequential(layer))
    for last in (nn.ReLU(), nn.Linear(5, 1)):
        whole = nn.Sequential(network, last)
        before = {**dict(whole.named_parameters(remove_duplicate=False)), **dict(whole.named_buffers())}
        try:
            output_shape(whole, (2, 3))
        except ShapeError as error:
            assert str(error).startswith("Linear at 1: expected (*, 5), got (2, 3)")
        after = {**dict(whole.named_parameters(remove_duplicate=False)), **dict(whole.named_buffers())}
        assert before.keys() == after.keys() and all(before[k] is after[k] for k in before)


def test_what_only_the_exact_pass_can_do_is_done():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = [torch.ones(3)]

        def forward(self, x):
            return x * self.scale[0] + torch.rand(3)

    network = Chain(Own(), nn.LSTM(3, 4), lambda pair: pair[0], Dense(None, 2))
    generator = torch.get_rng_state()
    assert output_shape(network, (5, 3)) == (5, 2) and type(network[0].scale[0]) is torch.Tensor
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_module_that_catches_what_fails_does_not_catch_an_open_size():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Dense(None, 4), nn.Linear(3, 5)

        def forward(self, x):
            try:
                return self.first(x)
            except Exception:
                return self.second(x)

    network = nn.Sequential(Tries())
    assert output_shape(network, (2, 3)) == (2, 4) == tuple(network(torch.ones(2, 3)).shape)


def test_a_layer_made_in_a_first_call_is_real():
    class Late(nn.Module):
        def forward(self, x):
            if not hasattr(self, "weight"):
                self.weight = nn.Parameter(torch.ones(x.shape[1]))
            return x * self.weight

    class Later(nn.Module):
        def forward(self, x):
            if not hasattr(self, "weight"):
                self.weight = nn.Parameter(x.new_ones(x.shape[1]))
                self.register_buffer("seen", x.new_ones(x.shape[1]))
            return x * self.weight * self.seen

    for late in (Late(), Later()):
        assert output_shape(late, (2, 3)) == (2, 3) and not any(p.is_meta for p in late.parameters())
        assert torch.equal(late(torch.ones(2, 3)), torch.ones(2, 3)) and type(late.weight.data) is torch.Tensor


def test_what_torch_has_compiled_or_scripted_has_a_shape():
    network = Chain(nn.Linear(3, 3), Skip(nn.Linear(3, 4), "project"))
    output_shape(network, (2, 3))
    assert output_shape(torch.compile(network, backend="eager"), (2, 3)) == (2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = nn.Sequential(torch.jit.script(nn.Linear(3, 4)), nn.BatchNorm1d(4))
    assert output_shape(scripted, (2, 3)) == (2, 4) and not any(p.is_meta for p in scripted.parameters())


def test_a_misfit_s_traceback_tells_of_the_misfit_alone():
    with pytest.raises(ShapeError, match="Linear at 0: expected") as refused:
        output_shape(Chain(nn.Linear(5, 1)), (2, 3))
    assert refused.value.__cause__.__context__ is None


# Sizes left open anywhere


def everywhere():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.skips = nn.ModuleList([Skip(nn.LazyConv2d(6, 3, padding=1), "auto"), Skip(Chain(), join="layerscale")])

        def forward(self, x):
            for skip in self.skips:
                x = skip(x)
            return x

    inner = Skip([nn.LazyConv2d(4, 3, 2, 1), nn.LazyBatchNorm2d()], "pool", join=Scale("each", init=0.5))
    return Chain(
        nn.Sequential(Own(), Parallel("concat", inner, Skip(nn.LazyConv2d(4, 1, 2), "project", join=Gate()))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        Skip(Dense(None, 7, torch.relu), join="concat"),
        head=Dense(None, 3),
    )


def test_every_open_size_is_filled_in_by_one_call():
    network = everywhere().double()
    assert output_shape(network, (2, 3, 8, 8)) == (2, 3)
    assert all(type(p) is nn.Parameter and p.dtype == torch.float64 for p in network.parameters())
    assert sorted(p.shape[0] for n, p in network.named_parameters() if n.endswith("scale")) == [4, 6]
    names = [name for name, _ in network.named_parameters()]
    assert output_shape(network, (2, 3, 8, 8)) == (2, 3) and names == [name for name, _ in network.named_parameters()]
    network(torch.randn(4, 3, 8, 8).double()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "layer, text",
    [
        (lambda: Dense(None, 3), "Dense at a.1: its in_features are uninferred. Call skipway.output_shape"),
        (
            lambda: Skip(nn.Linear(3, 4), "auto"),
            'Skip at a.1: the sizes of its shortcut "auto" are uninferred. Call',
        ),
        (lambda: Skip(nn.Linear(3, 3), join="gate"), "Skip at a.1: `gate` has an uninferred number of channels. Call"),
        (
            lambda: Skip(nn.Linear(3, 3), join=Scale("each")),
            "Skip at a.1: `scale` has an uninferred number of channels.",
        ),
        (
            lambda: Parallel("gate", nn.ReLU(), nn.ReLU()),
            "Parallel at a.1: `gate` has an uninferred number of channels.",
        ),
        (lambda: nn.Sequential(Skip([Dense(None, 3)])), "Dense at a.1.0.body.0: its in_features are uninferred"),
    ],
)
def test_an_open_size_that_is_used_names_its_layer_and_the_mend(layer, text):
    network = Chain(a=nn.Sequential(nn.ReLU(), layer()))
    with pytest.raises(ShapeError, match=f"^{text}"):
        network(torch.ones(2, 3))
    output_shape(network, (2, 3))
    assert network(torch.ones(2, 3)).shape[0] == 2
