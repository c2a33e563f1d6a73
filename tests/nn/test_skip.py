import copy
import sys
import warnings
from collections import OrderedDict

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import outputs_of, start
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.nn.chain import Chain, Function
from skipway.nn.dense import Dense
from skipway.nn.joins import Gate, Scale, add, concat, multiply
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import Pad, Project
from skipway.nn.skip import Skip, named_skips, set_submodule

NAMES = {
    **vars(nn),
    **{n: getattr(torch, n) for n in ("relu", "tanh", "sigmoid")},
    "add": add,
    "concat": concat,
    "multiply": multiply,
    "Gate": Gate,
    "Scale": Scale,
    "Project": Project,
    "Pad": Pad,
    "Chain": Chain,
    "Dense": Dense,
    "Parallel": Parallel,
    "Skip": Skip,
}


class Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def small():
    """One of everything, for vectors of 6."""
    return Chain(
        Dense(6, 6, torch.relu),
        Skip([nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)], after=nn.ReLU()),
        Skip(nn.Linear(6, 4), Project(6, 4, dims=0)),
        Skip(nn.Linear(4, 2), join="concat"),
        Skip(nn.Linear(6, 6), join=Gate(6)),
        Skip(nn.Linear(6, 6), join="scale", drop_path=0.3),
        Skip(nn.Linear(6, 6), join="multiply"),
        Parallel("add", nn.Linear(6, 6), nn.Identity()),
        head=nn.Linear(6, 3),
    )


# The law


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (4, 6, 3, 3), (4, 6, 2, 3, 2)])
def test_a_skip_is_what_comes_after_the_join_of_the_body_and_the_shortcut(shape):
    kind = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
    body, shortcut = ((kind(6, 6, 1) if len(shape) > 2 else kind(6, 6)) for _ in range(2))
    x = torch.randn(shape)
    for join in (add, multiply, concat, torch.sub, lambda branch, shortcut: 2 * branch - shortcut):
        skip = Skip(body, shortcut, join=join, after=torch.tanh)
        assert torch.equal(skip(x), torch.tanh(join(body(x), shortcut(x))))


def test_a_trainable_module_is_a_join_and_counts():
    skip = Skip(nn.Linear(4, 5), join=nn.Bilinear(5, 4, 3))
    x = torch.randn(2, 4)
    assert torch.equal(skip(x), skip.join(skip.body(x), x))
    assert parameters(skip) == 4 * 5 + 5 + 5 * 4 * 3 + 3 and "join.weight" in skip.state_dict()


@pytest.mark.parametrize("shortcut", [None, nn.Linear(6, 6)])
def test_with_a_zero_body_the_network_computes_its_shortcut(shortcut):
    x = torch.randn(3, 6)
    assert torch.equal(Skip(Zero(), shortcut)(x), x if shortcut is None else shortcut(x))
    assert torch.equal(Skip(Zero(), shortcut, join="scale")(x), x if shortcut is None else shortcut(x))


def test_a_list_is_a_body_of_as_many_layers_and_an_empty_one_is_the_identity():
    layers = [nn.Linear(3, 7), torch.relu, nn.Linear(7, 3)]
    x = torch.randn(2, 3)
    assert torch.equal(Skip(layers)(x), Chain(*layers)(x) + x) and torch.equal(Skip(tuple(layers))(x), Skip(layers)(x))
    assert torch.equal(Skip([])(x), 2 * x)


def test_skips_that_do_not_fit_name_their_path_both_shapes_and_the_mend():
    network = Chain(nn.Identity(), stage=Chain(Skip(nn.Linear(5, 1)), nn.ReLU()))
    with pytest.raises(
        ShapeError, match=r'^Skip at stage\.0: `add`: expected .* \(2, 1\) and \(2, 5\) .* shortcut="project"'
    ):
        network(torch.ones(2, 5))


def test_a_skip_within_a_skip_is_named_once_and_by_its_own_path():
    with pytest.raises(ShapeError, match="^Skip at body: `add`"):
        Skip(Skip(nn.Linear(3, 1)), "auto")(torch.ones(2, 3))


# Nothing in place


