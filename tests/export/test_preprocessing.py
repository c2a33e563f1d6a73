"""Preparation gives what Pillow gives through `prepare`, but for the rounding to whole grey levels."""

import numpy as np
import pytest
import torch
from PIL import Image

from skipway.data.image_spec import RESIZE_MODES, Spec
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
