import numpy as np
import pytest
import torch
from PIL import Image

from skipway.data.images.augment_policy import random_table
from skipway.data.images.crop_zoom_flip import augment_pixels, center_crop, num_tta_views, tta_views

LEVELS = ["none", "flip", "shift", "shift+flip", "zoom", "zoom+flip"]


def noise(count=6, side=12, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def as_images(x):
    """(B, C, S, S) -> (B, S, S, C) array."""
    return x.permute(0, 2, 3, 1).numpy()


def augmented(pixels, rows, parts, size, uniform):
    return augment_pixels(pixels, rows, uniform, parts=parts, size=size)


def shifted(image, uniform, size, flip):
    """The oracle of a shift: pad by reflection, cut out, mirror."""
    reach, start = max(1, size // 16), round((image.shape[0] - size) / 2)
    pad = [(reach, reach), (reach, reach), (0, 0)]
    padded = np.pad(image, pad, mode="reflect" if len(image) > 1 else "edge")
    top, left = (start + int(c * (2 * reach + 1)) for c in uniform[1:3])
    cut = padded[top : top + size, left : left + size]
    return cut[:, ::-1] if flip and uniform[0] < 0.5 else cut


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side, size", [(12, 12), (15, 12), (32, 32), (2, 2), (1, 1), (9, 8)])
@pytest.mark.parametrize("flip", [False, True])
def test_shift_is_reflecting_pad_then_crop_then_flip(channels, side, size, flip):
    pixels, rows = noise(20, side, channels), np.arange(20)
    uniform = random_table(0, 0, rows, 5)
    x = augmented(pixels, rows, "shift+flip" if flip else "shift", size, uniform)
    for i in rows:
        assert np.array_equal(as_images(x)[i], shifted(pixels[i], uniform[i], size, flip))


def test_every_shift_occurs_and_none_beyond_reach():
    column = np.tile(np.arange(100, 116, dtype=np.uint8)[None, :, None], (16, 1, 1))[None]
    rows = np.zeros(4000, int)
    x = augmented(column, rows, "shift", 16, random_table(0, 0, np.arange(4000), 5))
    centre = x[:, 0, 8, 8].numpy().astype(int) - 108
    assert set(centre) == {-1, 0, 1} and abs(centre.mean()) < 0.1


@pytest.mark.parametrize("level", ["none", "flip"])
def test_none_is_the_centre_and_flip_its_mirror_image(level):
    pixels, rows = noise(9, 14), np.arange(9)
    uniform = random_table(0, 0, rows, 5)
    x, centre = augmented(pixels, rows, level, 10, uniform), center_crop(pixels, rows, 10)
    assert np.array_equal(as_images(centre), pixels[:, 2:12, 2:12])
    flipped = (uniform[:, 0] < 0.5) & (level == "flip")
    assert flipped.any() == (level == "flip") and not flipped.all()
    assert torch.equal(x[~flipped], centre[~flipped]) and torch.equal(x[flipped], centre[flipped].flip(3))


def zoom_uniform(area, ratio, left, top, flip=False):
    """The draws that make this zoom: area in [0.35, 1], the stretch, the place in [0, 1)."""
    return np.array([[0.0 if flip else 0.9, (area - 0.35) / 0.65, np.log(ratio) / np.log(4 / 3) / 2 + 0.5, left, top]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_a_zoom_of_everything_gives_the_image_back(channels, flip):
    pixels = noise(1, 16, channels)
    x = augmented(pixels, np.array([0]), "zoom+flip", 16, zoom_uniform(1, 1, 0.7, 0.2, flip))
    assert np.array_equal(as_images(x)[0], pixels[0][:, ::-1] if flip else pixels[0])


def looked_up(image, box, size):
    """Slow bilinear enlargement of `box`, clamped at its own edge as Pillow does."""
    left, top, right, bottom = box
    out = np.empty((size, size, image.shape[2]))
    for axis, (low, high) in (("x", (left, right)), ("y", (top, bottom))):
        scale = (high - low) / size
        reach = max(scale, 1.0)
        weights = np.zeros((size, len(image)))
        for i in range(size):
            middle = low + (i + 0.5) * scale
            at = np.arange(max(0, int(middle - reach + 0.5)), min(len(image), int(middle + reach + 0.5)))
            weights[i, at] = np.maximum(0, 1 - np.abs((at + 0.5 - middle) / reach))
            weights[i] /= weights[i].sum()
        if axis == "x":
            half = np.einsum("sx,yxc->ysc", weights, image.astype(float))
        else:
            out = np.einsum("sy,yxc->sxc", weights, half)
    return out


@pytest.mark.parametrize("area, ratio, left, top", [(0.35, 1, 0, 0), (0.5, 1.2, 0.999, 0.5), (0.7, 0.8, 0.3, 0.999)])
def test_a_zoom_is_the_bilinear_look_up_of_its_box(area, ratio, left, top):
    pixels = noise(1, 20)
    wide, high = 20 * np.sqrt(area * ratio), 20 * np.sqrt(area / ratio)
    box = (left * (20 - wide), top * (20 - high), left * (20 - wide) + wide, top * (20 - high) + high)
    x = augmented(pixels, np.array([0]), "zoom", 16, zoom_uniform(area, ratio, left, top))
    assert np.abs(as_images(x)[0] - looked_up(pixels[0], box, 16)).max() <= 1.01, "rounded twice to whole numbers"


def test_a_zoom_stays_within_the_image_whatever_is_drawn():
    corners = np.array(np.meshgrid(*[[0.0, 0.5, 1 - 2**-53]] * 5)).reshape(5, -1).T
    for side in (1, 2, 7, 147):
        pixels = np.full((1, side, side, 3), 200, np.uint8)
        x = augmented(pixels, np.zeros(len(corners), int), "zoom+flip", max(1, side - 1), corners)
        assert (x == 200).all()
    x = augmented(noise(1, 30), np.zeros(300, int), "zoom", 26, random_table(0, 0, np.arange(300), 5))
    assert x.min() >= 0 and x.max() <= 255 and len({row.numpy().tobytes() for row in x}) == 300


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_happens_to_a_image_does_not_depend_on_its_batch(level, channels):
    pixels, ids = noise(40, 14, channels), np.random.default_rng(1).permutation(40)
    whole = augmented(pixels, ids, level, 12, random_table(3, 1, ids, 5))
    for size in (1, 2, 7, 33):
        batches = [ids[i : i + size] for i in range(0, 40, size)]
        parts = [augmented(pixels, batch, level, 12, random_table(3, 1, batch, 5)) for batch in batches]
        assert torch.equal(torch.cat(parts), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert torch.equal(augmented(pixels, ids, level, 12, random_table(3, 1, ids, 5)), whole)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("level", LEVELS)
def test_batches_lie_in_channels_last_order_as_bytes(level):
    x = augmented(noise(), np.arange(4), level, 10, random_table(0, 0, np.arange(4), 5))
    assert x.shape == (4, 3, 10, 10) and x.dtype == torch.uint8
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("level", ["none", "shift", "zoom"])
def test_a_image_is_mirrored_only_where_a_level_says_flip(level):
    ramp = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[None, None, :, None], (1, 24, 1, 3))
    x = augmented(ramp, np.zeros(200, int), level, 20, random_table(0, 0, np.arange(200), 5))
    assert (x[:, 0, 10, 14] > x[:, 0, 10, 5]).all(), "brighter to the right, as it was"


def test_the_user_s_pixels_are_never_changed():
    pixels = noise()
    before = pixels.copy()
    for level in LEVELS:
        augmented(pixels, np.arange(6), level, 10, random_table(0, 0, np.arange(6), 5)).zero_()
    center_crop(pixels, np.arange(6), 12).zero_()
    assert np.array_equal(pixels, before)
    assert Image.fromarray(pixels[0]).size == (12, 12)


@pytest.mark.parametrize("mirrored", [False, True])
def test_views_are_the_image_its_shifts_and_their_mirror_images(mirrored):
    x = torch.randn(2, 3, 64, 64)
    found = tta_views(x, mirrored)
    assert len(found) == (6 if mirrored else 3) and torch.equal(found[0], x)
    for size in (1, 2, 3, 32, 64):
        assert num_tta_views(size, mirrored) == len(tta_views(x[..., :size, :size], mirrored))
    assert all(v.shape == x.shape for v in found)
    assert torch.equal(found[1][..., 2:, 2:], x[..., :-2, :-2]) and torch.equal(found[2][..., :-2, :-2], x[..., 2:, 2:])
    if mirrored:
        assert all(torch.equal(v.flip(-1), m) for v, m in zip(found[:3], found[3:], strict=True))


def test_a_image_too_small_to_shift_is_seen_once():
    assert len(tta_views(torch.randn(1, 1, 2, 2), True)) == 1


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("parts", LEVELS)
def test_deep_images_are_moved_like_bytes_and_become_levels(channels, parts):
    pixels, rows = noise(4, 12, channels), np.arange(4)
    uniform = random_table(0, 0, rows, 5)
    x = augmented(pixels, rows, parts, 8, uniform).float()
    deep = augmented(pixels.astype(np.uint16) * 257, rows, parts, 8, uniform)
    assert deep.dtype == torch.float32 and deep.stride() == x.stride()
    assert torch.allclose(deep, x, atol=1.0 if "zoom" in parts else 0)  # bytes are rounded after each axis
    assert torch.equal(center_crop(pixels.astype(np.uint16) * 257, rows, 8), center_crop(pixels, rows, 8).float())