@pytest.mark.parametrize(
    "make",
    [
        lambda: Skip(nn.ReLU(inplace=True)),
        lambda: Skip([nn.ReLU(inplace=True), nn.Linear(3, 3)]),
        lambda: Skip(nn.Sequential(nn.Sequential(nn.Hardtanh(inplace=True)))),
        lambda: Skip([torch.relu_]),
        lambda: Skip(nn.Linear(3, 3), nn.ReLU(inplace=True)),
        lambda: Skip(Parallel("add", nn.Identity(), nn.ReLU(inplace=True))),
    ],
)
def test_a_skip_that_begins_by_changing_its_input_is_refused(make):
    with pytest.raises(InputError, match="at the start of a Skip modifies in place the input that the other side"):
        make()


def test_nothing_in_place_touches_the_input():
    network = small()
    x = torch.randn(5, 6)
    before = x.clone()
    network(x)
    for skip in (s for _, s in named_skips(network) if not isinstance(s.body, nn.Linear) or s.body.in_features == 6):
        skip(x)
    assert torch.equal(x, before) and x._version == 0


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_an_activation_that_ends_the_body_keeps_its_gradient(activation):
    x = torch.randn(5, 3, requires_grad=True)
    Skip([nn.Linear(3, 3), activation()], after=nn.ReLU(inplace=True))(x).sum().backward()
    assert x.grad.isfinite().all()


# Registered, moved, saved


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_everything_is_registered_and_moves_together(dtype):
    network = small().to(dtype)
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert network(torch.ones(2, 6, dtype=dtype)).dtype == dtype
    assert set(dict(network.named_parameters())) <= set(network.state_dict())
    assert {p.device.type for p in small().to("meta").parameters()} == {"meta"}


def test_a_network_comes_back_from_its_saved_state(tmp_path):
    network, other = small().eval(), small().eval()
    safetensors.torch.save_file(network.state_dict(), tmp_path / "state.safetensors")
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "state.safetensors"))
    x = torch.randn(4, 6)
    assert torch.equal(network(x), other(x)) and repr(network) == repr(other)


def test_a_deep_copy_is_equal_and_apart():
    network = small().eval()
    twin = copy.deepcopy(network)
    x = torch.randn(4, 6)
    assert torch.equal(network(x), twin(x)) and repr(twin) == repr(network)
    assert not {id(p) for p in network.parameters()} & {id(p) for p in twin.parameters()}
    assert [p for p, _ in named_skips(twin)] == [p for p, _ in named_skips(network)]


def test_a_network_goes_into_a_sequential_and_a_sequential_into_it():
    inner = nn.Sequential(nn.Linear(6, 6), Skip(nn.Linear(6, 6)))
    network = nn.Sequential(OrderedDict(first=small(), last=Skip(nn.Sequential(nn.Linear(3, 3)))))
    assert network(torch.ones(2, 6)).shape == (2, 3) and Chain(inner, small())(torch.ones(2, 6)).shape == (2, 3)
    assert [path for path, _ in named_skips(network)][-1] == "last"


def test_a_network_compiles_into_one_graph():
    torch.compiler.reset()  # what was compiled before with other shapes would make these symbolic
    network = small().eval()
    x = torch.randn(4, 6)
    assert torch.allclose(torch.compile(network, fullgraph=True, backend="eager")(x), network(x))
    train = torch.compile(Skip(nn.Linear(6, 6), drop_path=0.5), fullgraph=True, backend="eager")
    assert train(x).shape == (4, 6)
    norms = Chain(nn.BatchNorm1d(6), Skip([nn.BatchNorm1d(6), nn.Linear(6, 6)]), Parallel("add", nn.BatchNorm1d(6)))
    assert torch.allclose(torch.compile(norms, fullgraph=True, backend="eager")(x), copy.deepcopy(norms)(x), atol=1e-5)


