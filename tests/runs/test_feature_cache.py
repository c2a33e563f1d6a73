import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from image_folders import decoded_noise
from small_runs import StopAt, Words
from torch import nn

from skipway.data.image_spec import Spec
from skipway.data.images.loader import Augmentation, ImageBatches
from skipway.errors import InputError, Interrupted, StorageError
from skipway.model_factory import create_model
from skipway.runs import feature_cache
from skipway.runs.feature_cache import FeatureCache, choose_engine, frozen_layers
from skipway.training.linear_head import fit_linear_head
from skipway.utils.stop_signals import StopFlag

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, COUNT = 16, 150
STATISTICS = {
    "spec": Spec(channels=3, size=1, presize=1, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), class_names=("a",))
}


@pytest.fixture(scope="module")
def images():
    return decoded_noise(np.arange(COUNT) % 3, size=SIZE, room=2)


@pytest.fixture(scope="module")
def network():
    """A network with norms whose statistics are those of a training."""
    torch.manual_seed(3)
    network = create_model("resnet20", num_classes=3, layers=[1, 1], widths=[8, 12])
    network.spec = replace(STATISTICS["spec"], size=SIZE, presize=SIZE + 2, class_names=("a", "b", "c"))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return network.train()


def batches(images, augmentation=None):
    return ImageBatches(images, images.splits["train"], 32, **STATISTICS, augmentation=augmentation)


def cache(network, folder, precision="fp32", console=None, stop=None, fingerprint="f"):
    return FeatureCache(
        network, precision, folder, fingerprint, COUNT, console or Words(), StopFlag() if stop is None else stop
    )


def plain_features(network, x):
    """What reaches the head of the network in evaluation mode."""
    inputs = []
    hook = network.head.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    training = network.training
    with torch.no_grad():
        network.eval()(x)
    network.train(training)
    hook.remove()
    return inputs[0]


@pytest.fixture
def no_computing(monkeypatch):
    def refuse(*_):
        pytest.fail("features are computed again")

    return lambda: monkeypatch.setattr(FeatureCache, "_model", refuse)


@pytest.mark.parametrize("precision, tolerance", [("fp32", 1e-5), ("bf16", 2e-2)])
def test_features_are_those_of_the_plain_network_and_give_the_same_classes(
    images, network, tmp_path, precision, tolerance
):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    ids = np.arange(COUNT)
    features = cache(network, tmp_path, precision).features(batches(images), ids)
    expected = plain_features(network, batches(images).inputs(ids))
    assert (features - expected).abs().max() <= tolerance * expected.abs().max()
    assert all(value.equal(before[name]) for name, value in network.state_dict().items()) and network.training
    labels = torch.from_numpy(images.targets)
    heads = [fit_linear_head(x, labels, 3, penalty=100.0) for x in (features, expected)]
    classes = [(expected @ head.weight.T + head.bias).argmax(1) for head in heads]
    assert (classes[0] == classes[1]).float().mean() >= (1.0 if precision == "fp32" else 0.96)


def test_an_augmented_view_is_a_function_of_seed_view_and_image(images, network, tmp_path):
    feed = batches(images, Augmentation("zoom+flip", seed=4))
    ids = np.arange(40, 90)
    first = cache(network, tmp_path).features(feed, ids, view=1)
    second = cache(network, tmp_path).features(feed, ids, view=2)
    expected = plain_features(network, feed.inputs(ids, 2))
    assert torch.allclose(second, expected, atol=1e-4) and not torch.allclose(first, second, atol=1e-2)


def test_a_second_run_finds_the_features(images, network, tmp_path, no_computing):
    console, ids = Words(), np.arange(COUNT)
    first = cache(network, tmp_path, console=console).features(batches(images), ids)
    assert (
        f"features: 150 images x {network.head.in_features} in fp32, " in console and " images/s with torch" in console
    )
    no_computing()
    console = Words()
    assert first.equal(cache(network, tmp_path, console=console).features(batches(images), ids))
    assert "in fp32, cached, " in console and f" MB in {tmp_path}" in console


def test_other_weights_images_or_inputs_have_features_of_their_own(images, network, tmp_path):
    ids = np.arange(20)
    cache(network, tmp_path).features(batches(images), ids)
    other = create_model("resnet20", num_classes=3, layers=[1, 1], widths=[8, 12])
    other.spec = network.spec
    cache(other, tmp_path).features(batches(images), ids)
    cache(network, tmp_path, fingerprint="g").features(batches(images), ids)
    cache(network, tmp_path, "bf16").features(batches(images), ids)
    cache(network, tmp_path).features(batches(images), ids[::-1])
    cache(network, tmp_path).features(batches(images, Augmentation("flip", 1)), ids, view=1)
    assert len(list(tmp_path.iterdir())) == 6


