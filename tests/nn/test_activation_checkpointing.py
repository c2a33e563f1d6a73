import copy
import os

import pytest
import torch
from small_runs import image_folder, quick, same_runs
from torch import nn
from torch.nn import functional as F

import skipway as sw
from skipway.errors import InputError
from skipway.nn import activation_checkpointing

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "resnet20": ("resnet20", {"layers": [3, 2, 1]}),
    "drop path and dropout": ("resnetv2_110", {"layers": [3, 2, 2], "drop_path": 0.5, "dropout": 0.2}),
    "plain": ("resnet34", {"layers": [2, 2], "widths": [8, 16], "stem": "small", "shortcut": "none"}),
    "densenet": ("densenet121", {"layers": [3, 2], "growth": 4}),
    "resnet9": ("resnet9", {"widths": [8, 8, 16], "layers": [2, 1]}),
    "resmlp": ("resmlp", {"width": 8, "dropout": 0.2, "drop_path": 0.3}),
}


def make(case):
    name, options = NETWORKS[case]
    torch.manual_seed(3)
    return sw.create_model(name, 5, **options)


def stepped(network, precision=torch.float32):
    """Loss, gradients and buffers after one training pass."""
    torch.manual_seed(7)
    plan = network.plan
    x = torch.randn(6, plan["in_features"]) if "in_features" in plan else torch.randn(6, 3, 16, 16)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        loss = F.cross_entropy(network.train()(x).float(), torch.arange(6) % 5)
    loss.backward()
    found = {"loss": loss.detach()}
    found |= {f"gradient {name}": p.grad for name, p in network.named_parameters() if p.requires_grad}
    return found | {f"buffer {name}": b for name, b in network.named_buffers()} | {"draw": torch.rand(3)}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("every", ["auto", "stages", 1, 2])
@pytest.mark.parametrize("case", NETWORKS)
def test_gradients_statistics_and_chances_are_those_of_the_plain_network_to_the_bit(case, every, precision):
    plain, thrifty = make(case), make(case)
    assert sw.recompute(thrifty, every) is thrifty
    expected, found = stepped(plain, precision), stepped(thrifty, precision)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


def test_what_is_kept_for_the_way_back_falls():
    def kept(network):
        sizes, weights = [], {p.data_ptr() for p in network.parameters()}

        def note(t):
            sizes.append(0 if t.data_ptr() in weights else t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            network(torch.randn(2, 3, 16, 16))
        return sum(sizes)

    network = sw.create_model("resnet56")
    plain = kept(network)
    assert kept(sw.recompute(network, 2)) < plain / 8
    # The inputs of 3 + 3 + 1 groups, and all of the last 8 blocks of 9, which are a quarter as large as the first.
    assert plain / 8 < kept(sw.recompute(network)) < plain / 3.5
    assert kept(sw.recompute(network, "none")) == plain


def test_blocks_are_computed_once_without_gradients_and_twice_with_them():
    network, passes = make("resnet20"), []
    network.stage1[0].register_forward_pre_hook(lambda *_: passes.append(1))
    sw.recompute(network, 1)
    with torch.no_grad():
        network(torch.randn(2, 3, 16, 16))
    assert len(passes) == 1
    network(torch.randn(2, 3, 16, 16)).sum().backward()
    assert len(passes) == 3


def test_a_layer_used_twice_keeps_its_statistics():
    block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match="share parameters"):
        twice = sw.Chain(sw.Skip(block), sw.Skip(block))
    plain, x = copy.deepcopy(twice), torch.randn(5, 4)
    for network in (plain, sw.recompute(twice, "stages")):
        network(x).sum().backward()
    assert torch.equal(plain[0].body[1].running_mean, twice[0].body[1].running_mean)
    assert plain[0].body[1].num_batches_tracked == twice[0].body[1].num_batches_tracked == 2


def test_names_and_shapes_are_as_before():
    network = make("resnet20")
    before, shown = list(network.state_dict()), repr(network)
    sw.recompute(network, 2)
    assert list(network.state_dict()) == before and repr(network) == shown
    assert sw.output_shape(network, (2, 3, 16, 16)) == (2, 5)


