"""Networks and own trees in the tracers of torch: torch.fx and the tools that build on it, torch.jit.trace and script.

A graph computes the same bits as the network, in both modes, for batches and images of other sizes than those of the
example. The oracle is the network itself.
"""

import copy
import pickle
import warnings

import pytest
import torch
from shrunken import SIZE, covering, kinds, random_images, settled
from torch import fx, nn

from skipway.errors import InputError
from skipway.kernels.batchnorm import BATCH_NORM
from skipway.kernels.conv import CONV
from skipway.nn.activation_checkpointing import recompute
from skipway.nn.blocks import SameConv2d, SameMaxPool2d
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import JOINS, Gate, Scale, append
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.shape_inference import output_shape
from skipway.nn.shortcut_types import SHORTCUTS, Pad
from skipway.nn.skip import Skip


def conv(channels, out, stride=1):
    return Chain(conv=nn.Conv2d(channels, out, 3, stride, 1, bias=False), norm=nn.BatchNorm2d(out))


def couplings(make):
    return [Coupling(make(), make()) for _ in range(2)]


def mlp():
    return [nn.LayerNorm(4), nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)]


IMAGES, VECTORS, SEQUENCES = (2, 4, 8, 8), (2, 4), (2, 5, 4)
TREES = {
    **{f"images, {join}": (lambda join=join: Skip(conv(4, 4), join=join, after=nn.ReLU()), IMAGES) for join in JOINS},
    **{f"vectors, {join}": (lambda join=join: Skip(mlp(), join=join), VECTORS) for join in JOINS},
    **{f"sequences, {join}": (lambda join=join: Skip(mlp(), join=join, dim=-1), SEQUENCES) for join in JOINS},
    **{f"shortcut, {kind}": (lambda kind=kind: Skip(conv(4, 8, 2), kind), IMAGES) for kind in SHORTCUTS},
    "shortcut of a signal": (lambda: Skip(nn.Conv1d(4, 8, 3, 2, 1), Pad(4, 8, 2), dim=1), (2, 4, 9)),
    "auto stays the identity": (lambda: Skip(mlp(), "auto"), VECTORS),
    "joins as modules": (lambda: Chain(Skip(conv(4, 4), join=Gate(4)), Skip(conv(4, 4), join=Scale(4, 0.5))), IMAGES),
    "joins as functions": (lambda: Chain(Skip(mlp(), join=lambda a, b: a - b), Skip(mlp(), join=append)), VECTORS),
    "functions": (lambda: Chain(lambda x: 2 * x, Skip([torch.tanh]), Dense(4, 3, torch.relu)), VECTORS),
    "mean over positions": (lambda: Chain(conv(4, 6), lambda x: x.mean((2, 3)), nn.Linear(6, 3)), IMAGES),
    "parallel": (lambda: Parallel("concat", nn.Conv2d(4, 2, 1), conv(4, 3)), IMAGES),
    "parallel inside": (lambda: nn.Sequential(Parallel("add", nn.Linear(4, 8), nn.Linear(4, 8))), VECTORS),
    "skips in skips": (lambda: Skip([Skip(conv(4, 4)), nn.ReLU(), Skip(conv(4, 4), join="scale")]), IMAGES),
    "coupling": (lambda: Coupling(nn.Conv2d(2, 2, 1), conv(2, 2)), IMAGES),
    "reversible": (lambda: Reversible(*couplings(lambda: conv(2, 2))), IMAGES),
    "checkpointed": (lambda: recompute(Chain(*(Skip(mlp()) for _ in range(3))), every=2), VECTORS),
    "same padding": (
        lambda: Chain(SameConv2d(4, 4, 3, 2), SameMaxPool2d(3, 2), SameConv2d(4, 4, 2, 3)),
        (2, 4, 17, 12),
    ),
    "drop path": (lambda: Skip(nn.Conv2d(4, 4, 3, padding=1), drop_path=0.4), (6, 4, 8, 8)),
    "drop path of batches": (lambda: Skip(mlp(), drop_path=0.4, drop_mode="batch"), VECTORS),
}


def seeded(module, x):
    """The output of a copy, so that statistics of norms stay, with the random numbers of one seed."""
    torch.manual_seed(0)
    return copy.deepcopy(module)(x)


def other_sizes(shape):
    """A batch of 3, and other positions."""
    return (3, shape[1], *(size + 3 for size in shape[2:])) if len(shape) != 3 else (3, *shape[1:])


@pytest.mark.parametrize("name", TREES)
def test_own_trees_are_traced_bit_for_bit(name):
    make, shape = TREES[name]
    torch.manual_seed(1)
    tree = make()
    output_shape(tree, shape)
    for training in (False, True):
        graph = fx.symbolic_trace(tree.train(training))
        for x in (torch.randn(shape), torch.randn(other_sizes(shape))):
            found, wanted = seeded(graph, x), seeded(tree, x)
            # The tree computes only the rows that it keeps, which may round in another way.
            assert torch.equal(found, wanted) or ("drop" in name and torch.allclose(found, wanted))


@pytest.mark.parametrize("name", kinds())
def test_every_network_is_traced_bit_for_bit(name):
    network = copy.deepcopy(settled(name))
    for training in (False, True):
        graph = fx.symbolic_trace(network.train(training))
        wide = torch.randn(2, 3, SIZE + 5, SIZE + 8)
        for x in (random_images(), random_images(2) if name == "resmlp" else wide):
            assert torch.equal(seeded(graph, x), seeded(network, x))


