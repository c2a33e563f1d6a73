"""Names of timm that name weights, and the lists of them."""

import json

import pytest
import safetensors.torch
import torch

import skipway as sw
from skipway.data.image_spec import Spec
from skipway.errors import InputError
from skipway.models import registry
from skipway.weights import weight_packages
from skipway.weights.convert import release
from skipway.weights.hub_download import cache_folder, download_to
from skipway.weights.key_maps import LIBRARIES
from skipway.weights.model_name import read_name
from skipway.weights.timm_tags import CLASSES, TAGS, TIMM_TAGS, weight_tags

TINY = {"layers": [1, 1], "widths": [4, 8]}
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1]},
}
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def save_repository(folder, config=CONFIG, file="model.safetensors", **options):
    network = sw.create_model("resnet18", 3, **TINY, **options).eval()
    state = {key: value.contiguous() for key, value in release(network, "timm").items()}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        safetensors.torch.save_file(state, folder / file)
    else:
        torch.save(state, folder / file)
    return network


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the downloads: a folder for each repository, and the list of what was asked for."""
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if not (tmp_path / repository / file).is_file():
            raise InputError(f"pretrained: expected a readable Hub repository, got {repository}.")
        return tmp_path / repository / file

    monkeypatch.setattr("skipway.weights.timm_repository.download", download)
    download.asked, download.folder = asked, tmp_path
    return download


# Names


@pytest.mark.parametrize(
    "name",
    [
        *("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "hf_hub:timm/resnet18.a1_in1k"),
        "hf-hub:timm/resnet18.a2_in1k@main",
    ],
)
def test_a_name_with_a_tag_is_its_architecture_or_its_weights(name, hub):
    repository = name.removeprefix("hf-hub:").removeprefix("hf_hub:")
    repository = repository if "/" in repository else f"timm/{repository}"
    network = save_repository(hub.folder / repository)
    again = sw.create_model(name, pretrained=True, **TINY)
    assert torch.equal(again(X), network(X)) and again.origin == repository and again.plan["name"] == "resnet18"
    assert set(hub.asked) == {(repository, "config.json"), (repository, "model.safetensors")}
    fresh = sw.create_model(name, **TINY)
    assert fresh.origin == "fresh weights" and fresh.plan["name"] == "resnet18"
    assert torch.equal(sw.create_model(name, 3, pretrained=True, **TINY)(X), network(X))


def test_a_known_name_needs_no_file_for_its_architecture(hub):
    for name in ("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k", "resnet18."):
        assert sw.create_model(name, **TINY).plan == sw.create_model("resnet18", **TINY).plan
    assert not hub.asked


@pytest.mark.parametrize("name, classes", [("convnext_tiny.fb_in22k", 21841), ("convnext_tiny.in12k", 11821)])
def test_a_tag_brings_the_number_of_its_classes(name, classes):
    with torch.device("meta"):
        assert sw.create_model(name).plan["num_classes"] == classes
        assert sw.create_model(name, 7).plan["num_classes"] == 7


def test_a_repository_of_others_is_read_for_its_architecture_and_arguments(hub):
    config = {**CONFIG, "model_args": {"drop_path": 0.2, "layers": [1, 1], "widths": [4, 8]}}
    network = save_repository(hub.folder / "someone" / "ants", config)
    again = sw.create_model("hf-hub:someone/ants", pretrained=True)
    assert torch.equal(again(X), network(X)) and again.spec.mean == (0.4, 0.5, 0.6)
    fresh = sw.create_model("hf-hub:someone/ants", drop_path=0.1)
    assert fresh.plan | {"name": "resnet18", "num_classes": 3, "widths": [4, 8], "drop_path": 0.1} == fresh.plan
    assert torch.equal(sw.create_model("resnet18", pretrained="hf-hub:someone/ants", **TINY)(X), network(X))


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_read_like_a_repository(file, tmp_path):
    network = save_repository(tmp_path / "ants", file=file)
    again = sw.create_model(f"local-dir:{tmp_path / 'ants'}", pretrained=True, **TINY)
    assert torch.equal(again(X), network(X)) and again.origin == str(tmp_path / "ants")
    assert isinstance(again.spec, Spec) and again.spec.size == 32
    assert sw.create_model(f"local-dir:{tmp_path / 'ants'}", **TINY).origin == "fresh weights"


def test_weights_without_a_head_have_none_unless_classes_are_requested(hub):
    network = save_repository(hub.folder / "timm" / "resnet18.ssl", {**CONFIG, "num_classes": 0})
    state = {k: v for k, v in release(network, "timm").items() if not k.startswith("fc.")}
    safetensors.torch.save_file(state, hub.folder / "timm" / "resnet18.ssl" / "model.safetensors")
    again = sw.create_model("resnet18.ssl", pretrained=True, **TINY)
    assert again.plan["num_classes"] == 0 and again(X).shape == (2, 8) and again.spec.mean == (0.4, 0.5, 0.6)
    again = sw.create_model("resnet18.ssl", 5, pretrained=True, **TINY)
    assert again(X).shape == (2, 5) and again.origin == "timm/resnet18.ssl, new head for 5 classes"
    assert again.spec.num_classes == 5


@pytest.mark.parametrize(
    "name, given, text",
    [
        (
            "resnet18.a9_in1k",
            {},
            r"resnet18 has no known weights with the tag 'a9_in1k' \(did you mean a\d_in1k.*expected one of a1_in1k, .*"
            "Drop the tag, or set pretrained=True",
        ),
        ("resnet19.a1_in1k", {}, "unknown architecture 'resnet19' .did you mean"),
        ("someone/ants", {}, "unknown architecture 'someone/ants': expected a name, got a path. Write hf-hub:someone/"),
        (None, {}, "unknown architecture None: expected a name, got NoneType. Set pretrained to the path of a file"),
        (b"resnet18", {}, "unknown architecture b'resnet18': expected a name, got bytes"),
        (
            "resnet18",
            {"pretrained": 1},
            "expected True, False, a tag, a repository or a path, got 1. Change",
        ),
        ("hf-hub:", {}, "cannot read the name 'hf-hub:': expected a repository or a folder after the colon, got none"),
        ("local-dir:", {}, "expected a repository or a folder after the colon, got none"),
        (
            "local-dir:nowhere",
            {},
            "expected a folder with config.json, got none. Pass a folder with a timm model",
        ),
        ("hf-hub:timm/none", {}, "expected a readable Hub repository, got timm/none"),
        (
            "resnet18.a1_in1k",
            {"pretrained": "a2_in1k"},
            "choose the weights of 'resnet18.a1_in1k': expected pretrained",
        ),
        (
            "resnet18.a1_in1k",
            {"pretrained": "w.pth"},
            "expected pretrained=True, got another source, 'w.pth'. Drop one",
        ),
        ("resnet18.a1_in1k", {"pretrained": True, "pretrained_cfg": "a2_in1k"}, "got another source, 'a2_in1k'"),
    ],
)
def test_names_without_weights_and_contradictions_are_one_line(name, given, text, hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=text) as refused:
        sw.create_model(name, **given)
    assert len(str(refused.value).splitlines()) == 1


def test_a_tag_given_twice_in_the_same_words_is_no_contradiction():
    assert read_name("resnet18.a1_in1k", "a1_in1k").pretrained == "a1_in1k"


@pytest.mark.parametrize(
    "config, text",
    [
        ({**CONFIG, "architecture": "vit_tiny"}, "expected an architecture of skipway, got vit_tiny. Choose one"),
        ({**CONFIG, "model_args": [1]}, r"got an invalid one \(its model_args are not a mapping\)"),
        ({**CONFIG, "model_args": {"glory": 1}}, "resnet18: unknown option 'glory'"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(config, text, tmp_path):
    save_repository(tmp_path / "ants", config)
    with pytest.raises(InputError, match=text):
        sw.create_model(f"local-dir:{tmp_path / 'ants'}")


def test_a_folder_without_weights_is_refused(tmp_path):
    save_repository(tmp_path / "ants", file="other.safetensors")
    with pytest.raises(InputError, match=r"a folder with model.safetensors or pytorch_model.bin or .*got none"):
        sw.create_model(f"local-dir:{tmp_path / 'ants'}", pretrained=True, **TINY)


def test_the_cache_of_the_hub_is_set_for_one_call(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a, **k: seen.append((a, k)) or tmp_path / "none")
    with pytest.raises(InputError, match=r"expected a config.json of timm, got an invalid one"):
        sw.create_model("hf-hub:someone/ants@v2", pretrained=True, cache_dir=tmp_path)
    expected = {"local_files_only": True, "revision": "v2", "cache_dir": str(tmp_path)}
    assert seen == [(("someone/ants", "config.json"), expected)]
    with download_to(tmp_path):
        assert cache_folder() == str(tmp_path)
    assert cache_folder() != str(tmp_path)


# Lists


def test_pretrained_weights_are_listed_with_their_tags(monkeypatch):
    monkeypatch.setattr("skipway.weights.timm_tags.find_weights", lambda name: None)
    names = sw.list_models("resnet18", pretrained=True)
    tags = "a1_in1k a2_in1k a3_in1k fb_ssl_yfcc100m_ft_in1k fb_swsl_ig1b_ft_in1k gluon_in1k tv_in1k"
    assert names == [f"resnet18.{tag}" for tag in tags.split()], "as in timm"
    assert sw.list_models("resnet18*", pretrained=True, exclude_filters=["*.a*", "*.fb_*", "resnet18d"]) == [
        "resnet18.gluon_in1k",
        "resnet18.tv_in1k",
    ]
    assert sw.list_models("resnet18.a1_in1k", pretrained=True) == ["resnet18.a1_in1k"]
    assert sw.list_models("resnet18.a1_in1k") == [] == sw.list_models("resnet20", pretrained=True)
    assert sw.list_models(["resnet18", "resnet20"], pretrained=True, include_tags=False) == ["resnet18"]
    assert sw.list_models("resnet20", include_tags=True) == ["resnet20"]
    assert len(sw.list_models(pretrained=True)) == sum(map(len, TIMM_TAGS.values()))


def test_a_package_is_listed_while_it_is_installed(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "skipway.weights.timm_tags.find_weights", lambda name: tmp_path if name == "efficientnet_lite1" else None
    )
    assert sw.list_models("efficientnet_lite1", pretrained=True) == ["efficientnet_lite1.package"]
    monkeypatch.setattr("skipway.weights.timm_tags.find_weights", lambda name: None)
    assert sw.list_models("efficientnet_lite1", pretrained=True) == []
    monkeypatch.undo()
    for name in weight_packages.PACKAGES:
        assert ("package" in weight_tags(name)) == (weight_packages.find_weights(name) is not None)


def test_every_listed_name_creates_its_architecture():
    for name in sw.list_models(pretrained=True):
        model = read_name(name, pretrained=True)
        assert name == f"{model.architecture}.{model.pretrained}" and model.architecture in registry.ROWS
        assert read_name(name, pretrained=False).architecture == model.architecture


def test_every_tag_is_for_a_network_that_can_hold_it():
    assert len(TIMM_TAGS) >= 97 and {tag for tags in TIMM_TAGS.values() for tag in tags} & set(CLASSES)
    for name, tags in TIMM_TAGS.items():
        assert TAGS[name] == tags[0] and len(set(tags)) == len(tags)
        assert not LIBRARIES["timm"].refusal(registry.plan_of(name))


@pytest.mark.parametrize(
    "given, names",
    [
        ({"filter": ["resnet18*", "resnet34"]}, ["resnet18", "resnet18d", "resnet34"]),
        ({"filter": ("resnet34", "resnet18", "resnet34")}, ["resnet18", "resnet34"]),
        ({"filter": "resnet[13][48]*", "exclude_filters": "*[dt]"}, ["resnet18", "resnet34"]),
        ({"filter": "resnet18*", "exclude_filters": ["resnet18", "nothing"]}, ["resnet18d"]),
        ({"filter": "nothing"}, []),
        ({"filter": ["nothing", "resnet18"]}, ["resnet18"]),
        ({"filter": "ResNet18"}, []),
        ({"filter": "resnet18", "module": "densenet"}, []),
        ({"filter": "resnet18*", "module": ["densenet", "resnet"]}, ["resnet18", "resnet18d"]),
        ({"filter": "*18", "module": "resnetv2"}, ["resnetv2_18"]),
        ({"filter": "*b0", "module": "efficientnet"}, ["efficientnet_b0", "tf_efficientnet_b0"]),
        ({"filter": "*", "module": "resnet9"}, ["resnet9", "resnet9m", "resnet9m_gelu"]),
        ({"filter": "*", "module": "nothing"}, []),
    ],
)
def test_patterns_select_names_as_in_timm(given, names):
    assert sw.list_models(**given) == names


def test_no_pattern_is_every_name():
    for empty in ("", "*", [], (), None):
        assert sw.list_models(empty) == sw.list_models() == registry.names()
    assert sw.list_models("resnet18*", "resnet", False, "*d") == ["resnet18"], "in the order of timm's arguments"