def test_another_head_uses_the_same_features(images, network, tmp_path, no_computing):
    ids = np.arange(20)
    first = cache(network, tmp_path).features(batches(images), ids)
    no_computing()
    head = network.head
    try:
        network.head = nn.Linear(head.in_features, 7)
        assert first.equal(cache(network, tmp_path).features(batches(images), ids))
    finally:
        network.head = head


def test_a_run_that_is_stopped_keeps_what_is_computed(images, network, tmp_path, monkeypatch):
    ids = np.arange(COUNT)
    whole = cache(network, tmp_path / "whole").features(batches(images), ids)
    with pytest.raises(
        Interrupted, match="after computing 128 of 150 features, which are cached. Continue with --resume."
    ):
        cache(network, tmp_path / "part", stop=StopAt(2)).features(batches(images), ids)
    computed = []
    compute = FeatureCache._compute
    monkeypatch.setattr(
        FeatureCache, "_compute", lambda *a, **k: (computed.append(len(k["missing"])), compute(*a, **k))
    )
    assert whole.allclose(cache(network, tmp_path / "part").features(batches(images), ids), atol=1e-6)
    assert computed == [22]


def test_a_damaged_row_is_computed_again(images, network, tmp_path):
    ids = np.arange(30)
    whole = cache(network, tmp_path).features(batches(images), ids)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert whole.allclose(cache(network, tmp_path).features(batches(images), ids), atol=1e-6)
    path.write_bytes(data[:100])
    assert whole.allclose(cache(network, tmp_path).features(batches(images), ids), atol=1e-6)


def test_what_a_link_in_the_cache_leads_to_stays_as_it_is(images, network, tmp_path):
    ids = np.arange(30)
    whole = cache(network, tmp_path / "cache").features(batches(images), ids)
    (path,) = (tmp_path / "cache").iterdir()
    mine = path.rename(tmp_path / "mine")
    mine.write_bytes(before := bytes(mine.stat().st_size))
    path.symlink_to(mine)
    assert whole.equal(cache(network, tmp_path / "cache").features(batches(images), ids))
    assert mine.read_bytes() == before and not path.is_symlink()


def test_a_file_of_the_cache_that_another_name_or_process_has_is_never_cut(images, network, tmp_path):
    ids = np.arange(30)
    whole = cache(network, tmp_path / "cache").features(batches(images), ids)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(b"mine")
    os.link(path, tmp_path / "mine")
    assert whole.equal(cache(network, tmp_path / "cache").features(batches(images), ids))
    assert (tmp_path / "mine").read_bytes() == b"mine" and list((tmp_path / "cache").iterdir()) == [path]


def test_files_that_were_not_used_for_long_are_removed(images, network, tmp_path, monkeypatch):
    ids, folder = np.arange(30), tmp_path / "features"
    for index, name in enumerate("abc"):
        cache(network, folder, fingerprint=name).features(batches(images), ids)
        newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        newest.touch()
        if index == 0:
            oldest, size = newest, newest.stat().st_size
    (folder / "notes.txt").write_text("mine")
    monkeypatch.setenv("SKIPWAY_CACHE_SIZE", str(3.5 * size / 1e9))
    cache(network, folder, fingerprint="d").features(batches(images), ids)
    names = {path.name for path in folder.iterdir()}
    assert len(names) == 4 and oldest.name not in names and "notes.txt" in names


def test_a_full_disk_is_refused_before_anything_is_computed(images, network, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "free_bytes", lambda path: 10)
    with pytest.raises(StorageError, match="expected .* bytes of free space, got 10. Set SKIPWAY_CACHE to a folder"):
        cache(network, tmp_path).features(batches(images), np.arange(30))


def test_a_network_with_another_head_is_refused():
    with pytest.raises(InputError, match='expected a final linear layer "head", got another end. Use --head train.'):
        frozen_layers(create_model("resnet9", num_classes=3))


def test_openvino_computes_many_images_if_it_is_installed(images, network, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    trunk = frozen_layers(network)
    assert choose_engine(trunk, 10_000) == "torch" and choose_engine(trunk, 10**7) == "openvino"  # of 16 pixels
    monkeypatch.setattr(feature_cache, "_WORTH_OPENVINO", 0)
    monkeypatch.setattr(feature_cache, "_WORTH_OPENVINO_WITH_AMX", 0)
    assert choose_engine(trunk, COUNT) == "openvino"
    console, ids = Words(), np.arange(COUNT)
    features = cache(network, tmp_path, console=console).features(batches(images), ids)
    expected = plain_features(network, batches(images).inputs(ids))
    assert (features - expected).abs().max() <= 1e-4 * expected.abs().max() and "images/s with openvino" in console
