"""One loop runs layers, with kernels, without them, or as another step has it."""

import pytest
import torch
from torch import nn

from skipway.kernels import layer_dispatch
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
