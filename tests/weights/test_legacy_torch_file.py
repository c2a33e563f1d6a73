"""torch's files from before version 1.6, read by their layout: torch.load is the oracle."""

import pickle
from pathlib import Path

import pytest
import torch

from skipway.weights.legacy_torch_file import read_legacy_file
from skipway.weights.weight_packages import find_weights


def save(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def read(path):
    with open(path, "rb") as file:
        return read_legacy_file(file)


def assert_as_torch_loads(path):
    expected = torch.load(path, weights_only=True)
    expected = {name: value for name, value in expected.items() if not name.endswith("num_batches_tracked")}
    found = read(path)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_tensor_is_as_torch_loads_it(tmp_path):
    conv, norm = torch.nn.Conv2d(3, 300, (2, 1)), torch.nn.BatchNorm2d(70_000)
    transposed = torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1)  # as weights of TensorFlow come
    state = {**conv.state_dict(), **norm.state_dict(prefix="norm."), "transposed": transposed, "scalar": torch.ones(())}
    assert_as_torch_loads(save(state, tmp_path / "a.pth"))


def test_the_weights_that_come_with_skipway():
    assert_as_torch_loads(find_weights("efficientnet_lite0"))


def test_no_pickle_is_run(tmp_path, monkeypatch):
    path = save({"w": torch.arange(3.0)}, tmp_path / "a.pth")
    monkeypatch.setattr(pickle, "_Unpickler", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    monkeypatch.setattr(torch, "load", None)
    assert read(path)["w"].tolist() == [0, 1, 2]


def test_another_layout_is_refused(tmp_path):
    shared = torch.arange(4.0)
    with pytest.raises(ValueError, match="expected one storage for each tensor"):
        read(save({"a": shared, "b": shared[:]}, tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="expected a separate storage for b"):
        read(save({"a": shared, "b": shared}, tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="expected a name and a storage for each tensor, got .'b', 'c', "):
        read(save({"a": shared, "b": shared, "c": torch.ones(1)}, tmp_path / "a.pth"))
    path = save({"a": shared}, tmp_path / "b.pth")
    Path(path).write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="expected the end of the file after its last storage"):
        read(path)