def test_a_run_is_the_same_with_it_and_without_it(tmp_path):
    data = image_folder(tmp_path / "data")
    plain = quick(data, tmp_path, name="plain")
    assert same_runs(plain.path, quick(data, tmp_path, name="same", recompute=2).path)


@pytest.mark.parametrize("every", [0, -1, 1.5, True, "all", None])
def test_an_unknown_measure_is_refused(every):
    with pytest.raises(InputError, match="recompute: expected every to be a positive int"):
        sw.recompute(make("resnet20"), every)


def test_blocks_that_give_more_than_one_tensor_are_refused():
    blocks = sw.Chain(sw.Skip(nn.Linear(3, 3)), lambda x: (x, x))
    with pytest.raises(InputError, match="cannot recompute: expected blocks that return one tensor, got tuple"):
        sw.recompute(blocks, "stages")(torch.ones(1, 3, requires_grad=True))


def test_a_network_without_blocks_is_refused():
    with pytest.raises(InputError, match="cannot enable recompute: expected a Chain of blocks"):
        sw.recompute(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    sw.recompute(nn.Linear(3, 3), "none")


def test_the_end_is_not_computed_again_where_it_cannot_be_in_the_way():
    network, passes = make("resnet20"), []
    for name in ("stage1", "stage2", "stage3"):
        for block in network[name]:
            block.register_forward_pre_hook(lambda *_, name=name: passes.append(name))
    sw.recompute(network)(torch.randn(2, 3, 16, 16)).sum().backward()
    assert [passes.count(name) for name in ("stage1", "stage2", "stage3")] == [6, 4, 1]


def test_pages_are_taken_again_and_stay_whole_while_they_are_needed(monkeypatch):
    monkeypatch.setattr(activation_checkpointing, "_LARGE", 1)
    made = []
    plain = activation_checkpointing.mmap.mmap
    monkeypatch.setattr(
        activation_checkpointing.mmap, "mmap", lambda *given, **how: made.append(given[1]) or plain(*given, **how)
    )
    network, x = sw.recompute(make("resnet20"), 1), torch.randn(2, 3, 16, 16)
    network(x).sum().backward()
    first = len(made)
    assert first == 6
    network(x).sum().backward()
    network(x[:, :, :15, :15].contiguous()).sum().backward()  # a little smaller: the same pages do
    assert len(made) == first
    network.zero_grad()
    kept, other = network(x).sum(), network(2 * x).sum()
    assert len(made) == 2 * first
    kept.backward(retain_graph=True)
    expected = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    del other
    network(3 * x)  # must not be given the pages that `kept` still needs
    kept.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(network.parameters(), expected, strict=True))
    assert copy.deepcopy(network.stage1.forward_impl).keywords["pages"].free == []


def test_pages_are_never_more_than_are_needed_at_once(monkeypatch):
    monkeypatch.setattr(activation_checkpointing, "_LARGE", 1)
    pages = activation_checkpointing._Pages()
    for size in range(64, 1024, 8):
        copies = [pages.copy_of(torch.full((size,), float(i))) for i in range(3)]
        assert [c[0].item() for c in copies] == [0, 1, 2]
        del copies
    assert len(pages.free) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
@pytest.mark.filterwarnings(
    "ignore:This process"
)  # is multi-threaded, says a later Python; the child does nothing else
def test_a_forked_process_does_not_write_into_the_pages_of_its_parent(monkeypatch):
    monkeypatch.setattr(activation_checkpointing, "_LARGE", 1)
    pages = activation_checkpointing._Pages()
    pages.copy_of(torch.zeros(1000))
    assert len(pages.free) == 1
    child = os.fork()
    if not child:
        try:
            pages.copy_of(torch.full((1000,), 7.0))
        finally:
            os._exit(0)
    own = pages.copy_of(torch.ones(1000))
    os.waitpid(child, 0)
    assert own.eq(1).all()
