"""One loop runs layers, with kernels, without them, or as another step has it."""

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.kernels import batchnorm, kernel_eligibility, layer_dispatch
from skipway.kernels.conv import CONV
from skipway.kernels.layer_dispatch import call_layer, run_layers


def layers():
    torch.manual_seed(0)
    return [nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(54, 2)]


def test_no_layers_pass_their_input_on():
    x = torch.ones(1)
    assert run_layers([], x) is x and run_layers([], None) is None


@pytest.mark.parametrize("step", [None, call_layer])
def test_layers_run_in_order(step):
    x, row = torch.randn(3, 4, 5, 5), layers()
    assert torch.equal(run_layers(row, x, step), nn.Sequential(*row)(x))


def test_a_norm_and_the_relu_after_it_are_one_kernel(monkeypatch):
    calls = []

    def recorded(norm, x, shortcut, after):
        calls.append(after)
        return x if after is None else after(x)

    monkeypatch.setattr(layer_dispatch, "BATCH_NORM", recorded)
    row = layers()
    run_layers(row, torch.randn(3, 4, 5, 5))
    assert calls == [row[2], None]
    row[2].register_forward_hook(lambda *_: None)
    run_layers(row, torch.randn(3, 4, 5, 5))
    assert calls[2:] == [None, None]
    row[1].eval()
    run_layers(row, torch.randn(3, 4, 5, 5))
    assert calls[4:] == [None]


def test_the_conditions_of_kernels_are_checked_once_per_call_of_a_network(monkeypatch):
    network, checks = sw.create_model("resnet20", 3), []
    check = kernel_eligibility.kernels_enabled
    monkeypatch.setattr(kernel_eligibility, "kernels_enabled", lambda: checks.append(1) or check())
    network(torch.randn(2, 3, 32, 32))
    assert checks == [1] and kernel_eligibility.CURRENT_CALL.kernels is None


def test_a_network_on_another_device_runs_no_check_of_a_layer(monkeypatch):
    network = sw.create_model("resnet20", 3).to("meta")

    def refuse(*_):
        raise AssertionError("a layer was checked")

    monkeypatch.setattr(layer_dispatch, "call_with_kernels", refuse)
    monkeypatch.setattr(batchnorm, "has_hooks", refuse)
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 3)


def test_an_error_ends_the_decision_for_a_network():
    class Fails(nn.Module):
        def forward(self, x):
            assert kernel_eligibility.CURRENT_CALL.kernels is True
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_layers([Fails()], torch.ones(1))
    assert kernel_eligibility.CURRENT_CALL.kernels is None


def test_a_transform_within_a_network_uses_no_kernel():
    class PerSample(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(64, 64, 1, bias=False).bfloat16().to(memory_format=torch.channels_last)

        def forward(self, x):
            return torch.func.vmap(lambda one: run_layers([self.conv], one))(x)

    x = torch.randn(3, 2, 64, 4, 4).bfloat16()
    layer = PerSample()
    expected = torch.stack([layer.conv(one) for one in x])
    torch.testing.assert_close(run_layers([layer], x), expected, rtol=2e-2, atol=2e-2)


def test_a_layer_whose_weight_is_no_parameter_uses_no_kernel():
    x = torch.randn(2, 64, 4, 4).bfloat16().contiguous(memory_format=torch.channels_last)
    conv, norm = nn.Conv2d(64, 64, 1, bias=False).bfloat16(), nn.BatchNorm2d(64)
    assert CONV.fits(conv, x)
    for layer in (conv, norm):
        weight = layer.weight.detach()
        del layer.weight
        layer.weight = weight
    assert not CONV.fits(conv, x) and not batchnorm.BATCH_NORM.fits(norm, x, None, None)


def test_a_step_may_run_several_layers_at_once():
    row = [nn.Identity() for _ in range(5)]
    indices = []

    def in_pairs(layers, index, x):
        indices.append(index)
        return x + 1, index + 2

    assert run_layers(row, 0, in_pairs) == 3 and indices == [0, 2, 4]


def test_traced_code_holds_no_kernel():
    x, row = torch.randn(3, 4, 5, 5), layers()
    compiled = torch.compile(lambda x: run_layers(row, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), run_layers(row, x))
