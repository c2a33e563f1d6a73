"""Preparation gives what Pillow gives through `prepare`, but for the rounding to whole grey levels."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from skipway.data.image_spec import RESIZE_MODES, Spec
from skipway.data.value_range import levels_of
from skipway.export.preprocessing import Preparation
from skipway.models.network_outputs import prepare_image

SIZES = {
    "smaller": (20, 31),
    "odd": (63, 64),
    "tall": (133, 50),
    "large": (250, 333),
    "huge": (900, 700),
    "dot": (1, 1),
}


def photograph(height, width, channels=3):
    """(H, W, C) of soft parts with grain."""
    draw = np.random.default_rng(height)
    coarse = draw.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    return np.clip(soft + draw.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)[:, :, :channels]


def spec_of(resize_mode="squash", interpolation="bilinear", size=33, presize=40, channels=3):
    return Spec(channels, size, presize, (0.5,) * channels, (0.5,) * channels, ("a", "b"), resize_mode, interpolation)


def apart(spec, image):
    """(the largest, the mean) difference from `prepare`, in grey levels."""
    made = Preparation(spec)(torch.from_numpy(image[None]))[0].permute(1, 2, 0).numpy()
    assert made.dtype == np.float32 and made.shape == (spec.size, spec.size, spec.channels)
    difference = np.abs(made - prepare_image(image, spec))
    return difference.max(), difference.mean()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("interpolation", "bound"), [("bilinear", 1.6), ("bicubic", 4)])
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
def test_pixels_are_those_of_prepare_but_for_rounding(resize_mode, interpolation, bound, size):
    largest, mean = apart(spec_of(resize_mode, interpolation), photograph(*SIZES[size]))
    assert largest < bound and mean < 0.4


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_image_of_the_size_that_is_asked_for_is_as_it_was(resize_mode, interpolation):
    spec = spec_of(resize_mode, interpolation, size=40)
    assert apart(spec, np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))[0] < 1e-4


def test_grey_images_and_networks_of_one_channel():
    largest, mean = apart(spec_of(channels=1), photograph(77, 90, 1))
    assert largest < 1.6 and mean < 0.4


def test_bars_are_exactly_the_grey_that_predict_paints():
    made = Preparation(spec_of("pad", "bicubic", size=40))(torch.zeros(1, 10, 80, 3, dtype=torch.uint8))[0]
    assert torch.equal(made[:, :17], torch.full((3, 17, 40), 128.0)) and not made[:, 18:22].any()


def test_every_image_of_a_batch_is_prepared_by_itself():
    images = torch.from_numpy(np.stack([photograph(50, 70), photograph(50, 70)[::-1]]))
    made = Preparation(spec_of("crop"))(images)
    assert torch.equal(made[1], Preparation(spec_of("crop"))(images[1:])[0]) and not torch.equal(made[0], made[1])


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
def test_deep_images_are_scaled_by_the_range_as_in_predict(resize_mode, interpolation, size, channels):
    height, width = SIZES[size]
    bands = photograph(height, width * channels).mean(2).reshape(height, channels, width).transpose(0, 2, 1)
    image = (bands * np.linspace(1, 90, channels) - 200).astype(np.float32)
    value_range = tuple((-210.0 + c, -200 + 230 * factor) for c, factor in enumerate(np.linspace(1, 90, channels)))
    spec = replace(spec_of(resize_mode, interpolation, channels=channels), value_range=value_range)
    levels = Preparation(spec)(torch.from_numpy(image[None]))[0].permute(1, 2, 0).numpy()
    assert np.abs(levels - levels_of(prepare_image(image, spec))).max() < 0.02


def test_missing_values_are_replaced_in_the_graph_as_in_predict():
    spec = replace(spec_of(channels=1, size=40), value_range=((10.0, 20.0),))
    image = np.full((40, 40, 1), 15, np.float32)
    image[0, :5, 0] = np.nan, np.inf, -np.inf, 3e38, -3e38
    levels = Preparation(spec)(torch.from_numpy(image[None]))[0, 0].numpy()
    assert levels[0, :6].tolist() == [0, 255, 0, 0, 0, 127.5]
    with pytest.warns(UserWarning, match="an array: NaN, infinite or no-data values replaced"):
        pixels = prepare_image(image, spec)
    assert np.abs(levels - levels_of(pixels)[:, :, 0]).max() < 0.01
