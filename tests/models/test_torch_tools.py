"""Every registered network in the transforms, dtypes and memory formats of torch; the oracle is the network itself.

Tracers are in tests/nn/test_tracing.py, torch.export, torch.compile and the meta device in tests/test_contracts.py.
"""

import copy

import pytest
import torch
from shrunken import kinds, random_images, settled
from torch import func


def check_functional_call(network, x):
    state = {name: 1.1 * value if value.is_floating_point() else value for name, value in network.state_dict().items()}
    other = copy.deepcopy(network)
    other.load_state_dict(state)
    assert torch.equal(func.functional_call(network, state, (x,)), other(x))
    assert not torch.equal(other(x), network(x))


def check_channels_last(network, x):
    layout = torch.channels_last
    found = copy.deepcopy(network).to(memory_format=layout)(x.to(memory_format=layout))
    assert torch.allclose(found, network(x), rtol=1e-4, atol=1e-5)


def check_float64(network, x):
    found = copy.deepcopy(network).double()(x.double())
    assert found.dtype == torch.float64 and torch.allclose(found.float(), network(x), rtol=1e-4, atol=1e-5)


def check_bfloat16(network, x):
    found, wanted = copy.deepcopy(network).bfloat16()(x.bfloat16()), network(x)
    assert found.dtype == torch.bfloat16 and (found - wanted).abs().max() < 0.2 * wanted.abs().max()


def check_gradients_of_each_image(network, x):
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def loss(parameters, image):
        return func.functional_call(network, parameters, (image[None],)).square().sum()

    gradients = func.vmap(func.grad(loss), in_dims=(None, 0))(parameters, x)
    wanted = torch.autograd.grad(network(x).square().sum(), list(parameters.values()), allow_unused=True)
    for found, total in zip(gradients.values(), wanted, strict=True):
        assert len(found) == len(x)
        assert torch.allclose(found.sum(0), torch.zeros(()) if total is None else total, rtol=1e-3, atol=1e-4)


CHECKS = {name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", kinds())
def test_every_network_works_in(name, check):
    CHECKS[check](settled(name), random_images(3))
