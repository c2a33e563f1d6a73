"""Strict loading is strict, nothing works in place on an input, and containers refuse what would be silent."""

import copy
import warnings

import pytest
import torch
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.model_factory import create_model
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, add, make_join
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip


def test_weights_of_a_shortcut_that_is_not_there_are_unexpected():
    small = {"widths": [8, 16], "layers": [1, 2]}
    plain = create_model("resnet20", shortcut="auto", **small)
    projected = create_model("resnet20", shortcut="project", **small).state_dict()
    with pytest.raises(RuntimeError, match=r"Unexpected key\(s\) in state_dict: .*stage1.0.shortcut.conv.weight"):
        plain.load_state_dict(projected)
    result = plain.load_state_dict(projected, strict=False)
    assert set(result.unexpected_keys) == set(projected) - set(plain.state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        create_model("resnet20", shortcut="project", **small).load_state_dict(plain.state_dict())


@pytest.mark.parametrize("kind", ["project", "auto", "pool"])
def test_weights_of_an_uninferred_shortcut_are_refused_with_the_way_out(kind):
    filled, empty = (Chain(Skip(nn.Conv2d(3, 6, 3, 2, padding=1), kind)) for _ in range(2))
    output_shape(filled, (1, 3, 8, 8))
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"cannot load '0.shortcut.conv.weight': .* Call skipway.output_shape"):
            empty.load_state_dict(filled.state_dict(), strict=strict)
    output_shape(empty, (1, 3, 8, 8))
    assert empty.load_state_dict(filled.state_dict()).unexpected_keys == []


def test_an_optimizer_made_before_shape_inference_is_warned_about():
    for late in (
        Skip(nn.Linear(4, 8), "project"),
        Skip(nn.Linear(4, 4), join="gate"),
        Skip(nn.Linear(4, 4), join=Scale("each")),
    ):
        network = Chain(nn.Linear(4, 4), late)
        optimizer = torch.optim.SGD(network.parameters())
        with pytest.warns(UserWarning, match="shape inference created '1.* after the optimizer, which does not"):
            output_shape(network, (2, 4))
        del optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = Chain(nn.Linear(4, 4), Skip(nn.Linear(4, 8), "project"))
        output_shape(network, (2, 4))
        torch.optim.SGD(network.parameters())
        output_shape(network, (2, 4))


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Identity(), nn.ReLU(inplace=True)],
        [nn.Dropout(0.1), nn.Identity(), nn.Hardtanh(inplace=True)],
        [nn.Flatten(), nn.Sequential(nn.ReLU(inplace=True))],
        [nn.Sequential(nn.Identity()), torch.relu_],
    ],
)
def test_an_in_place_layer_behind_layers_that_pass_their_input_is_refused(layers):
    for skip in (Skip(layers), Skip(nn.ReLU(), shortcut=Chain(*layers))):
        with pytest.raises(InputError, match="the body or the shortcut modifies its input in place, but both need it"):
            skip.eval()(torch.ones(2, 3))


@pytest.mark.parametrize("side", ["body", "shortcut"])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_a_side_that_changes_its_input_in_place_is_refused_when_it_runs(side, drop_path):
    options = {"shortcut": lambda x: x.mul_(2)} if side == "shortcut" else {}
    body = (lambda x: x.relu_()) if side == "body" else nn.Identity()
    skip = Chain(Skip(body, drop_path=drop_path, **options)).eval()
    with pytest.raises(InputError, match=r"Skip at 0: the body.* modifies its input in place, but both need"):
        skip(torch.ones(2, 3))
    masked = Skip(lambda x, mask: x.mul_(mask))
    with pytest.raises(InputError, match="modifies its input in place"):
        masked(torch.ones(2, 3), torch.ones(2, 3))
    assert torch.equal(Skip([torch.neg, nn.ReLU(inplace=True)])(torch.ones(2)), torch.ones(2))


def test_a_thread_that_compiles_meanwhile_raises_no_false_alarm(monkeypatch):
    x = torch.ones(2, 3).mul_(1)  # has a version, which is hidden while any thread compiles
    answers = iter([True, True] + [False] * 100)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: next(answers))
    assert torch.equal(Skip([torch.neg])(x), torch.zeros(2, 3))


