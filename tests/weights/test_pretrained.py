import errno
import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.file_download
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import skipway as sw
from skipway.cli.app import main
from skipway.commands.weights_get import get_weights
from skipway.data.image_spec import Spec
from skipway.errors import InputError, ShapeError, StorageError
from skipway.models.network_outputs import prepare_image
from skipway.training.checkpoint import save_weights
from skipway.weights.convert import release

TINY = {"layers": [1, 1], "widths": [4, 8]}
SPEC = Spec(3, 8, 8, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1), ("ant", "bee", "cow"))
CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.2, 0.1],
        "num_classes": 3,
    },
}


def scrambled(name="resnet18", num_classes=3, **options):
    network = sw.create_model(name, num_classes, **{**TINY, **options}).eval()
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
    daemon_threads = False  # `server_close` waits for them: one that outlives the tests would abort the interpreter

    def __init__(self, files):
        self.files, self.cut, self.etag, self.location, self.asked = files, False, None, None, []
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *said):
        pass

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        self.server.asked.append(self.path)
        repository, _, file = self.path.removeprefix("/").partition("/resolve/main/")
        data = self.server.files.get((repository, file))
        known = any(repository == name for name, _ in self.server.files)
        large = file.endswith(".safetensors")
        self.send_response(404 if data is None else 302 if large and self.server.location else 200)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        else:  # large files are marked with their SHA-256
            digest = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
            self.send_header("ETag", f'"{self.server.etag or digest}"' if large else f'"{digest}"')
        if large and self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("Connection", "close")
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.end_headers()
        cut = self.server.cut and large
        if body and data is not None:
            self.wfile.write(data[: len(data) // 2] if cut else data)


def point_to(monkeypatch, endpoint):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    network = scrambled()
    weights = safetensors.torch.save({k: v.contiguous() for k, v in release(network, "timm").items()})
    configs = {
        "tiny_test": CONFIG,
        "a1_in1k": {**CONFIG, "label_names": ["x", "y", "z"]},
        "list": [],
        "bare": {},
        "deeper": {**CONFIG, "architecture": "resnet34"},
        "wider": {**CONFIG, "architecture": "wide_resnet50_2"},
        "other": {**CONFIG, "architecture": "vit_tiny"},
        **{name: {**CONFIG, "pretrained_cfg": {**CONFIG["pretrained_cfg"], **change}} for name, change in ODD.items()},
    }
    files = {("some/thing", "README.md"): b"#"}
    for tag, config in configs.items():
        files[f"timm/resnet18.{tag}", "config.json"] = json.dumps(config).encode()
        files[f"timm/resnet18.{tag}", "model.safetensors"] = weights
    server = Hub(files)
    point_to(monkeypatch, server.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)
    server.network, server.cache = network, tmp_path / "cache"
    yield server
    server.shutdown()
    server.server_close()


ODD = {
    "oblong": {"input_size": [3, 32, 64]},
    "grey": {"input_size": [1, 32, 32]},
    "border": {"crop_mode": "border"},
    "lanczos": {"interpolation": "lanczos"},
    "tight": {"crop_pct": 1e-320},
    "meanless": {"mean": None},
}


@pytest.mark.parametrize("tag", ["tiny_test", "timm/resnet18.tiny_test", "hf:timm/resnet18.tiny_test"])
def test_a_tag_of_the_hub_brings_weights_and_what_its_network_is_given(hub, tag):
    network = sw.create_model("resnet18", pretrained=tag, **TINY)
    assert same(network, hub.network) and network.origin == "timm/resnet18.tiny_test"
    assert network.spec == Spec(
        3,
        32,
        35,
        (0.4, 0.5, 0.6),
        (0.3, 0.2, 0.1),
        ("0", "1", "2"),
        resize_mode="crop",
        interpolation="bicubic",
        mirrored=True,
    )


def test_true_takes_timm_s_own_choice_with_its_class_names(hub):
    network = sw.create_model("resnet18", pretrained=True, **TINY)
    assert same(network, hub.network) and network.spec.class_names == ("x", "y", "z")
    twin = sw.create_model("resnet18", pretrained=True, stem="large", block="basic", **TINY)
    assert same(twin, network), "values that are the network's own change nothing"


def test_a_second_call_does_not_ask_the_hub(hub, monkeypatch):
    first = sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    asked = len(hub.asked)
    assert same(sw.create_model("resnet18", pretrained="tiny_test", **TINY), first) and len(hub.asked) == asked
    point_to(monkeypatch, "http://127.0.0.1:9")
    assert same(sw.create_model("resnet18", pretrained="tiny_test", **TINY), first)


@pytest.mark.parametrize(
    "tag, text",
    [
        ("none_such", "expected a readable Hub repository, a file or a run folder, got timm/resnet18.none_such"),
        ("runs/none", "expected a readable Hub repository, a file or a run folder, got runs/none. Check"),
        ("some/thing", "some/thing: expected the file config.json, got none. Pass a repository of a timm model"),
        ("list", r"resnet18.list: expected a config.json of timm, got an invalid one \(it is not a mapping\). Pass"),
        (
            "bare",
            r"timm/resnet18.bare: cannot read the preprocessing from config.json \('input_size'",
        ),
        ("a//b", "pretrained: expected a file, a run folder or a Hub repository, got 'a//b'. Pass"),
        ("oblong", r"config.json \(input_size 3 x 32 x 64 is not a square with 3 channels\). Pass a repository"),
        ("grey", r"config.json \(input_size 1 x 32 x 32 is not a square with 3 channels\)"),
        ("border", r"resnet18.border: cannot read the preprocessing from config.json \('border'\)"),
        ("lanczos", "expected interpolation to be one of bilinear, bicubic, got 'lanczos'"),
        (
            "tight",
            r"resnet18.tight: cannot read the preprocessing from config.json \(cannot convert",
        ),
        ("meanless", r"resnet18.meanless: cannot read the preprocessing from config.json"),
        (
            "deeper",
            r"deeper has weights of another network than resnet18: layers: .* here, .* architecture resnet34, or",
        ),
        (
            "wider",
            "wider has weights of another network than resnet18: block: 'basic' here, 'bottleneck' in the .*base",
        ),
        (
            "other",
            "resnet18.other: expected an architecture of skipway, got vit_tiny. Choose one from `skipway",
        ),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, tag, text):
    options = {} if tag == "deeper" else TINY
    with pytest.raises(InputError, match=text) as refused:
        sw.create_model("resnet18", pretrained=tag, **options)
    assert len(str(refused.value).splitlines()) == 1


def test_weights_that_do_not_fit_are_refused_with_the_differences(hub):
    with pytest.raises(
        InputError, match=r"resnet18.tiny_test: the state dict does not match timm's resnet18: layer1\.1"
    ):
        sw.create_model("resnet18", pretrained="tiny_test", widths=[4, 8], layers=[2, 1])


def test_a_hub_that_is_not_reached_is_one_line_at_once(hub, monkeypatch):
    point_to(monkeypatch, "http://127.0.0.1:9")
    slept = []
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", slept.append)
    with pytest.raises(InputError, match=r"cannot download timm/resnet18.tiny_test: .*Check the connection"):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError,
        match=r"OfflineModeIsEnabled. Check the connection and try again, or run "
        r"`skipway weights get resnet18 --tag tiny_test` on another machine and pass its file",
    ):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    assert not slept


def test_an_interrupted_download_leaves_nothing_that_looks_whole(hub):
    hub.cut = True
    with pytest.raises(InputError, match=r"cannot download timm/resnet18.tiny_test: ") as refused:
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    assert len(str(refused.value).splitlines()) == 1 and not list(hub.cache.rglob("*.safetensors"))
    hub.cut = False
    assert same(sw.create_model("resnet18", pretrained="tiny_test", **TINY), hub.network)


def test_a_download_with_another_checksum_is_refused_and_removed(hub):
    hub.etag = "ab" * 32
    with pytest.raises(
        InputError, match=r"model.safetensors: expected the SHA-256 abababababab\.\.\., got .* The file was deleted"
    ):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    assert not list(hub.cache.rglob("*.safetensors")) and not list(hub.cache.rglob("blobs/abab*"))
    hub.etag = None
    assert same(sw.create_model("resnet18", pretrained="tiny_test", **TINY), hub.network)


def test_a_redirection_to_a_file_of_this_machine_is_refused(hub, tmp_path):
    ours(tmp_path / "secret.safetensors", scrambled())
    hub.location = (tmp_path / "secret.safetensors").as_uri()
    with pytest.raises(InputError, match=r"cannot download timm/resnet18.tiny_test: "):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    assert not list(hub.cache.rglob("*.safetensors"))


def test_a_full_disk_is_a_matter_of_storage(hub, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    message = "cannot store the weights of .*resnet18.tiny_test: No space left on device. Free disk space"
    with pytest.raises(StorageError, match=message):
        sw.create_model("resnet18", pretrained="tiny_test", **TINY)


# Files and runs


@pytest.mark.parametrize("library", ["torchvision", "timm"])
@pytest.mark.parametrize("said", [False, True])
def test_a_foreign_file_is_recognised_or_told(library, said, tmp_path):
    network = scrambled(stem="deep", shortcut="pool") if library == "timm" else scrambled()
    options = {"stem": "deep", "shortcut": "pool"} if library == "timm" else {}
    safetensors.torch.save_file({k: v.contiguous() for k, v in release(network, library).items()}, tmp_path / "w.bin")
    source = f"{library}:{tmp_path / 'w.bin'}" if said else tmp_path / "w.bin"
    again = sw.create_model("resnet18", pretrained=source, **TINY, **options)
    assert same(again, network)
    assert again.origin == f"{tmp_path / 'w.bin'} ({library}), default preprocessing of this library"
    assert again.spec.resize_mode == "crop" and again.spec.size == 224 and again.spec.class_names == ("0", "1", "2")


def test_the_cifar_networks_know_their_classes(tmp_path):
    network = sw.create_model("resnet20", layers=[1, 1, 1]).eval()
    state = {f"module.{k}": v.contiguous() for k, v in release(network, "akamaster").items()}
    torch.save({"state_dict": state, "best_prec1": 91.0}, tmp_path / "r.th", _use_new_zipfile_serialization=False)
    again = sw.create_model("resnet20", pretrained=tmp_path / "r.th", layers=[1, 1, 1])
    assert same(again, network) and again.spec.class_names[2] == "bird" and again.spec.size == 32


def rates(network):
    return [skip.drop_path for _, skip in sw.named_skips(network)]


def test_a_file_of_ours_brings_its_spec_and_leaves_what_no_weight_depends_on_to_the_call(tmp_path):
    network = scrambled(drop_path=0.2)
    path = ours(tmp_path / "a.safetensors", network)
    for given, last in (({}, 0.0), ({"drop_path": 0.3, "drop_mode": "batch", "dropout": 0.1}, 0.3)):
        again = sw.create_model("resnet18", pretrained=path, **given, **TINY)
        assert same(again, network) and again.spec == SPEC and again.plan | given == again.plan
        assert rates(again) == [0.0, last] and again.plan["drop_path"] == last and again.origin == str(path)
    assert any(isinstance(m, torch.nn.Dropout) for m in again.modules())


@pytest.mark.parametrize("first", ["skipway", "written_by", "sha256"])
def test_a_file_of_ours_is_known_in_whatever_order_its_header_stands(first, tmp_path):
    network = scrambled(num_classes=1000)
    path = ours(tmp_path / "a.bin", network, replace(SPEC, class_names=tuple(f"class number {i}" for i in range(1000))))
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    notes = header.pop("__metadata__")
    notes = {first: notes.pop(first), **notes}
    text = json.dumps({"__metadata__": notes, **header}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    assert same(sw.create_model("resnet18", pretrained=path, **TINY), network)


def test_a_file_of_an_older_skipway_that_lacks_a_value_of_the_plan_is_taken(tmp_path):
    network = scrambled()
    del network.plan["attention_ratio"], network.plan["drop_mode"]
    again = sw.create_model("resnet18", pretrained=ours(tmp_path / "a.safetensors", network), **TINY)
    assert same(again, network) and again.plan["drop_mode"] == "row"


def test_a_network_for_tables_takes_its_inputs_from_the_file(tmp_path):
    network = sw.create_model("resmlp", 3, in_features=27, width=8).eval()
    spec = Spec(3, 3, 3, (0.4,) * 3, (0.3,) * 3, ("ant", "bee", "cow"))
    path = ours(tmp_path / "a.safetensors", network, spec)
    assert same(sw.create_model("resmlp", pretrained=path, width=8), network, torch.randn(2, 27))
    with pytest.raises(
        InputError, match="has weights of another network than resmlp: in_features: 9 here, 27 in the checkpoint"
    ):
        sw.create_model("resmlp", pretrained=path, width=8, in_features=9)


def test_a_file_of_another_network_is_refused_with_the_values_that_differ(tmp_path):
    path = ours(tmp_path / "a.safetensors", scrambled())
    with pytest.raises(InputError, match=r"weights of another network than resnet18: layers: \(2,1\) here, \(1,1\) in"):
        sw.create_model("resnet18", pretrained=path, layers=[2, 1], widths=[4, 8])


def test_a_file_with_other_names_is_refused(tmp_path):
    safetensors.torch.save_file({"encoder.w": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="expected the keys of a resnet18 of .*, got keys such as encoder.w"):
        sw.create_model("resnet18", pretrained=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="no such file. Pass a file, a run or a Hub tag"):
        sw.create_model("resnet18", pretrained=tmp_path / "none.pth")
    with pytest.raises(InputError, match="the state dict does not match timm's resnet18: conv1.weight is"):
        sw.create_model("resnet18", pretrained=f"timm:{tmp_path / 'w.safetensors'}")


def test_a_name_without_known_weights_is_said():
    with pytest.raises(InputError, match="no weights are known for resnet20. Set pretrained to a Hub repository"):
        sw.create_model("resnet20", pretrained=True)
    with pytest.raises(InputError, match="unknown architecture 'resnet51'"):
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


@pytest.mark.parametrize("given", [{}, {"pretrained": "none.pth"}])
def test_class_names_that_are_no_such_list_are_refused(given):
    with pytest.raises(InputError, match="num_classes: expected 4, the number of class_names, got 3. Set only one"):
        sw.create_model("resnet18", 3, class_names=["dog", "cow", "ant", "elk"], **given)
    for wrong in ("ab", ["a", "a"]):
        with pytest.raises(InputError, match="class_names: expected a list of distinct names, one per class, got"):
            sw.create_model("resnet18", class_names=wrong, **given)


@pytest.mark.parametrize("given", [{"num_classes": -1}, {"in_chans": 0}, {"depth": 3}])
def test_sizes_and_options_are_refused_before_any_file_is_read(given):
    with pytest.raises(
        InputError, match="resnet: expected integers of at least [01] for|resnet18: unknown option 'depth'"
    ):
        sw.create_model("resnet18", pretrained="none.pth", **given)


def test_an_empty_text_is_not_taken_for_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected weights/best.safetensors in it, found none"):
        sw.create_model("resnet18", pretrained="", **TINY)
    assert sw.create_model("resnet18", pretrained=None, **TINY).origin == "fresh weights"


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
    assert again.spec.channels == len(again.spec.mean) == len(again.spec.std) == in_chans
    if in_chans == 1:
        assert again.spec.mean == pytest.approx((0.5,)) and again.origin.endswith("stem fitted from 3 to 1 channel")


def test_a_grey_network_can_be_given_color(tmp_path):
    network = scrambled(in_chans=1)
    spec = Spec(1, 8, 8, (0.4,), (0.3,), ("ant", "bee", "cow"))
    again = sw.create_model("resnet18", in_chans=3, pretrained=ours(tmp_path / "a.safetensors", network, spec), **TINY)
    grey = torch.randn(2, 1, 16, 16)
    assert torch.allclose(again.eval()(grey.expand(-1, 3, -1, -1)), network(grey), rtol=1e-3)
    assert again.spec.mean == (0.4, 0.4, 0.4) and again.spec.channels == 3


def test_a_stem_that_is_made_for_its_channels_is_not_fitted(tmp_path):
    network = sw.create_model("resnet9", 3, stem="whitening", widths=[4] * 4)
    path = ours(tmp_path / "a.safetensors", network)
    with pytest.raises(InputError, match="the whitening stem of resnet9: expected images of 3 channels, got 1"):
        sw.create_model("resnet9", in_chans=1, pretrained=path, stem="whitening", widths=[4] * 4)


# Saved as our own


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_adopted_network_is_saved_and_loaded_as_ours(dtype, tmp_path):
    network = sw.create_model("resnet20", layers=[1, 1, 1]).to(dtype).eval()
    torch.save(release(network, "akamaster"), tmp_path / "r.th")
    adopted = sw.create_model("resnet20", pretrained=tmp_path / "r.th", layers=[1, 1, 1])
    adopted.save(tmp_path / "ours.safetensors")
    x = torch.randn(2, 3, 16, 16, dtype=dtype)
    for again in (
        sw.load(tmp_path / "ours.safetensors"),
        sw.create_model("resnet20", pretrained=tmp_path / "ours.safetensors", layers=[1, 1, 1]),
    ):
        assert again.plan == adopted.plan and again.spec == adopted.spec and again(x).dtype == dtype
        assert torch.equal(again(x), network(x))
    with pytest.raises(InputError, match=r"r.th: .*or load other files with create_model\(name, pretrained=...\)"):
        sw.load(tmp_path / "r.th")


def test_a_network_that_could_not_be_loaded_again_is_not_saved(tmp_path):
    network, path = scrambled(), tmp_path / "a.safetensors"
    with pytest.raises(InputError, match="expected a model with a Spec of its inputs and outputs, .*or set .spec"):
        network.save(path)
    network.spec = replace(SPEC, class_names=("no", "yes"))
    with pytest.raises(
        ShapeError, match="cannot save: the network has a plan for 3 channels and 3 classes, but a Spec for 3 cha"
    ):
        network.save(path)
    network.spec, network.head = SPEC, torch.nn.Linear(8, 4)
    with pytest.raises(ShapeError, match=r"head.weight \(4, 8\), expected \(3, 8\).*\. Fix .plan or"):
        network.save(path)
    network.plan = {}
    with pytest.raises(InputError, match="cannot save: expected a network with a plan to rebuild it"):
        network.save(path)
    assert not path.exists()


# What such a network is given


def as_timm_evaluates(image, size, crop, interpolation):
    """The shorter side to floor(size / crop), the other in proportion, the centre cut out to the whole pixel."""
    short, (width, height) = int(size / crop), image.size
    wide, high = (short, short * height // width) if width <= height else (short * width // height, short)
    resized = image.resize((wide, high), Image.Resampling[interpolation.upper()])
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size))).astype(int)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size, crop", [(24, 0.8), (24, 0.95), (24, 0.9), (25, 0.875), (24, 1.0)])
@pytest.mark.parametrize("shape", [(60, 100), (45, 33), (31, 50), (32, 32), (25, 26), (24, 90), (51, 50)])
def test_a_image_is_prepared_as_timm_evaluates(shape, size, crop, interpolation, tmp_path):
    # No black or white, where the order of Pillow's two passes, which it chooses by the sizes, would show.
    pixels = np.random.default_rng(0).integers(64, 192, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    spec = Spec(3, size, int(size / crop), (0.5,) * 3, (0.5,) * 3, ("a", "b"), "crop", interpolation)
    wanted = as_timm_evaluates(image, size, crop, interpolation)
    for source in (pixels, tmp_path / "a.png"):
        assert np.abs(prepare_image(source, spec) - wanted).max() <= 1


def test_a_set_is_evaluated_on_the_same_pixels_as_single_images(tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = np.random.default_rng(i).integers(0, 256, (60, 80 + i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    spec = Spec(3, 24, 25, (0.5,) * 3, (0.5,) * 3, ("ant", "bee"), "crop", "bicubic")
    network = sw.create_model("resnet18", 2, **TINY).eval()
    network.spec = spec
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    sw.evaluate(network, tmp_path)
    network.predict_proba(sorted(tmp_path.rglob("*.png")))
    assert seen[0].shape == seen[1].shape == (4, 3, 24, 24)
    distance = (seen[0][:, None] - seen[1]).abs().amax((2, 3, 4))  # whatever the order of the set
    assert distance.min(1).values.max() < 1e-5


# Weights for another machine


def test_a_download_is_reported_before_it_begins_and_once(hub, capfd):
    sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    size = len(hub.files["timm/resnet18.tiny_test", "model.safetensors"]) / 1e6
    reported = capfd.readouterr().err.splitlines()
    assert reported[1] == (f"downloading timm/resnet18.tiny_test/model.safetensors, {size:,.1f} MB, to {hub.cache}")
    assert len(reported) == 2, "config.json and the weights"
    sw.create_model("resnet18", pretrained="tiny_test", **TINY)
    assert not capfd.readouterr().err


@pytest.fixture
def whole_hub(hub, monkeypatch):
    """The Hub with weights of the whole network, as timm has them."""
    network = sw.create_model("resnet10t", num_classes=3)
    weights = safetensors.torch.save({k: v.contiguous() for k, v in release(network, "timm").items()})
    config = {**CONFIG, "architecture": "resnet10t"}
    hub.files["timm/resnet10t.c3_in1k", "config.json"] = json.dumps(config).encode()
    hub.files["timm/resnet10t.c3_in1k", "model.safetensors"] = weights
    hub.network = network
    return hub


@pytest.mark.parametrize("tag, name", [(None, "resnet10t.safetensors"), ("c3_in1k", "resnet10t.c3_in1k.safetensors")])
def test_weights_are_fetched_into_a_file_that_trains_without_a_connection(whole_hub, tmp_path, monkeypatch, tag, name):
    monkeypatch.chdir(tmp_path)
    path = get_weights("resnet10t", tag)
    assert str(path) == name and same(sw.load(path), whole_hub.network)
    again = get_weights("hf-hub:timm/resnet10t.c3_in1k", output="again.safetensors")
    assert same(sw.load(again), whole_hub.network)
    point_to(monkeypatch, "http://127.0.0.1:9")
    assert same(sw.create_model("resnet10t", pretrained=path), whole_hub.network)
    with pytest.raises(
        InputError, match="cannot save the weights to .*: expected a new file, got one that exists. Choose"
    ):
        get_weights("resnet10t", tag)


def test_weights_are_written_to_a_safetensors_file_only(tmp_path):
    with pytest.raises(InputError, match=r"expected a .safetensors file, got .*weights.pth. Choose one with -o"):
        get_weights("resnet10t", output=tmp_path / "weights.pth")


def test_the_command_line_says_what_it_fetches_and_how_to_use_it(whole_hub, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["weights", "get", "resnet10t", "-o", "mine.safetensors"])
    said = capfd.readouterr()
    assert end.value.code == 0 and "downloading timm/resnet10t.c3_in1k/model.safetensors, " in said.err
    assert said.out == "mine.safetensors\ntrain with it: skipway train DATA --pretrained mine.safetensors\n"
