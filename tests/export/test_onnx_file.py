"""An ONNX file gives what the network gives, of every family, and tells a stranger what its outputs mean."""

import copy
import json
from collections import OrderedDict

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from export_networks import SPEC, network_of, random_images, table_network
from PIL import Image
from shrunken import SIZE
from torch import nn

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.errors import InputError, MissingExtra, SkipwayError
from skipway.export import onnx_file as home
from skipway.models.network import Network, build_network, read_spec
from skipway.models.network_outputs import as_table

pytestmark = pytest.mark.usefixtures("one_thread")


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def metadata(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


# One network for each kind of layer, of join and of stride: what ONNX has to translate. The contracts trace the others.
KINDS = [
    *("ecaresnext26t_32x4d", "tf_efficientnet_b0", "convnext_atto", "revnet38", "resnet9m", "resmlp", "resnet50_gn"),
    *("densenet40_12", "gates, same padding, dropout", "fixup"),
]


@pytest.mark.parametrize("name", KINDS)
def test_every_family_gives_what_torch_gives(name, tmp_path):
    done = sw.export.onnx(network_of(name), tmp_path / "network.onnx", raw=True)
    assert done.difference < 1e-5 and done.size == done.path.stat().st_size


def test_images_of_any_size_and_number_are_predicted_as_by_the_network(tmp_path):
    network = network_of("resnet18")
    done = sw.export.onnx(network, tmp_path / "network.onnx")
    assert done.difference < 1e-5 and 0 < done.levels < 1.6
    onnx.checker.check_model(str(done.path), full_check=True)
    there = session(done.path)
    for size in ((1, SIZE, SIZE), (5, 60, 33), (2, 7, 90)):
        given = random_images(*size)
        (found,) = there.run(["probabilities"], {"images": given})
        assert found.dtype == np.float32 and np.abs(found - network.predict_proba(list(given))).max() < 5e-3
    assert [d.dim_param or d.dim_value for d in onnx.load(done.path).graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        "H",
        "W",
        3,
    ]
    with pytest.raises(Exception, match="Unexpected input data type"):
        there.run(None, {"images": given.astype(np.float32)})


def test_classes_of_a_table_and_numbers_in_their_own_unit(tmp_path):
    table = pd.DataFrame({"age": [20, None, 61.5], "height": [150, 201, 180], "color": ["red", "blue", None]})
    for task, gives in (("classification", "probabilities"), ("regression", "numbers")):
        network = table_network(task)
        done = sw.export.onnx(network, tmp_path / "table.onnx", check=table)
        assert done.difference < 1e-5 and done.levels == 0
        rows = network.spec.encode_strict(as_table(table)).x
        (found,) = session(done.path).run([gives], {"rows": rows})
        expected = network.table_outputs(as_table(table))
        assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
    assert sw.export.onnx(network, tmp_path / "raw.onnx", raw=True, check=table[:0]).difference < 1e-5
    assert not np.allclose(found, session(tmp_path / "raw.onnx").run(["outputs"], {"inputs": rows})[0])


def test_the_metadata_give_back_what_the_network_is_and_nothing_that_a_terminal_would_obey(tmp_path):
    names = ("<script>alert(1)</script>", "a\x1b[2Jb\n", "../..\u202e/etc", "\ud800 & \x7f \U0001f41c", "e\u0301")
    network = sw.create_model("resmlp", in_features=12, layers=1, width=4, num_classes=5)
    network.spec = Spec(3, 2, 2, (0.5,) * 3, (0.25,) * 3, names)
    found = metadata(sw.export.onnx(network, tmp_path / "network.onnx").path)
    assert set(found) == {"skipway_version", "task", "class_names", "spec", "plan"}
    assert read_spec(json.loads(found["spec"])) == network.spec and tuple(json.loads(found["class_names"])) == names
    again = build_network(json.loads(found["plan"]))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}
    for text in found.values():
        assert text.isascii() and text.isprintable() and not set("<>&") & set(text)
    there = session(tmp_path / "network.onnx").get_modelmeta()
    assert there.custom_metadata_map == found and there.producer_name == "skipway"