def test_a_join_that_works_in_place_on_the_shortcut_is_refused():
    with pytest.raises(InputError, match="the join or the layer after it modifies its input in place"):
        Skip(nn.Linear(3, 3), join=lambda branch, shortcut: shortcut.add_(1))(torch.ones(2, 3))
    with pytest.raises(InputError, match="the join or the layer after it modifies its input in place"):
        Skip(nn.Linear(3, 3), join=lambda branch, shortcut: shortcut, after=nn.ReLU(inplace=True))(torch.ones(2, 3))
    in_place = Skip(nn.Linear(3, 3), join=lambda branch, shortcut: branch.add_(shortcut))
    assert torch.equal(in_place(torch.zeros(2, 3)), in_place.body(torch.zeros(2, 3)))


def test_a_branch_may_change_a_shared_input_in_place_only_if_it_is_the_last():
    with pytest.raises(InputError, match="'a' or 'b' modifies its input in place"):
        Parallel("add", a=lambda x: x.relu_(), b=nn.Identity())(torch.ones(2))
    assert torch.equal(Parallel("add", torch.abs, lambda x: x.neg_())(torch.ones(2)), torch.zeros(2))
    assert torch.equal(Parallel("add", lambda x: x.neg_(), lambda x: x)(torch.ones(2), torch.ones(2)), torch.zeros(2))


@pytest.mark.parametrize(
    "body, kind",
    [
        (nn.LSTM(4, 4, batch_first=True), "tuple"),
        (lambda x: {"out": x}, "dict"),
        (lambda x: None, "NoneType"),
        (lambda x: [x, x], "list"),
    ],
)
@pytest.mark.parametrize("join", ["add", "multiply", "concat", "append", "gate", "scale", "layerscale"])
def test_a_body_without_a_single_tensor_is_refused_with_its_path(body, kind, join):
    network = Chain(first=Skip(body, join=make_join(join, 4), dim=-1))
    with pytest.raises(ShapeError, match=rf"Skip at first: `({join}|scale)`: expected one tensor .*, got {kind}"):
        network(torch.ones(2, 3, 4))
    with pytest.raises(ShapeError, match="expected one tensor from each side"):
        output_shape(network, (2, 3, 4))


# Containers


def test_a_chain_is_built_from_a_list_a_dictionary_and_a_generator():
    a, b = nn.Linear(3, 3), nn.ReLU()
    assert list(Chain([a, b])) == list(Chain(a, b)) == list(Chain((a, b))) == list(Chain(x for x in (a, b)))
    assert list(Chain({"first": a, "second": b}).named_children()) == [("first", a), ("second", b)]
    assert list(Chain([a], head=b).named_children()) == [("0", a), ("head", b)]
    with pytest.raises(InputError, match="layer: expected a module or a function, got a list of several"):
        Chain([a], [b])


def test_chains_add_up_and_keep_names():
    first, second = Chain(nn.ReLU(), mid=nn.Tanh()), Chain(nn.GELU(), head=nn.Sigmoid())
    total = first + second
    assert [name for name, _ in total.named_children()] == ["0", "mid", "2", "head"] and type(total) is Chain
    assert total[0] is first[0] and len(first) == 2
    first += [torch.relu]
    assert len(first) == 3 and first[2](torch.tensor(-1.0)) == 0
    with pytest.raises(InputError, match="cannot add Chains: expected different names, got 'head' in both"):
        second + copy.deepcopy(second)
    with pytest.raises(TypeError):
        first + 3


@pytest.mark.parametrize("repeat", [lambda c: c * 2, lambda c: 2 * c, lambda c: c.__imul__(2)])
def test_repetition_would_share_parameters_and_is_refused(repeat):
    with pytest.raises(InputError, match="cannot repeat a Chain: expected new layers for each repetition"):
        repeat(Chain(nn.Linear(2, 2)))