@pytest.mark.parametrize("name", covering())
def test_every_network_is_traced_by_torch_jit_for_other_sizes_too(name):
    network = settled(name)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        traced = torch.jit.trace(network, random_images())
    ours = [warning for warning in seen if "skipway" in warning.filename]
    assert not ours, f"a check of shapes was traced: {ours[0].message}"
    for x in (random_images(2), random_images(2) if name == "resmlp" else torch.randn(2, 3, SIZE + 5, SIZE + 8)):
        assert torch.equal(traced(x), network(x))


def test_a_traced_drop_path_draws_in_every_call():
    skip = Skip(nn.Linear(4, 4), drop_path=0.5).train()
    graph, x = fx.symbolic_trace(skip), torch.randn(64, 4)
    first, second = (graph(x) - x for _ in range(2))
    assert 10 < int((first == 0).all(1).sum()) < 54 and not torch.equal(first == 0, second == 0)
    assert torch.allclose(first[first != 0], (2 * skip.body(x))[first != 0], atol=1e-6)


def test_a_graph_learns_as_the_network_does():
    network = Chain(Skip(conv(4, 4), join="layerscale"), Skip(conv(4, 8, 2), "pad"), lambda x: x.mean((2, 3)))
    output_shape(network, IMAGES)
    graph, x = fx.symbolic_trace(network), torch.randn(IMAGES)
    for module in (graph, network):
        module(x).square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert gradients and all(torch.equal(p.grad, gradients[name]) for name, p in graph.named_parameters())


def test_a_graph_can_be_copied_and_pickled():
    tree = Chain(Skip(conv(4, 8, 2), Pad(4, 8, 2), after=nn.ReLU()), Skip(conv(8, 8), join=Scale(8, 0.5))).eval()
    graph, x = fx.symbolic_trace(tree), torch.randn(IMAGES)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(twin(x), tree(x))


def test_kernels_are_never_chosen_for_a_traced_value():
    graph = fx.Graph()
    x = fx.Proxy(graph.placeholder("x"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not CONV.fits(nn.Conv2d(1024, 1024, 1, bias=False), x)
        assert not BATCH_NORM.fits(nn.BatchNorm2d(4), x, None, None)
        traced = fx.symbolic_trace(Chain(conv=nn.Conv2d(4, 4, 1, bias=False), norm=nn.BatchNorm2d(4), act=nn.ReLU()))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["conv", "norm", "act"]


class PathTracer(fx.Tracer):
    """Record the path of the module that computes each node, as the feature extraction of torchvision does."""

    def __init__(self):
        super().__init__()
        self.current, self.paths = "", {}

    def call_module(self, module, forward, args, kwargs):
        before, self.current = self.current, self.path_of_module(module)
        try:
            return super().call_module(module, forward, args, kwargs)
        finally:
            self.current = before

    def create_proxy(self, kind, target, args, kwargs, name=None, type_expr=None, *rest):
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, *rest)
        path = self.current if kind == "call_module" else f"{self.current}.{proxy.node.name}".lstrip(".")
        self.paths[proxy.node] = path
        return proxy


def test_nodes_have_the_paths_of_their_modules():
    tracer = PathTracer()
    tree = Chain(stem=conv(4, 4), stage=Chain(Skip(conv(4, 8, 2), "project", after=nn.ReLU()), Skip(conv(8, 8))))
    output_shape(tree, IMAGES)
    tracer.trace(tree.eval())
    skip = ["stage.0.body.conv", "stage.0.body.norm", "stage.0.shortcut.conv", "stage.0.shortcut.norm"]
    after = ["stage.0.add", "stage.0.after", "stage.1.body.conv", "stage.1.body.norm", "stage.1.add_1"]
    assert list(tracer.paths.values())[1:] == ["stem.conv", "stem.norm", *skip, *after]  # after the input


@pytest.mark.parametrize("name", covering())
def test_features_can_be_extracted_by_the_path_of_a_module(name):
    network, tracer = copy.deepcopy(settled(name)), PathTracer()
    graph = tracer.trace(network)
    layers = [key for key, _ in network.named_children()]
    last = {path.split(".")[0]: node for node, path in tracer.paths.items()}  # the last node of each layer
    modules = dict(network.named_modules())
    assert layers == [layer for layer in last if layer in modules]
    assert all(path in modules for node, path in tracer.paths.items() if node.op == "call_module")
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = (tuple(last[layer] for layer in layers),)
    features = fx.GraphModule(network, graph)(random_images())
    assert all(torch.equal(a, b) for a, b in zip(features, network.activations(random_images()), strict=True))


# torch.jit.script


@pytest.fixture
def quiet_jit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that torch.jit is old
        yield


@pytest.mark.parametrize("name", ["resnet20", "revnet38", "tf_efficientnet_lite0", "densenet40_12", "convnext_atto"])
def test_networks_are_scripted_by_their_graph(name, quiet_jit):
    network = copy.deepcopy(settled(name))
    scripted = torch.jit.script(network)
    for x in (random_images(2), torch.randn(2, 3, SIZE + 5, SIZE + 8)):
        assert torch.equal(scripted(x), network(x))
    assert scripted.state_dict().keys() == network.state_dict().keys() and type(network) is type(settled(name))


@pytest.mark.parametrize(
    "layer, text",
    [
        (Chain(lambda x: x if x.sum() > 0 else -x), "got an error: symbolically traced variables.*Call eval.. first"),
        (
            Chain(lambda x: x.numpy()).eval(),
            "no attribute or method 'numpy'. Use torch.export.export or skipway.export",
        ),
        (Skip(nn.Linear(4, 4), drop_path=0.5), "cannot script Skip: expected operations of TorchScript, got an error"),
    ],
)
def test_what_cannot_be_scripted_is_one_line_that_names_export(layer, text, quiet_jit):
    with pytest.raises(InputError, match=text) as caught:
        torch.jit.script(layer)
    assert "\n" not in str(caught.value) and caught.value.__suppress_context__