def test_metadata_that_are_too_long_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "_MAX_METADATA", 200)
    with pytest.raises(InputError, match="expected at most .* MB, got .* MB. Shorten the class names"):
        sw.export.onnx(network_of("resnet18"), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("raw", [False, True])
def test_what_gives_something_else_is_gone_and_the_file_before_it_is_not(raw, tmp_path, monkeypatch):
    network, path = network_of("resnet9"), tmp_path / "network.onnx"
    path.write_bytes(b"of yesterday")
    as_it_is = home.trace_program

    def spoilt(module, *rest):
        next(module.parameters()).data[0] += 0.5
        return as_it_is(module, *rest)

    def trace_wrong(module, *rest):
        return spoilt(copy.deepcopy(module), *rest)

    monkeypatch.setattr(home, "trace_program", trace_wrong)
    with pytest.raises(SkipwayError, match=r"export verification failed: .* got a difference of 0\.\d+ ") as caught:
        sw.export.onnx(network, path, raw=raw)
    assert caught.value.exit_code == 70
    assert [p.name for p in tmp_path.iterdir()] == ["network.onnx"] and path.read_bytes() == b"of yesterday"


@pytest.fixture(scope="module")
def export_once():
    """torch.onnx.export for equal networks: the first export is given again."""
    programs = []

    def export(*arguments, **options):
        if not programs:
            programs.append(as_it_is(*arguments, **options))
        return programs[0]

    as_it_is = torch.onnx.export
    return export


@pytest.mark.parametrize("given", ["another class", "not a number", "another shape"])
def test_one_wrong_input_is_enough(given, tmp_path, monkeypatch, export_once):
    monkeypatch.setattr(torch.onnx, "export", export_once)
    network = network_of("resnet9")
    network.head.weight.data.zero_()  # all classes are as likely
    network.head.weight.data[1] += 1e-5
    change = {
        "another class": lambda y: y + np.float32([4e-5, 0, 0]),
        "not a number": lambda y: np.where(y == y.max(), np.nan, y),
        "another shape": lambda y: y[:1],
    }[given]
    as_it_is = home._onnxruntime_function
    monkeypatch.setattr(
        home, "_onnxruntime_function", lambda *a: lambda x: (change if len(x) > 1 else np.copy)(as_it_is(*a)(x))
    )
    differences = {"another class": r"of \de-05 .* another class for 7 of 11", "not a number": "difference of nan"}
    with pytest.raises(SkipwayError, match=differences.get(given, "difference of inf")):
        sw.export.onnx(network, tmp_path / "network.onnx", raw=True)
    assert not list(tmp_path.iterdir())


def test_it_is_checked_by_the_images_that_are_given(tmp_path, monkeypatch):
    Image.fromarray(random_images(1, 50, 70)[0]).save(tmp_path / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(random_images(1, 30, 90)[0]).save(tmp_path / "b.jpg", exif=turned)
    (tmp_path / "c.jpg").write_text("no image")
    seen, as_it_is = [], home._onnxruntime_function
    monkeypatch.setattr(home, "_onnxruntime_function", lambda *a: lambda x: (seen.append(x), as_it_is(*a)(x))[1])
    network, path = network_of("resnet9"), tmp_path / "network.onnx"
    grey = random_images(1, 9, 9)[0, :, :, 0]
    sw.export.onnx(network, path, check=[tmp_path / "a.png", tmp_path / "b.jpg", grey])
    assert [x.shape for x in seen] == [(1, 50, 70, 3), (1, 90, 30, 3), (1, 9, 9, 3), (7, 9, 9, 3)]
    assert np.array_equal(seen[0], random_images(1, 50, 70)) and np.array_equal(seen[2][0, :, :, 1], grey)
    with pytest.raises(InputError, match="cannot use .*c.jpg: unsupported format: expected the content"):
        sw.export.onnx(network, path, check=tmp_path / "c.jpg")


def test_the_network_is_as_it_was_and_nothing_is_said(tmp_path, capfd):
    network = network_of("resnet18").train()
    sw.recompute(network, 1)
    before = copy.deepcopy(network.state_dict())
    sw.export.onnx(network, tmp_path / "network.onnx")
    assert capfd.readouterr() == ("", "") and network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_networks_that_cannot_be_exported_say_why(tmp_path, monkeypatch):
    class Sly(nn.Module):
        def forward(self, x):
            return x.flatten(1) if x.sum() > 0 else x.flatten(1) * 2

    network, path = network_of("resnet18"), tmp_path / "network.onnx"
    with pytest.raises(InputError, match="export: expected a Network with a Spec"):
        sw.export.onnx(sw.Chain(nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match="expected the original network, got a fused one. Export the network"):
        sw.export.onnx(sw.export.fuse(network), path)
    sly = Network(OrderedDict(sly=Sly(), head=nn.Linear(3 * SIZE * SIZE, 3)), None, SPEC)
    with pytest.raises(InputError, match="torch.export cannot trace this network: "):
        sw.export.onnx(sly, path)
    monkeypatch.setattr(home, "_MAX_WEIGHTS", 1000)
    with pytest.raises(InputError, match="ONNX export: expected at most 2 GB of weights, got 0.0 GB"):
        sw.export.onnx(network, path)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(MissingExtra, match=r"writing an ONNX file needs the extra 'export', which is"):
        sw.export.onnx(network, path)
    assert not list(tmp_path.iterdir())
