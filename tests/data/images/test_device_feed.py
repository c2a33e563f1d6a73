"""Batches for a CUDA device: those of the host, prepared ahead, without a wait of the host for the device."""

import threading
from collections import Counter

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu
from image_folders import decoded_noise

from skipway.data.image_spec import Spec
from skipway.data.images import device_feed
from skipway.data.images.device_feed import DeviceFeed
from skipway.data.images.device_pixels import pixels_on_device
from skipway.data.images.loader import Augmentation, ImageBatches
from skipway.data.images.stored_pixels import StoredPixels

SPEC = Spec(channels=3, size=1, presize=1, mean=(0.4,) * 3, std=(0.2,) * 3, class_names=("a",))
AUGMENTATIONS = {
    "evaluation": None,
    "shift": Augmentation("shift+flip", 3),
    "grows": Augmentation("shift+flip", 3, first_size=8, epochs=6),
    "everything": Augmentation("shift+flip+affine+color+trivial+erase", 3, mixup=0.3, cutmix=1.0),
    "transform": Augmentation("flip", 3, transform=lambda x: x + 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device)),
}
ZOOMS = {
    "zoom": Augmentation("zoom+flip", 3),
    "growing zoom": Augmentation("zoom+flip", 3, first_size=8, epochs=6),
}


@pytest.fixture
def gpu():
    with fake_gpu() as gpu:
        yield gpu


def images(deep=False, weights=False):
    decoded = decoded_noise(np.arange(30) % 3, size=16, room=4)
    if deep:
        decoded.pixels = decoded.pixels.astype(np.uint16) * 257 + 3
    if weights:
        decoded.weights = np.linspace(0.5, 1.5, 30).astype(np.float32)
    return decoded


def batches_of(decoded, augmentation, device, keep=False):
    resident = pixels_on_device(decoded.pixels, device) if keep else None
    return ImageBatches(
        decoded, np.arange(30), 8, spec=SPEC, augmentation=augmentation, device=device, resident=resident
    )


def epoch_of(batches, epoch=1, start=0):
    return [(x.cpu(), y.cpu(), ids) for x, y, ids in batches.epoch(epoch, start)]


@pytest.mark.parametrize("keep", [False, True], ids=["copied", "kept"])
@pytest.mark.parametrize("deep", [False, True], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_batches_are_those_of_the_host_to_the_bit(gpu, name, deep, keep):
    host = epoch_of(batches_of(images(deep), AUGMENTATIONS[name], "cpu"))
    device = epoch_of(batches_of(images(deep), AUGMENTATIONS[name], "cuda", keep))
    assert len(host) == len(device) == 4
    for (x, y, ids), (x2, y2, ids2) in zip(host, device, strict=True):
        if name == "transform":  # the device has a generator of its own
            assert x.shape == x2.shape
        else:
            assert torch.equal(x, x2) and x.stride() == x2.stride()
        assert torch.equal(y, y2) and np.array_equal(ids, ids2)


@pytest.mark.parametrize("keep", [False, True], ids=["copied", "kept"])
@pytest.mark.parametrize("name", ZOOMS)
def test_zoomed_batches_are_within_one_level(gpu, name, keep):
    host = epoch_of(batches_of(images(), ZOOMS[name], "cpu"))
    device = epoch_of(batches_of(images(), ZOOMS[name], "cuda", keep))
    for (x, _, _), (x2, _, _) in zip(host, device, strict=True):
        assert ((x - x2).abs() * 0.2 * 255).max() < 1.001


@pytest.mark.parametrize("keep", [False, True], ids=["copied", "kept"])
@pytest.mark.parametrize("name", [*AUGMENTATIONS, *ZOOMS])
def test_no_batch_makes_the_host_wait(gpu, name, keep):
    batches = batches_of(images(weights=True), (AUGMENTATIONS | ZOOMS)[name], "cuda", keep)
    list(batches.epoch(0))  # constants are copied to the device once
    gpu.reset()
    for _, _, ids in batches.epoch(1):
        batches.weights(ids, 1)
    assert not gpu.syncs
    assert all(copy.pinned and copy.non_blocking for copy in gpu.copies)


def test_images_that_are_not_contiguous_are_gathered_too(gpu):
    host, device = images(), images()
    device.pixels = np.asfortranarray(device.pixels)
    for (x, _, _), (x2, _, _) in zip(
        epoch_of(batches_of(host, AUGMENTATIONS["shift"], "cpu")),
        epoch_of(batches_of(device, AUGMENTATIONS["shift"], "cuda")),
        strict=True,
    ):
        assert torch.equal(x, x2)


def test_a_resumed_epoch_has_the_same_batches(gpu):
    batches = batches_of(images(), AUGMENTATIONS["everything"], "cuda")
    whole = epoch_of(batches)
    for start in (1, 3, 4):
        for (x, _, ids), (x2, _, ids2) in zip(whole[start:], epoch_of(batches, start=start), strict=True):
            assert torch.equal(x, x2) and np.array_equal(ids, ids2)


class Watched(DeviceFeed):
    """Counts the batches that are in memory."""

    def __init__(self, pixels):
        super().__init__(pixels, torch.device("cuda"))
        self.requested = 0

    def _pinned(self, count):
        self.requested += 1
        return super()._pinned(count)


def feed_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("skipway-ahead")]


def test_at_most_two_batches_are_prepared_ahead(gpu):
    feed = Watched(images().pixels)
    batches = feed.batches(np.arange(30).reshape(10, 3), lambda ids: None)
    for used in range(1, 11):
        next(batches)
        assert feed.requested <= used + 2


def test_a_consumer_that_stops_leaves_no_thread(gpu):
    batches = batches_of(images(), AUGMENTATIONS["shift"], "cuda").epoch()
    next(batches)
    assert feed_threads()
    batches.close()
    assert not feed_threads()
    assert [len(x) for x, _, _ in batches_of(images(), None, "cuda").epoch()] == [8, 8, 8, 6]
    assert not feed_threads()


def test_an_error_in_the_thread_is_raised_in_the_loop(gpu):
    calls = Counter()

    def decode(image):
        calls["decoded"] += 1
        if calls["decoded"] > 9:
            raise OSError("the disk is gone")
        return np.zeros((4, 4, 3), np.uint8)

    stored = StoredPixels((30, 4, 4, 3), [], np.full((30, 2), -1), decode, print, np.dtype(np.uint8))
    feed = DeviceFeed(stored, torch.device("cuda"))
    with pytest.raises(OSError, match="the disk is gone"):
        list(feed.batches(np.arange(30).reshape(10, 3), lambda ids: None))
    assert not feed_threads()


def test_pixels_are_gathered_in_a_thread_and_copied_by_the_loop(gpu, monkeypatch):
    threads = set()
    gather = device_feed.gather_into

    def watched(pixels, ids, out):
        threads.add(threading.current_thread().name)
        gather(pixels, ids, out)

    monkeypatch.setattr(device_feed, "gather_into", watched)
    epoch_of(batches_of(images(), AUGMENTATIONS["shift"], "cuda"))
    assert len(threads) == 1 and threads.pop().startswith("skipway-ahead")
    monkeypatch.setattr(device_feed, "gather_into", None)
    epoch_of(batches_of(images(), AUGMENTATIONS["shift"], "cuda", keep=True))