def test_layers_are_replaced_by_index_and_by_name():
    chain = Chain(nn.ReLU(), head=nn.Tanh())
    chain[0] = torch.sigmoid
    chain["head"] = nn.GELU()
    assert repr(chain[0]) == "sigmoid" and isinstance(chain.head, nn.GELU)
    with pytest.raises(InputError, match="this Chain has no layer 'hed' .did you mean head"):
        chain["hed"] = nn.ReLU()
    with pytest.raises(InputError, match="cannot set layers of a Chain by a slice"):
        chain[0:1] = nn.ReLU()
    with pytest.raises(IndexError):
        chain[5] = nn.ReLU()


def test_a_slice_may_end_at_names():
    chain = Chain(stem=nn.ReLU(), stage1=nn.Tanh(), stage2=nn.GELU(), head=nn.Sigmoid())
    assert [name for name, _ in chain["stage1":"head"].named_children()] == ["stage1", "stage2"]
    assert len(chain[:"stage2"]) == 2 and len(chain["stage2":]) == 2
    del chain["stage1":"head"]
    assert [name for name, _ in chain.named_children()] == ["stem", "head"]
    with pytest.raises(InputError, match="this Chain has no layer 'tail'"):
        chain[:"tail"]


def test_a_parallel_has_branches_by_index_and_name():
    parallel = Parallel("add", nn.ReLU(), side=nn.Tanh())
    assert isinstance(parallel[0], nn.ReLU) and isinstance(parallel["side"], nn.Tanh) and len(parallel) == 2
    assert [type(branch) for branch in parallel] == [nn.ReLU, nn.Tanh]


@pytest.mark.parametrize("layers", [nn.ModuleList([nn.ReLU()]), nn.ModuleDict({"a": nn.ReLU()})])
@pytest.mark.parametrize("build", [Skip, Chain, lambda layers: Skip(nn.ReLU(), layers), lambda x: Parallel("add", x)])
def test_a_list_of_modules_is_no_layer(build, layers):
    with pytest.raises(InputError, match=f"layer: expected a module or a function, got a {type(layers).__name__} of"):
        build(layers)


@pytest.mark.parametrize("block", [Skip(nn.ReLU()), Parallel("add", nn.ReLU())])
def test_a_join_is_not_set_to_a_name_later(block):
    with pytest.raises(InputError, match="cannot set join to the name 'concat' after construction"):
        block.join = "concat"
    with pytest.raises(InputError, match=r"unknown join 'sum' \(did you mean add\?\)"):
        block.join = "sum"
    block.join = add
    block.join = Gate(4)
    assert isinstance(block.join, Gate)


@pytest.mark.parametrize(
    "name, here",
    [
        ("sum", "add"),
        ("mul", "multiply"),
        ("cat", "concat"),
        ("highway", "gate"),
        ("rezero", "scale"),
        ("Cat", "concat"),
    ],
)
def test_the_names_of_other_libraries_get_a_hint(name, here):
    with pytest.raises(InputError, match=rf"unknown join '{name}' \(did you mean {here}\?\)"):
        Skip(nn.ReLU(), join=name)
    with pytest.raises(InputError, match=rf"unknown join '{name}' \(did you mean {here}\?\)"):
        Parallel(name, nn.ReLU())


@pytest.mark.parametrize(
    "name, here", [("identity", "None"), ("projection", "project"), ("A", "pad"), ("avgpool", "pool")]
)
def test_the_names_of_other_libraries_for_shortcuts_get_a_hint(name, here):
    with pytest.raises(InputError, match=rf"unknown shortcut '{name}' \(did you mean {here}\?\)"):
        Skip(nn.ReLU(), name)


def test_a_dense_layer_takes_its_size_from_a_state():
    dense = Dense(None, 2)
    dense.load_state_dict(Dense(3, 2).state_dict())
    assert repr(dense) == "Dense(3, 2)"
    assert dense(torch.ones(1, 3)).shape == (1, 2)


def test_the_warning_about_an_optimizer_survives_a_failed_inference():
    network = Chain(Skip(nn.Linear(4, 6), "project"), nn.Linear(5, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="after the optimizer"), pytest.raises(ShapeError, match="Linear at 1"):
        output_shape(network, (2, 4))
    assert len(optimizer.param_groups) == 1
