"""The device computes what the host computes: crops to the bit, zooms within one level."""

import numpy as np
import pytest
import torch
from fake_gpu import fake_gpu
from image_folders import decoded_noise

from skipway.data.images.augment_policy import augment_random_table
from skipway.data.images.crop_zoom_flip import augment_pixels, center_crop, draw_crops
from skipway.data.images.device_copy import to_device
from skipway.data.images.device_pixels import (
    as_torch_pixels,
    augment_on_device,
    center_crop_on_device,
    crops_to_device,
    pixels_on_device,
)


def stored(side, channels=3, dtype=np.uint8, count=40):
    """Noise over a gradient, so that a wrong place or scale is far off."""
    rng = np.random.default_rng(side + channels)
    top = np.iinfo(dtype).max
    ramp = np.linspace(0, top * 0.7, side)[:, None, None] * np.linspace(0.2, 1, side)[None, :, None]
    return (ramp + rng.integers(0, top // 4, (count, side, side, channels))).astype(dtype)


def both(pixels, parts, size, epoch=1):
    """The output of the host and that of the device version, which runs on the CPU here."""
    ids = np.arange(len(pixels))[::-1].copy()
    uniform = augment_random_table(3, epoch, ids)
    host = augment_pixels(pixels, ids, uniform, parts=parts, size=size)
    crops = draw_crops(uniform, parts=parts, stored_size=pixels.shape[1], size=size)
    tensor = torch.from_numpy(as_torch_pixels(pixels))
    return host, augment_on_device(tensor, torch.from_numpy(ids), crops_to_device(crops, "cpu"), size)


@pytest.mark.parametrize("channels, dtype", [(1, np.uint8), (3, np.uint8), (5, np.uint8), (2, np.uint16)])
@pytest.mark.parametrize("side, size", [(12, 12), (15, 12), (40, 32), (2, 2), (1, 1)])
@pytest.mark.parametrize("parts", ["none", "flip", "shift", "shift+flip"])
def test_crops_and_flips_are_equal_to_the_bit(side, size, parts, channels, dtype):
    host, device = both(stored(side, channels, dtype), parts, size)
    assert torch.equal(host, device) and host.dtype == device.dtype
    assert device.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("side, size", [(12, 12), (37, 32), (64, 32), (64, 20), (16, 24), (3, 2)])
@pytest.mark.parametrize("parts", ["zoom", "zoom+flip"])
def test_zooms_differ_by_at_most_one_level_in_few_pixels(side, size, parts, channels):
    host, device = both(stored(side, channels), parts, size)
    gap = (host.float() - device).abs()
    assert gap.max() <= 1 and (gap > 0).float().mean() < 0.02
    assert device.shape == host.shape and device.is_contiguous(memory_format=torch.channels_last)


def test_zooms_of_deep_images_differ_by_at_most_one_stored_value():
    host, device = both(stored(30, 2, np.uint16), "zoom+flip", 24)
    assert device.dtype == host.dtype == torch.float32
    assert ((host - device).abs() * 257).max() <= 1.01


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_center_crops_are_equal_to_the_bit(dtype):
    pixels, rows = stored(15, 3, dtype), np.array([5, 0, 5])
    tensor = torch.from_numpy(as_torch_pixels(pixels))
    assert torch.equal(center_crop(pixels, rows, 12), center_crop_on_device(tensor, torch.from_numpy(rows), 12))


def test_values_go_to_the_device_without_a_wait():
    assert to_device(np.arange(3), "cpu").tolist() == [0, 1, 2]
    with fake_gpu() as gpu:
        x = to_device(np.arange(3.0), "cuda", torch.float32)
        assert not gpu.syncs and x.is_cuda and x.dtype == torch.float32
        assert x.tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_that_fit_live_on_the_device(monkeypatch, dtype):
    pixels = stored(8, 3, dtype)
    monkeypatch.setattr("skipway.data.images.device_pixels._CHUNK", 1000)
    with fake_gpu():
        assert np.array_equal(pixels_on_device(pixels, "cuda").cpu().numpy().view(dtype), pixels)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 * pixels.nbytes - 1, 2**40))
        assert pixels_on_device(pixels, "cuda") is None
    assert pixels_on_device(pixels, "cpu") is None


def test_a_file_of_images_that_is_read_only_goes_to_the_device(tmp_path):
    pixels = decoded_noise([0, 1]).pixels
    pixels.tofile(tmp_path / "pixels")
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=pixels.shape)
    with fake_gpu():
        assert np.array_equal(pixels_on_device(mapped, "cuda").cpu().numpy(), pixels)