def test_a_network_is_exported_with_a_batch_of_any_size():
    network = small().eval()
    program = torch.export.export(network, (torch.randn(4, 6),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(7, 6)
    assert torch.allclose(program.module()(x), network(x), atol=1e-6)


def test_a_network_can_be_traced():
    network = small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of every shape that is compared, and that tracing is old
        traced = torch.jit.trace(network, torch.randn(4, 6))
    x = torch.randn(4, 6)
    assert torch.equal(traced(x), network(x))


WORKER = """
import sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.skip import Skip

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
network = Chain(Dense(6, 6, torch.relu), Skip(nn.Linear(6, 6), join="gate"), Skip(nn.Linear(6, 4), "auto"))
output_shape(network, (2, 6))
network.eval()  # the statistics of a half batch are not those of a whole one
x = torch.randn(8, 6)
wanted = torch.autograd.grad(network(x).square().mean(), list(network.parameters()))
model = DistributedDataParallel(network)
model(x[rank::2]).square().mean().backward()
assert all(torch.allclose(p.grad, w, atol=1e-6) for p, w in zip(network.parameters(), wanted, strict=True))
print("equal", flush=True)
dist.barrier()
del model
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_find_the_gradients_of_one(tmp_path):
    workers = [start(sys.executable, "-c", WORKER, rank, tmp_path / "meeting") for rank in range(2)]
    outputs = outputs_of(*workers)
    assert [output for output, _ in outputs] == ["equal\n", "equal\n"], outputs


# Shared layers


def test_a_block_used_several_times_warns_once_with_the_mend_counts_once_and_is_called_shared():
    block = Chain(nn.Linear(3, 3), nn.ReLU())
    with pytest.warns(UserWarning) as warned:
        network = Chain(*10 * [block], nn.Linear(3, 1))
    assert len(warned) == 1 and warned[0].filename == __file__
    assert "layers of this Chain share parameters ('1' with '0', '2' with '0', '3' with '0' and 6 more)" in str(
        warned[0].message
    )
    assert "Build a new layer for each position to train them separately" in str(warned[0].message)
    assert parameters(network) == 16 and repr(network).count("# shared") == 9
    assert len(network) == 10 + 1 and repr(network).endswith("# 16 parameters in 4 tensors")


@pytest.mark.parametrize(
    "build",
    [
        lambda a: Chain(a, Chain(nn.ReLU(), a)),
        lambda a: Skip(a, a),
        lambda a: Parallel("add", a, a),
        lambda a: Skip([a, a]),
    ],
)
def test_sharing_is_said_wherever_it_happens(build):
    with pytest.warns(UserWarning, match="share parameters") as warned:
        build(nn.Linear(3, 3))
    assert len(warned) == 1


def test_layers_without_parameters_may_be_used_again():
    act = nn.ReLU()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Chain(nn.Linear(3, 3), act, nn.Linear(3, 3), act)) == 4


def test_blocks_built_one_by_one_have_weights_of_their_own():
    def block():
        return Skip([nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()])

    stem, head = Chain(nn.Conv2d(3, 32, 3)), Chain(nn.Linear(8 * 8 * 32, 32), nn.Linear(32, 2))
    assert parameters(Chain(stem, *(block() for _ in range(10)), head)) == 159_330


# Drop path


def test_drop_path_leaves_whole_rows_out_and_keeps_the_mean():
    skip = Skip(nn.Identity(), drop_path=0.25)
    x = torch.ones(4000, 3, 2)
    branch = skip(x) - x
    assert branch.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(branch.amax((1, 2)), branch.amin((1, 2)))
    assert branch.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(skip.eval()(x), 2 * x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_a_drop_path_that_is_no_chance_is_refused(rate):
    with pytest.raises(InputError, match="Skip: expected drop_path of at least 0 and below 1, got"):
        Skip(nn.Identity(), drop_path=rate)


@pytest.mark.parametrize("join", ["concat", "multiply", "gate", concat, multiply, Gate(3)])
def test_drop_path_is_refused_by_joins_that_need_the_body(join):
    with pytest.raises(InputError, match="cannot use drop_path with the join .*, which needs the output of the body"):
        Skip(nn.Linear(3, 3), join=join, drop_path=0.1)


# Chain, Parallel, Function


def test_a_chain_takes_names_functions_and_slices():
    network = Chain(nn.Linear(2, 3), torch.relu, lambda x: x.mean(1, keepdim=True), head=nn.Linear(1, 2))
    assert network.head is network[3] and list(dict(network.named_children())) == ["0", "1", "2", "head"]
    assert isinstance(network[:2], Chain) and len(network[1:]) == 3 and network(torch.ones(1, 2)).shape == (1, 2)
    assert [tuple(a.shape) for a in network.activations(torch.ones(5, 2))] == [(5, 3), (5, 3), (5, 1), (5, 2)]
    assert network["head"] is network.head is network[-1] and network["0"] is network[0] and len(list(network)) == 4
    assert network[2:]["head"] is network.head


def test_a_chain_is_taken_apart_and_put_together_without_losing_names():
    network = Chain(nn.Linear(2, 3), nn.ReLU(), torch.tanh, head=nn.Linear(3, 2))
    head, first = network["head"], network[0]
    del network[1]
    assert list(network.state_dict()) == ["0.weight", "0.bias", "head.weight", "head.bias"] and len(network) == 3
    network[0] = nn.Linear(2, 3, bias=False)
    assert network.append(torch.sigmoid) is network and network.insert(1, nn.Linear(3, 3)) is network
    assert list(dict(network.named_children())) == ["0", "1", "2", "head", "4"] and network["head"] is head
    assert network(torch.ones(1, 2)).shape == network(input=torch.ones(1, 2)).shape == (1, 2)
    del network["head"], network[-1], network[0:1]
    assert [type(layer) for layer in network] == [nn.Linear, Function] and list(network._modules) == ["0", "1"]
    assert list(Chain(first, torch.relu, head=head)[1:].append(nn.ReLU())._modules) == ["0", "head", "2"]
    with pytest.raises(IndexError):
        network[3]
    with pytest.raises(InputError, match="this Chain has no layer 'tail'"):
        del network["tail"]
    with pytest.raises(InputError, match="layer: expected a module instance or a function"):
        network.append("relu")
    with pytest.warns(UserWarning, match="layers of this Chain share parameters"):
        network.append(network[0])


@pytest.mark.parametrize("names", [{"forward": 1}, {"training": 1}, {"a.b": 1}, {"": 1}, {"0": 1}])
def test_a_name_that_a_chain_cannot_use_is_refused(names):
    with pytest.raises(InputError, match="cannot name a layer of a Chain .* Choose another name"):
        Chain(nn.ReLU(), **dict.fromkeys(names, nn.ReLU()))


@pytest.mark.parametrize("layer", [nn.ReLU, 3, None, "relu"])
def test_what_is_no_layer_is_refused(layer):
    with pytest.raises(InputError, match=r"layer: expected a module instance or a function of tensors, got .* Write"):
        Chain(layer)


def test_parallel_gives_one_input_to_all_branches_or_one_to_each():
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    x, y = torch.randn(2, 4, 3)
    both = Parallel("add", a, second=b)
    assert torch.equal(both(x), a(x) + b(x)) and torch.equal(both(x, y), a(x) + b(y))
    assert both.branches.second is b and torch.equal(Parallel("concat", a)(x), a(x))
    assert torch.equal(Parallel("add", a, b)(x), Parallel(torch.add, a, b)(x))


def test_parallel_with_the_identity_is_a_skip():
    body, x = nn.Linear(3, 3), torch.randn(2, 3)
    assert torch.equal(Parallel("add", body, nn.Identity())(x), Skip(body)(x))


def test_parallel_calls_its_join_once_with_all_outputs():
    calls = []
    Parallel(lambda *outs: calls.append(len(outs)), nn.Identity(), nn.ReLU(), nn.Tanh())(torch.ones(1))
    assert calls == [3]


def test_parallel_without_branches_or_with_other_numbers_of_inputs_is_refused():
    with pytest.raises(InputError, match="Parallel: expected at least one branch after the join, got none"):
        Parallel("add")
    with pytest.raises(InputError, match=r"^Parallel: expected 1 or 3 inputs for its 3 branches, got 2"):
        Chain(Parallel("add", nn.ReLU(), nn.ReLU(), nn.ReLU()))[0](torch.ones(1), torch.ones(1))
    with pytest.raises(ShapeError, match=r"Parallel: `add`: expected equal shapes, got \(2, 1\) and \(2, 5\)"):
        Parallel("add", nn.Linear(3, 1), nn.Linear(3, 5))(torch.ones(2, 3))


# Walk and replace


def test_every_skip_is_found_and_can_be_replaced_by_its_path():
    network = Chain(nn.ReLU(), stage=nn.Sequential(Skip([nn.Linear(3, 3), Skip(nn.Linear(3, 3))])))
    assert [p for p, _ in named_skips(network)] == ["stage.0", "stage.0.body.1"]
    set_submodule(network, "stage.0.body.1", torch.tanh)
    assert isinstance(network.stage[0].body[1], Function) and [p for p, _ in named_skips(network)] == ["stage.0"]
    set_submodule(network, "stage.0", Skip(nn.Linear(3, 1)))
    with pytest.raises(ShapeError, match="Skip at stage.0"):
        network(torch.ones(2, 3))


def test_each_place_of_a_shared_layer_can_be_replaced():
    layer = nn.Linear(3, 3)
    network = nn.Sequential(layer, layer)
    set_submodule(network, "1", nn.ReLU())
    assert network[0] is layer and isinstance(network[1], nn.ReLU)


@pytest.mark.parametrize("join", [nn.Bilinear(3, 3, 3), torch.sub])
def test_the_parts_of_a_skip_are_replaced_by_their_paths_there_or_not(join):
    network = Chain(Skip(nn.Linear(3, 3)), wide=Skip(nn.Linear(3, 4), "auto"))
    body, x = network[0].body, torch.randn(2, 3)
    shortcut, other = nn.Linear(3, 3), nn.Linear(3, 4)
    for path, new in (("0.shortcut", shortcut), ("0.join", join), ("0.after", torch.tanh), ("wide.shortcut", other)):
        set_submodule(network, path, new)
    assert torch.equal(network[0](x), torch.tanh(join(body(x), shortcut(x))))
    assert torch.equal(network.wide(x), network.wide.body(x) + other(x)) and network.wide.shortcut is other
    assert output_shape(network, (2, 3)) == (2, 4)


@pytest.mark.parametrize("path", ["body.0", "body", "shortcut"])
@pytest.mark.parametrize("deep", [True, False])
def test_a_replacement_that_its_skip_refuses_changes_nothing(path, deep):
    skip = Skip([nn.Linear(3, 3), nn.Linear(3, 3)], drop_path=0.5)
    network = Chain(nn.ReLU(), stage=nn.Sequential(skip)) if deep else skip
    before, names = repr(network), [n for n, _ in network.named_modules()]
    prefix = "stage.0." if deep else ""
    with pytest.raises(InputError, match="at the start of a Skip modifies in place the input that the other side"):
        set_submodule(network, prefix + path, nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 3)))
    with pytest.raises(InputError, match="cannot use drop_path with the join multiply, which needs the output"):
        set_submodule(network, prefix + "join", multiply)
    assert repr(network) == before and [n for n, _ in network.named_modules()] == names and skip.join is add
    set_submodule(network, prefix + "body.1", nn.ReLU(inplace=True))


def test_a_replacement_that_is_there_already_is_said_and_what_was_shared_before_is_not():
    with pytest.warns(UserWarning, match="share parameters"):
        network = Chain(*[nn.Linear(3, 3)] * 2, stage=Chain(nn.Linear(3, 3), nn.ReLU()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        set_submodule(network, "stage.1", nn.Linear(3, 3))
    with pytest.warns(UserWarning, match=r"Chain share parameters \('stage' with '0'\)") as warned:
        set_submodule(network, "stage.1", network[0])
    assert len(warned) == 1 and warned[0].filename == __file__


@pytest.mark.parametrize("path", ["", "stage2", "0.body"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(InputError, match=r"cannot set a submodule: expected a path in the module, got '.*'.*. List"):
        set_submodule(Chain(nn.ReLU(), stage1=nn.ReLU()), path, nn.ReLU())


# Printing


SMALL = """\
Chain(
  Dense(4, 8, relu),             # 40 parameters
  Skip(
    Chain(
      Dense(8, 16, relu),        # 144 parameters
      Dense(16, 8, bias=False),  # 128 parameters
    ),
    after=ReLU(),
  ),
  head=Dense(8, 2),              # 18 parameters
)                                # 330 parameters in 7 tensors"""


def test_a_small_network_prints_as_the_code_that_builds_it():
    network = Chain(
        Dense(4, 8, torch.relu),
        Skip([Dense(8, 16, torch.relu), Dense(16, 8, bias=False)], after=nn.ReLU()),
        head=Dense(8, 2),
    )
    assert repr(network) == SMALL


def test_counts_stand_below_each_other():
    lines = [line for line in repr(small()).splitlines() if "#" in line]
    assert len({line.index("#") for line in lines}) == 1


LAZY_BEFORE = """\
Chain(
  Dense(None, 5, relu),   # uninferred sizes
  Skip(
    Dense(None, 3),       # uninferred sizes
    shortcut='project',
    join=Gate(),
    after=ReLU(),
  ),
  Parallel(
    concat,
    Dense(3, 2),          # 8 parameters
    side=BatchNorm1d(3),  # 6 parameters
  ),
)                         # uninferred sizes in 8 tensors"""
LAZY_AFTER = """\
Chain(
  Dense(7, 5, relu),                 # 40 parameters
  Skip(
    Dense(5, 3),                     # 18 parameters
    shortcut=Project(5, 3, dims=0),  # 21 parameters
    join=Gate(3),                    # 12 parameters
    after=ReLU(),
  ),
  Parallel(
    concat,
    Dense(3, 2),                     # 8 parameters
    side=BatchNorm1d(3),             # 6 parameters
  ),
)                                    # 105 parameters in 13 tensors"""


def lazy():
    return Chain(
        Dense(None, 5, torch.relu),
        Skip(Dense(None, 3), "project", join="gate", after=nn.ReLU()),
        Parallel("concat", Dense(3, 2), side=nn.BatchNorm1d(3)),
    )


def test_a_network_with_open_sizes_prints_them_before_and_after_they_are_filled():
    network = lazy()
    assert repr(network) == LAZY_BEFORE
    assert output_shape(network, (4, 7)) == (4, 5)
    assert repr(network) == LAZY_AFTER


def test_a_function_is_printed_by_its_name():
    assert repr(Function(torch.relu)) == "relu" and "<lambda>" in repr(Chain(lambda x: x))


def trees(width, depth):
    n = st.integers(1, 4)
    dense = st.builds(
        lambda m, act, bias: (Dense(width, m, act, bias), m), n, st.sampled_from([None, torch.relu]), st.booleans()
    )
    if not depth:
        return dense
    inner = trees(width, depth - 1)
    return st.one_of(
        inner.map(lambda a: (Skip(a[0], "auto", after=nn.ReLU()), a[1])),
        inner.map(lambda a: (Skip([a[0]], Project(width, a[1], dims=0), drop_path=0.1), a[1])),
        inner.map(lambda a: (Skip(a[0], join="concat"), a[1] + width)),
        st.builds(lambda: (Skip(Dense(width, width), join=Gate(width)), width)),
        st.builds(lambda: (Skip(Dense(width, width), join=Scale(width, 0.1)), width)),
        st.tuples(inner, inner).map(lambda ab: (Parallel("concat", ab[0][0], b=ab[1][0]), ab[0][1] + ab[1][1])),
        inner.flatmap(lambda a: trees(a[1], depth - 1).map(lambda b: (Chain(a[0], torch.tanh, b=b[0]), b[1]))),
    )


@settings(max_examples=60, deadline=None)
@given(trees(3, 2))
def test_what_is_printed_builds_the_same_network_again(tree):
    network = tree[0]
    again = eval(repr(network), NAMES)
    assert repr(again) == repr(network)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    output_shape(network, (2, 3)), output_shape(again, (2, 3))
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(again.eval()(x), network.eval()(x))


def test_parts_that_are_set_later_are_checked_and_used():
    skip = Skip(nn.Linear(4, 4), "project")
    skip.shortcut = nn.Identity()
    assert skip(torch.ones(1, 4)).shape == (1, 4)
    with pytest.raises(InputError, match="expected a name or a callable"):
        skip.join = None


def test_a_new_skip_takes_the_axis_of_the_chains_around_it():
    chain = Chain(nn.Linear(6, 6), Skip(nn.Identity()), dim=-1)
    set_submodule(chain, "1", Skip(nn.ReLU(), join="layerscale"))
    assert output_shape(chain, (2, 5, 6)) == (2, 5, 6)
    assert chain[1].join.channels == 6


def test_a_traced_join_warns_about_no_shape():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.jit.trace(Skip(nn.Linear(4, 4)), torch.ones(1, 4), check_trace=False)
    assert not [w for w in caught if issubclass(w.category, torch.jit.TracerWarning)]


@pytest.mark.parametrize(("name", "hint"), [("identity", "add"), ("densenet", "append"), ("hadamard", "multiply")])
def test_the_join_of_another_library_has_a_hint(name, hint):
    with pytest.raises(InputError, match=f"did you mean {hint}"):
        Skip(nn.Linear(4, 4), join=name)


def test_a_good_join_does_not_search_for_the_axis_of_the_channels(monkeypatch):
    """The axis is only for the advice of an error, and the search would cost more than the addition."""
    monkeypatch.setattr(Skip, "channel_axis", property(lambda self: pytest.fail("searched")))
    assert Skip(nn.Linear(4, 4))(torch.ones(1, 4)).shape == (1, 4)
