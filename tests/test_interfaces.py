"""The table of interfaces in the documentation: every expression of it is true."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import skipway as sw

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "interfaces.md"
ROWS = re.findall(r"^\| (.*?) \| `(.*)` \| (?:no|yes|in part) \| yes \|$", PAGE.read_text(), re.MULTILINE)


class Masked(nn.Module):
    def forward(self, x, mask=None):
        return x if mask is None else x * mask


def error_of(function):
    with pytest.raises((ValueError, RuntimeError)) as error:
        function()
    return str(error.value)


def blocks(count):
    return sw.Chain(*(sw.Skip(nn.Linear(4, 4)) for _ in range(count)))


def count_hooks(network):
    counts = []
    next(network.parameters()).register_hook(lambda gradient: counts.append(1))
    network(torch.ones(2, 4)).sum().backward()
    return len(counts)


def reset(network, num_classes):
    network.reset_classifier(num_classes)
    return network


def test_the_table_has_all_rows():
    assert len(ROWS) > 30 and len(ROWS) == sum(line.endswith(" yes |") for line in PAGE.read_text().splitlines())


@pytest.mark.filterwarnings("ignore")  # of torch.jit, which is deprecated
@pytest.mark.parametrize("name, expression", ROWS, ids=[name.replace("`", "") for name, _ in ROWS])
def test_an_interface_of_the_table_is_there(name, expression):
    small = {"widths": [8], "layers": [1]}
    names = {
        "m": sw.create_model("resnet18", num_classes=5).eval(),
        "x": torch.randn(2, 3, 64, 64),
        "small": small,
        "plain": sw.create_model("resnet20", shortcut="auto", **small),
        "projected": sw.create_model("resnet20", shortcut="project", **small),
        "dropping": sw.Skip(nn.Linear(4, 4), drop_path=0.5).train(),
    }
    assert eval(expression, {**globals(), **names}), name  # noqa: S307
