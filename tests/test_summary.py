import pytest
import torch
from torch import nn

from skipway.errors import ShapeError
from skipway.models import registry
from skipway.probe.summary import summary
from skipway.skip import Chain, Dense, Parallel, Skip

# GMACs of convolutions and linear layers at 224 pixels.
GMACS = {"resnet18": 1.814, "resnet34": 3.664, "resnet50": 4.089, "resnet101": 7.801, "resnet152": 11.514,
         "resnet200": 15.007}  # fmt: skip
MMACS = {"resnet20": 40.55, "resnet32": 68.86, "resnet44": 97.17, "resnet56": 125.49, "resnet110": 252.89}


def on_meta(name, **options):
    with torch.device("meta"):
        return registry.build(name, **options)[0]


@pytest.mark.parametrize("name", GMACS)
def test_multiply_adds_of_the_large_networks_are_the_known_ones(name):
    found = summary(on_meta(name), (1, 3, 224, 224))
    assert round(found.macs / 1e9, 3) == GMACS[name]


@pytest.mark.parametrize("name", MMACS)
def test_multiply_adds_of_the_small_networks_are_the_known_ones(name):
    found = summary(on_meta(name), (1, 3, 32, 32))
    assert round(found.macs / 1e6, 2) == MMACS[name]
    assert found.skips == 3 * (int(name.removeprefix("resnet")) - 2) // 6


def small():
    return Chain(Dense(None, 4, torch.relu), Skip(Dense(None, 5), "auto", join="gate"), head=nn.Linear(5, 2))


def test_a_network_with_open_sizes_has_the_same_summary_at_first_and_later():
    network = small()
    first = summary(network, (2, 3))
    assert first == summary(network, (2, 3))
    assert [r.path for r in first.rows] == ["0.linear", "0.activation", "1.body.linear", "1.shortcut.linear",
                                            "1.shortcut.norm", "1.join.transform", "head"]  # fmt: skip
    assert first.macs == 2 * (3 * 4 + 4 * 5 + 4 * 5 + 5 * 5 + 5 * 2)
    assert sum(r.parameters for r in first.rows) == first.parameters == sum(p.numel() for p in network.parameters())


def test_a_summary_prints_a_row_a_layer_and_a_line_of_totals():
    text = str(summary(small(), (2, 3)))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "multiply-adds"]
    assert lines[1].split() == ["0.linear", "Linear", "2x4", "16", "24"]
    assert lines[-1] == "113 parameters, 174 multiply-adds for an input of 2x3, 1 shortcut"
    assert len({len(line) for line in lines[:-1]}) == 1


def test_a_layer_used_twice_is_called_shared_and_counted_once():
    layer = nn.Linear(3, 3)
    found = summary(nn.Sequential(layer, nn.ReLU(), layer), (2, 3))
    assert [(r.path, r.shared) for r in found.rows] == [("0", False), ("1", False), ("2", True)]
    assert found.parameters == 12 and found.macs == 2 * 2 * 9 and "shared" in str(found)


def test_fixed_parameters_are_said():
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    network[0].requires_grad_(False)
    found = summary(network, (2, 3))
    assert (found.parameters, found.trainable) == (16, 4) and "16 parameters (12 fixed)" in str(found)


def test_groups_and_other_numbers_of_axes_count_what_they_cost():
    assert summary(nn.Conv2d(8, 16, 3, groups=4, padding=1), (1, 8, 5, 5)).macs == 16 * 25 * 2 * 9
    assert summary(nn.Conv1d(2, 3, 3), (1, 2, 5)).macs == 3 * 3 * 2 * 3
    assert summary(Parallel("add", nn.Linear(3, 3), nn.Identity()), (2, 3)).macs == 18


def test_a_misfit_is_named_by_its_path():
    with pytest.raises(ShapeError, match=r"Linear at 1 got \(2, 4\), but expects \(\*, 5\)"):
        summary(nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 1)), (2, 3))
