"""A program of torch gives what the network gives, whatever the size of the batch."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from export_networks import NAMES, SPEC, network_of, random_images, table_network
from shrunken import SIZE

import skipway as sw
from skipway.errors import InputError, SkipwayError
from skipway.export import export_model as home
from skipway.export.export_description import _Images
from skipway.models.network import build_network, read_spec
from skipway.models.network_outputs import as_table

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", ["resnet9m", "revnet38", "densenet121"])
def test_a_program_predicts_images_of_any_size_as_the_network_does(name, tmp_path):
    network = network_of(name)
    done = sw.export.program(network, tmp_path / "network.pt2")
    assert done.difference < 1e-5 and 0 < done.levels < 1.6 and done.size == done.path.stat().st_size
    loaded = torch.export.load(done.path).module()
    for size in ((1, SIZE, SIZE), (5, 60, 33)):
        given = random_images(*size)
        found = loaded(torch.from_numpy(given)).detach().numpy()
        assert np.abs(found - network.predict_proba(list(given))).max() < 5e-3


def test_a_program_of_the_network_alone(tmp_path):
    network = network_of("resnet18")
    done = sw.export.program(network, tmp_path / "network.pt2", raw=True)
    x = torch.randn(2, 3, SIZE, SIZE)
    assert (torch.export.load(done.path).module()(x) - network(x)).abs().max() < 1e-5


def test_a_program_of_a_table(tmp_path):
    network = table_network("regression")
    path = sw.export.program(network, tmp_path / "table.pt2").path
    table = as_table(pd.DataFrame({"age": [20, None], "height": [150, 201], "color": ["red", None]}))
    found = torch.export.load(path).module()(torch.from_numpy(network.spec.encode_strict(table).x))
    assert np.allclose(found.detach().numpy(), network.table_outputs(table), atol=1e-5)


def test_a_program_tells_what_it_is(tmp_path):
    network, found = network_of("resnet18"), dict.fromkeys(("class_names", "spec", "plan"), "")
    torch.export.load(sw.export.program(network, tmp_path / "network.pt2").path, extra_files=found)
    assert tuple(json.loads(found["class_names"])) == NAMES and read_spec(json.loads(found["spec"])) == SPEC
    assert list(build_network(json.loads(found["plan"])).state_dict()) == list(network.state_dict())


def test_a_program_that_gives_something_else_is_no_file(tmp_path, monkeypatch):
    network, other = network_of("resnet18"), network_of("resnet18")
    other.head.weight.data.neg_()
    right = home.trace_program
    wrong = _Images(other.eval(), SPEC)
    monkeypatch.setattr(home, "trace_program", lambda module, *rest: right(wrong, *rest))
    with pytest.raises(SkipwayError, match="export verification failed: expected the outputs of torch within"):
        sw.export.program(network, tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_a_program_is_of_a_network_with_a_spec(tmp_path):
    network = network_of("resnet18")
    network.spec = None
    with pytest.raises(InputError, match="Load it from a run or a skipway file, or set its .spec"):
        sw.export.program(network, tmp_path / "network.pt2")
