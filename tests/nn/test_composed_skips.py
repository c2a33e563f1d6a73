"""The networks of a question that many have asked: how to put shortcut connections into a chain of layers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from skipway.errors import ShapeError
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.joins import concat
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip

PRECISIONS = [(torch.float32, 1e-5), (torch.float64, 1e-10)]


def identity_skip(*layers, activation=None):
    return Skip(list(layers), after=activation)


def cat_skip(*layers):
    return Skip(list(layers), join="concat")


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def dense(w, name, x):
    return x @ w[f"{name}.linear.weight"].T + w[f"{name}.linear.bias"]


def conv2x2(x, weight, bias):
    """x (B, C, H, W) -> (B, C', H-1, W-1)."""
    height, width = x.shape[2] - 1, x.shape[3] - 1
    out = np.zeros((x.shape[0], weight.shape[0], height, width), x.dtype) + bias[:, None, None]
    for i in range(2):
        for j in range(2):
            out += np.einsum("bchw,oc->bohw", x[:, :, i : i + height, j : j + width], weight[:, :, i, j])
    return out


def maxpool2x2(x):
    height, width = x.shape[2] // 2, x.shape[3] // 2
    return x[:, :, : 2 * height, : 2 * width].reshape(*x.shape[:2], height, 2, width, 2).max(axis=(3, 5))


def maxpool(x):
    return F.max_pool2d(x, 2)


def mnist_network():
    return Chain(
        nn.Conv2d(1, 32, 2),
        torch.relu,
        maxpool,
        nn.Conv2d(32, 32, 2),
        torch.relu,
        maxpool,
        nn.Conv2d(32, 32, 2),
        torch.relu,
        nn.Flatten(),
        Dense(800, 100, torch.relu),
        identity_skip(Dense(100, 100, torch.relu)),
        Dense(100, 10),
        nn.Softmax(1),
    )


def mnist_by_hand(w, x):
    h = maxpool2x2(relu(conv2x2(x, w["0.weight"], w["0.bias"])))
    h = maxpool2x2(relu(conv2x2(h, w["3.weight"], w["3.bias"])))
    h = relu(conv2x2(h, w["6.weight"], w["6.bias"]))
    h = relu(dense(w, "9", h.reshape(len(h), -1)))
    h = relu(dense(w, "10.body.0", h)) + h
    return softmax(dense(w, "11", h))


def policy_network():
    return Chain(
        Dense(16 * 14, 128, torch.relu),
        identity_skip(Dense(128, 128), activation=torch.relu),
        Dense(128, 32, torch.relu),
        identity_skip(Dense(32, 32)),
        Dense(32, 4),
        nn.Softmax(1),
    )


def policy_by_hand(w, x):
    h = relu(dense(w, "0", x))
    h = relu(dense(w, "1.body.0", h) + h)
    h = relu(dense(w, "2", h))
    h = dense(w, "3.body.0", h) + h
    return softmax(dense(w, "4", h))


def first_network():
    return Chain(Dense(2, 3), identity_skip(Dense(3, 3)), Dense(3, 4))


def first_by_hand(w, x):
    h = dense(w, "0", x)
    return dense(w, "2", dense(w, "1.body.0", h) + h)


def k_layers_network():
    return Chain(Dense(5, 3), identity_skip(Dense(3, 7, torch.relu), Dense(7, 3)))


def k_layers_by_hand(w, x):
    h = dense(w, "0", x)
    return dense(w, "1.body.1", relu(dense(w, "1.body.0", h))) + h


def vcat_network():
    return Chain(cat_skip(Dense(5, 2)), Dense(7, 2, torch.sigmoid))


def vcat_by_hand(w, x):
    h = np.concatenate([dense(w, "0.body.0", x), x], axis=1)
    return 1 / (1 + np.exp(-dense(w, "1", h)))


NETWORKS = {
    "first": (first_network, first_by_hand, (6, 2)),
    "k layers": (k_layers_network, k_layers_by_hand, (6, 5)),
    "vcat": (vcat_network, vcat_by_hand, (6, 5)),
    "policy": (policy_network, policy_by_hand, (6, 16 * 14)),
    "mnist": (mnist_network, mnist_by_hand, (2, 1, 28, 28)),
}


@pytest.mark.parametrize("dtype, tolerance", PRECISIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_thread_computes_its_formula(name, dtype, tolerance):
    make, by_hand, shape = NETWORKS[name]
    network = make().to(dtype)
    assert {p.dtype for p in network.parameters()} == {dtype}
    x = torch.randn(shape, dtype=dtype)
    found = network(x)
    assert np.abs(found.detach().numpy() - by_hand(arrays(network), x.numpy())).max() < tolerance
    assert output_shape(network, shape) == tuple(found.shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_thread_moves_as_a_whole(name):
    make, _, shape = NETWORKS[name]
    network = make().to("meta")
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert network(torch.empty(shape, device="meta")).device.type == "meta"


def test_the_wrapped_layer_is_registered_so_that_there_are_6_parameters_and_not_4():
    network = first_network()
    assert len(list(network.parameters())) == 6
    assert [n for n in network.state_dict() if n.startswith("1.")] == ["1.body.0.linear.weight", "1.body.0.linear.bias"]
    before = [p.clone() for p in network.parameters()]
    network(torch.randn(5, 2)).square().sum().backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    assert all(not torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True))


def test_the_sizes_of_the_mnist_network_go_from_28_to_800():
    network = mnist_network()
    shapes = [tuple(a.shape) for a in network.activations(torch.zeros(1, 1, 28, 28))]
    assert [s[2] for s in shapes if len(s) == 4] == [27, 27, 13, 12, 12, 6, 5, 5]
    assert shapes[8] == (1, 800)


def test_the_activation_comes_after_the_sum_and_is_left_out_unless_given():
    inner = Dense(3, 3)
    x = torch.randn(50, 3)
    assert torch.equal(Skip(inner)(x), inner(x) + x) and Skip(inner)(x).min() < 0
    assert torch.equal(Skip(inner, after=torch.relu)(x), torch.relu(inner(x) + x))


def test_the_branch_stands_before_what_was_kept_in_every_join():
    seen = []
    skip = Skip(Dense(3, 2), join=lambda branch, shortcut: seen.append((branch.shape[1], shortcut.shape[1])) or branch)
    skip(torch.ones(1, 3))
    assert seen == [(2, 3)]
    x = torch.randn(4, 3)
    assert torch.equal(cat_skip(skip.body)(x)[:, 2:], x) and concat(x, x).shape == (4, 6)


def test_sizes_that_differ_need_a_projection_and_the_error_says_so():
    network = Chain(Dense(2, 3), identity_skip(Dense(3, 5)), Dense(5, 4))
    with pytest.raises(
        ShapeError, match=r'Skip at 1: `add`: expected equal shapes, got \(6, 5\) and \(6, 3\).*"project"'
    ):
        network(torch.ones(6, 2))
    mended = Chain(Dense(2, 3), Skip(Dense(3, 5), "project"), Dense(5, 4))
    assert output_shape(mended, (6, 2)) == (6, 4)
