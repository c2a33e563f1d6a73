"""What the probes share: which blocks a network has, and that nothing of it is left changed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import skipway as sw
from skipway.errors import InputError, ShapeError
from skipway.probe.block_stats import (
    batches_accuracy,
    batches_loss,
    blocks_of,
    in_mode,
    natural_loss,
    unrolled,
    untouched,
)


def small(**options):
    return sw.create_model("resnet20", widths=[4, 8, 16], **options)


def row(features=3):
    return nn.Sequential(nn.Linear(features, features), nn.ReLU())


@pytest.mark.parametrize(
    "network, paths, kinds",
    [
        (small(layers=[2, 1, 1]), ["stage1.0", "stage1.1", "stage2.0", "stage3.0"], {"skip"}),
        (small(layers=[2, 1, 1], shortcut="none"), ["stage1.0", "stage1.1", "stage2.0", "stage3.0"], {"plain"}),
        (
            small(layers=[1, 2, 1], block="preact_basic", shortcut="project"),
            ["stage1.0.skip", "stage2.0.skip", "stage2.1.skip", "stage3.0.skip"],
            {"skip"},
        ),
        (
            sw.create_model("revnet38", layers=[2, 2], widths=[4, 8]),
            ["stage1.rest.0", "stage1.rest.1", "stage2.change", "stage2.rest.0"],
            {"coupling"},
        ),
        (sw.create_model("resmlp", layers=2, join="none", width=8), ["stage1.0", "stage1.1"], {"plain"}),
        (sw.create_model("resnet9", widths=[4, 4, 8, 8]), ["stage1.skip", "stage3.skip"], {"skip"}),
        (sw.create_model("densenetbc100_12", layers=[1, 2]), ["stage1.0", "stage2.0", "stage2.1"], {"skip"}),
        (nn.Sequential(nn.Linear(3, 3), row(), row()), ["1", "2"], {"plain"}),
        (nn.Sequential(nn.Sequential(row(), row()), nn.Sequential(row())), ["0.0", "0.1", "1"], {"plain"}),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)), [], set()),
        (sw.Skip(sw.Skip([row(), row()])), ["", "body"], {"skip"}),
    ],
)
def test_blocks_are_found_by_what_they_are_and_where_they_stand(network, paths, kinds):
    found = blocks_of(network)
    assert [block.path for block in found] == paths
    assert {block.kind for block in found} == kinds
    assert all(network.get_submodule(block.path) is block.module for block in found)


def test_untouched_brings_back_modes_buffers_and_the_random_state_whatever_happens():
    network = small()
    network.stage2.eval()
    modes = [m.training for m in network.modules()]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in network.named_buffers()}
    state = torch.get_rng_state()
    with pytest.raises(KeyError), untouched(network):
        network.train()
        network(torch.randn(4, 3, 8, 8))
        assert not torch.equal(network.stem.norm.running_mean, buffers["stem.norm.running_mean"][1])
        raise KeyError
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for name, buffer in network.named_buffers():
        assert buffer is buffers[name][0] and torch.equal(buffer, buffers[name][1])


def test_a_buffer_of_two_modules_stays_one():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    network[1].running_mean = network[0].running_mean
    with untouched(network):
        network(torch.randn(8, 3) + 5)
        assert network[0].running_mean is network[1].running_mean
        assert (network[0].running_mean > 0.1).all()
    assert (network[0].running_mean == 0).all() and network[0].running_mean is network[1].running_mean


def test_open_sizes_are_refused():
    with pytest.raises(ShapeError, match=r"expected inferred sizes, got lazy .*Call skipway.output_shape\("):
        with untouched(sw.Chain(sw.Dense(None, 3))):
            raise AssertionError


def test_a_mode_is_one_of_two_words():
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9))
    in_mode(network, "training")
    assert [m.training for m in network.modules()] == [False, True, False]
    in_mode(network, "evaluation")
    assert not any(m.training for m in network.modules())
    with pytest.raises(InputError, match=r"expected training or evaluation, got 'train' \(did you mean training\?\)"):
        in_mode(network, "train")


@pytest.mark.parametrize("kind", ["reversible", "recomputed"])
def test_what_is_reversible_or_recomputed_runs_in_full_view_and_does_not_stay_so(kind):
    reversible = kind == "reversible"
    network = sw.create_model("revnet38", layers=[2, 2], widths=[4, 8]) if reversible else sw.recompute(small(), 2)
    x, calls = torch.randn(2, 3, 8, 8), []
    expected = network.eval()(x)
    blocks_of(network)[1].module.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    before = {path: dict(vars(m)) for path, m in network.named_modules()}
    with unrolled(network):
        network(x).sum().backward()
    assert calls == [True]  # once, and where autograd sees it
    assert {path: vars(m).keys() for path, m in network.named_modules()} == {p: v.keys() for p, v in before.items()}
    assert all(vars(m).get("forward_impl") is before[path].get("forward_impl") for path, m in network.named_modules())
    assert torch.allclose(network(x), expected, atol=1e-6)


def test_the_natural_loss_is_cross_entropy_of_classes_and_squares_of_numbers():
    logits, maps, y = torch.randn(5, 3), torch.randn(5, 3, 2, 2), torch.tensor([0, 2, 1, 1, 0])
    assert natural_loss(logits, y) == F.cross_entropy(logits, y)
    assert natural_loss(maps, torch.ones(5, 2, 2, dtype=torch.int32)) == F.cross_entropy(
        maps, torch.ones(5, 2, 2, dtype=torch.long)
    )
    numbers = torch.randn(5)
    assert natural_loss(logits[:, :1], numbers) == (logits[:, 0] - numbers).square().mean()


@pytest.mark.parametrize(
    "outputs, y, said",
    [
        (torch.zeros(4, 3), torch.tensor([0, 1, 2, 3]), r"got y \(4,\) of int64 from 0 to 3 and outputs \(4, 3\)\."),
        (torch.zeros(4, 3), torch.tensor([0, 1]), r"got y \(2,\) of int64 from 0 to 1 and outputs \(4, 3\)\."),
        (torch.zeros(4, 3), torch.zeros(4), r"got y \(4,\) of float32 from 0 to 0 and outputs \(4, 3\)\."),
        (
            [torch.zeros(4, 3)],
            torch.tensor([0]),
            r"expected class indices \(B, \*\) from 0 to K - 1 .* and outputs list\. Correct y",
        ),
    ],
)
def test_targets_that_do_not_fit_are_refused_in_one_line(outputs, y, said):
    with pytest.raises(InputError, match=said) as caught:
        natural_loss(outputs, y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [3, 10, 100])
def test_batches_give_the_mean_loss_and_accuracy_of_all_samples(batch_size):
    network, x, y = small(num_classes=3), torch.randn(10, 3, 8, 8), torch.randint(3, (10,))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    loss, accuracy = batches_loss(x, y, batch_size)(network)
    assert network.training and all(v.equal(before[k]) for k, v in network.state_dict().items())
    network.eval()
    outputs = network(x)
    assert math.isclose(loss, F.cross_entropy(outputs, y).item(), rel_tol=1e-5)
    assert math.isclose(accuracy, (outputs.argmax(1) == y).float().mean().item(), rel_tol=1e-6)
    assert batches_accuracy(x, y, batch_size)(network) == accuracy


def test_batches_take_the_norms_statistics_of_the_mode():
    network, x, y = small(num_classes=3), 3 * torch.randn(10, 3, 8, 8) + 5, torch.randint(3, (10,))
    expected = F.cross_entropy(network(x), y).item()  # in training mode
    assert math.isclose(batches_loss(x, y, mode="training")(network)[0], expected, rel_tol=1e-5)
    assert not math.isclose(batches_loss(x, y)(network)[0], expected, rel_tol=1e-3)


def test_numbers_have_a_loss_and_no_accuracy():
    network, x, y = nn.Linear(4, 1), torch.randn(6, 4), torch.randn(6)
    assert math.isclose(batches_loss(x, y)(network), (network(x)[:, 0] - y).square().mean().item(), rel_tol=1e-6)
    with pytest.raises(InputError, match="cannot compute the accuracy: expected integer class indices .N,., got"):
        batches_accuracy(x, y)


@pytest.mark.parametrize("x, y", [(torch.zeros(2, 3), torch.zeros(3)), (torch.zeros(0, 3), torch.zeros(0)), ([1], [2])])
def test_samples_and_targets_are_as_many(x, y):
    with pytest.raises(InputError, match="expected tensors of the same number of samples, at least 1, got"):
        batches_loss(x, y)
