import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import skipway as sw
from skipway.errors import InputError
from skipway.models import registry
from skipway.network import prepare
from skipway.pretrained import TAGS
from skipway.spec import Spec
from skipway.training.checkpoint import save_weights
from skipway.weights import release

TINY = {"layers": [1, 1], "widths": [4, 8]}
SPEC = Spec(3, 8, 8, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), ("ant", "bee", "cow"))
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {
        "input_size": [3, 32, 32], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.2, 0.1], "num_classes": 3,
    },
}  # fmt: skip


def scrambled(name="resnet18", **options):
    network = sw.create_model(name, 3, **{**TINY, **options}).eval()
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.2)
    return network


def ours(path, network, spec=SPEC):
    save_weights(path, network.state_dict(), {"plan": network.plan, "spec": spec.as_dict()})
    return path


def same(left, right, x=None):
    x = torch.randn(2, 3, 16, 16) if x is None else x
    return torch.equal(left.eval()(x), right.eval()(x))


# The Hub, by a stand-in on this machine


class Hub(ThreadingHTTPServer):
    def __init__(self, files):
        self.files, self.cut = files, False
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *said):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        repository, _, file = self.path.removeprefix("/").partition("/resolve/main/")
        data = self.server.files.get((repository, file))
        known = any(repository == name for name, _ in self.server.files)
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("ETag", f'"{hash(data) % 2**64:040x}"')
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()
        if body and data is not None:
            self.wfile.write(data[: len(data) // 2] if self.server.cut else data)
        self.close_connection = self.server.cut


@pytest.fixture
def hub(tmp_path, monkeypatch):
    network = scrambled()
    weights = {k: v.contiguous() for k, v in release(network, "timm").items()}
    server = Hub({
        ("timm/resnet18.tiny_test", "config.json"): json.dumps(CONFIG).encode(),
        ("timm/resnet18.tiny_test", "model.safetensors"): safetensors.torch.save(weights),
        ("timm/resnet18.a1_in1k", "config.json"): json.dumps({**CONFIG, "label_names": ["x", "y", "z"]}).encode(),
        ("timm/resnet18.a1_in1k", "model.safetensors"): safetensors.torch.save(weights),
        ("timm/resnet18.odd", "config.json"): b"{}",
        ("timm/resnet18.odd", "model.safetensors"): b"",
        ("some/thing", "README.md"): b"#",
    })  # fmt: skip
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        f"http://127.0.0.1:{server.server_port}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    server.network = network
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("tag", ["tiny_test", "timm/resnet18.tiny_test", "hf:timm/resnet18.tiny_test"])
def test_a_tag_of_the_hub_brings_weights_and_what_its_network_is_given(hub, tag):
    network = sw.create_model("resnet18", pretrained=tag, **TINY)
    assert same(network, hub.network) and network.origin == "timm/resnet18.tiny_test"
    assert network.spec == Spec(
        3, 32, 35, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), ("0", "1", "2"), fit="crop", interpolation="bicubic"
    )


def test_true_takes_timm_s_own_choice_with_its_class_names(hub):
    network = sw.create_model("resnet18", pretrained=True, **TINY)
    assert same(network, hub.network) and network.spec.class_names == ("x", "y", "z")


@pytest.mark.parametrize(
    "tag, text",
    [
        ("none_such", "the Hub has no repository timm/resnet18.none_such that you may read; check the tag, or log in"),
        ("some/thing", "some/thing has no config.json; give a repository of timm's networks"),
        ("odd", r"timm/resnet18.odd has no config.json as timm writes it \(.*\); give a repository"),
        (
            "a//b",
            "pretrained='a//b' is neither a file or run that is here nor a repository of the Hub; wr",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tag, text):
    with pytest.raises(InputError, match=text) as refused:
        sw.create_model("resnet18", pretrained=tag, **TINY)
    assert len(str(refused.value).splitlines()) == 1


def test_other_weights_than_the_name_s_are_refused_with_the_differences(hub):
    with pytest.raises(
        InputError, match=r"timm/resnet18.tiny_test, which says it is resnet18: the state is not that of"
    ):
        sw.create_model("resnet34", pretrained="timm/resnet18.tiny_test", widths=[4, 8], layers=[2, 1])


def test_a_hub_that_does_not_answer_is_one_line(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: (_ for _ in ()).throw(ConnectionError("gone")))
    with pytest.raises(InputError, match=r"timm/resnet18.tiny_test could not be downloaded \(ConnectionError: is this"):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: (_ for _ in ()).throw(full))
    with pytest.raises(sw.errors.StorageError, match="timm/resnet18.tiny_test could not be stored: No space left on"):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)


def test_every_tag_is_for_a_network_of_timm_s_that_can_hold_its_weights():
    from skipway.keymaps import LIBRARIES

    assert len(TAGS) == 63 and all(not LIBRARIES["timm"].refusal(registry.plan_of(name)) for name in TAGS)


# Files and runs


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("said", [False, True])
def test_a_foreign_file_is_recognised_or_told(library, said, tmp_path):
    network = scrambled(stem="deep", shortcut="pool") if library == "timm" else scrambled()
    options = {"stem": "deep", "shortcut": "pool"} if library == "timm" else {}
    safetensors.torch.save_file({k: v.contiguous() for k, v in release(network, library).items()}, tmp_path / "w.bin")
    source = f"{library}:{tmp_path / 'w.bin'}" if said else tmp_path / "w.bin"
    again = sw.create_model("resnet18", pretrained=source, **TINY, **options)
    assert same(again, network) and again.origin == f"{tmp_path / 'w.bin'} ({library})"
    assert again.spec.fit == "crop" and again.spec.size == 224 and again.spec.class_names == ("0", "1", "2")


def test_the_cifar_networks_know_their_classes(tmp_path):
    network = sw.create_model("resnet20", layers=[1, 1, 1]).eval()
    state = {f"module.{k}": v.contiguous() for k, v in release(network, "akamaster").items()}
    torch.save({"state_dict": state, "best_prec1": 91.0}, tmp_path / "r.th", _use_new_zipfile_serialization=False)
    again = sw.create_model("resnet20", pretrained=tmp_path / "r.th", layers=[1, 1, 1])
    assert same(again, network) and again.spec.class_names[2] == "bird" and again.spec.size == 32


def test_a_file_of_ours_brings_its_spec(tmp_path):
    network = scrambled()
    again = sw.create_model("resnet18", pretrained=ours(tmp_path / "a.safetensors", network), drop_path=0.3, **TINY)
    assert same(again, network) and again.spec == SPEC and again.plan["drop_path"] == 0.3


def test_a_file_of_another_network_is_refused_with_the_values_that_differ(tmp_path):
    path = ours(tmp_path / "a.safetensors", scrambled())
    with pytest.raises(InputError, match=r"holds a network other than resnet18: layers: \(2,1\) here, \(1,1\) in"):
        sw.create_model("resnet18", pretrained=path, layers=[2, 1], widths=[4, 8])


def test_a_file_with_other_names_is_refused(tmp_path):
    safetensors.torch.save_file({"encoder.w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="has no names that torchvision, timm, .* give a resnet18, such as encoder.w"):
        sw.create_model("resnet18", pretrained=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="there is no such file; give one, a run, or a tag of the Hub"):
        sw.create_model("resnet18", pretrained=tmp_path / "none.pth")
    with pytest.raises(InputError, match="w.safetensors: the state is not that of timm's resnet18: conv1.weight is"):
        sw.create_model("resnet18", pretrained=f"timm:{tmp_path / 'w.safetensors'}")


def test_a_name_without_known_weights_is_said():
    with pytest.raises(InputError, match="no weights are known for resnet20; give pretrained= a repository of the Hub"):
        sw.create_model("resnet20", pretrained=True)
    with pytest.raises(InputError, match="no network is called 'resnet51'"):
        sw.create_model("resnet51", pretrained=True)


# Other classes, other channels


def test_classes_of_the_same_name_keep_their_rows(tmp_path):
    network = scrambled()
    path = ours(tmp_path / "a.safetensors", network)
    again = sw.create_model("resnet18", pretrained=path, class_names=["dog", "cow", "ant", "elk"], **TINY)
    assert torch.equal(again.head.weight[[1, 2]], network.head.weight[[2, 0]])
    assert torch.equal(again.head.bias[[1, 2]], network.head.bias[[2, 0]])
    assert not torch.equal(again.head.weight[0], again.head.weight[3])
    assert again.spec == replace(SPEC, class_names=("dog", "cow", "ant", "elk")) and again.plan["num_classes"] == 4
    assert again.origin.endswith("2 of 4 classes kept by their names, 2 new")
    with pytest.raises(InputError, match="num_classes is 3, but there are 4 class names; give one"):
        sw.create_model("resnet18", 3, pretrained=path, class_names=["dog", "cow", "ant", "elk"], **TINY)


def test_another_number_of_classes_has_a_new_head(tmp_path):
    path = ours(tmp_path / "a.safetensors", scrambled())
    again = sw.create_model("resnet18", 5, pretrained=path, **TINY)
    assert again(torch.ones(1, 3, 8, 8)).shape == (1, 5) and again.spec.class_names == ("0", "1", "2", "3", "4")
    assert sw.create_model("resnet18", class_names=["a", "b"], **TINY).plan["num_classes"] == 2


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("stem", ["large", "small", "deep"])
def test_a_stem_answers_equal_channels_as_before(in_chans, stem, tmp_path):
    network = scrambled(stem=stem)
    path = ours(tmp_path / "a.safetensors", network)
    again = sw.create_model("resnet18", in_chans=in_chans, pretrained=path, stem=stem, **TINY).eval()
    grey = torch.randn(2, 1, 16, 16)
    assert torch.allclose(again(grey.expand(-1, in_chans, -1, -1)), network(grey.expand(-1, 3, -1, -1)), rtol=1e-3)
    assert again.plan["in_chans"] == in_chans
    assert (again.spec is None) == (in_chans not in (1, 3))
    if in_chans == 1:
        assert again.spec.mean == pytest.approx((0.5,)) and again.origin.endswith("stem fitted from 3 to 1 channels")


def test_a_grey_network_can_be_given_colour(tmp_path):
    network = scrambled(in_chans=1)
    spec = Spec(1, 8, 8, (0.4,), (0.3,), ("ant", "bee", "cow"))
    again = sw.create_model("resnet18", in_chans=3, pretrained=ours(tmp_path / "a.safetensors", network, spec), **TINY)
    grey = torch.randn(2, 1, 16, 16)
    assert torch.allclose(again.eval()(grey.expand(-1, 3, -1, -1)), network(grey), rtol=1e-3)
    assert again.spec.mean == (0.4, 0.4, 0.4) and again.spec.channels == 3


def test_a_stem_that_is_made_for_its_channels_is_not_fitted(tmp_path):
    network = sw.create_model("resnet9", 3, stem="whitening", widths=[4] * 4)
    path = ours(tmp_path / "a.safetensors", network)
    with pytest.raises(InputError, match="the stem of resnet9 is made for its 3 channels and cannot be fitted to 1"):
        sw.create_model("resnet9", in_chans=1, pretrained=path, stem="whitening", widths=[4] * 4)


# What such a network is given


def test_a_picture_is_prepared_as_timm_evaluates():
    spec = Spec(3, 24, 30, (0.5,) * 3, (0.5,) * 3, ("a", "b"), fit="crop", interpolation="bicubic")
    picture = np.random.default_rng(0).integers(0, 255, (60, 100, 3), dtype=np.uint8)
    shorter = Image.fromarray(picture).resize((50, 30), Image.Resampling.BICUBIC)  # the shorter side to 30
    wanted = np.asarray(shorter)[3:27, 13:37]
    found = prepare(picture, spec)
    assert found.shape == (24, 24, 3) and np.array_equal(found, wanted)
    plain = prepare(picture, replace(spec, interpolation="bilinear"))
    assert not np.array_equal(found, plain)


def test_a_picture_of_a_square_is_prepared_to_the_last_bit_as_pillow_does():
    spec = Spec(3, 24, 30, (0.5,) * 3, (0.5,) * 3, ("a", "b"), fit="crop", interpolation="bicubic")
    picture = np.random.default_rng(0).integers(0, 255, (55, 55, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(picture).resize((30, 30), Image.Resampling.BICUBIC))[3:27, 3:27]
    assert np.array_equal(prepare(picture, spec), wanted)


def test_files_from_before_interpolation_was_stored_are_bilinear():
    old = {k: v for k, v in SPEC.as_dict().items() if k != "interpolation"}
    assert Spec.from_dict(old) == SPEC and SPEC.interpolation == "bilinear"
    with pytest.raises(InputError, match="a Spec's interpolation is one of bilinear, bicubic, not 'nearest'"):
        replace(SPEC, interpolation="nearest")
