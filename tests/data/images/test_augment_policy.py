import numpy as np
import pytest
import torch
from PIL import Image

from skipway.data.images.augment_policy import (
    augment_pixels,
    augment_random_table,
    center_crop,
    describe_policy,
    random_table,
    resolve_policy,
    tta_views,
)

LEVELS = ["none", "flip", "shift", "shift+flip", "zoom", "zoom+flip"]


def noise(count=6, side=12, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def as_pictures(x):
    """(B, C, S, S) -> (B, S, S, C) array."""
    return x.permute(0, 2, 3, 1).numpy()


def test_draws_are_uniform_and_unrelated():
    table = random_table(7, 3, np.arange(50_000), 5)
    assert table.shape == (50_000, 5) and table.min() >= 0 and table.max() < 1
    assert np.abs(table.mean(axis=0) - 0.5).max() < 0.008 and np.abs(table.var(axis=0) - 1 / 12).max() < 0.002
    for column in table.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 2500) ** 2 / 2500).sum() < 55, "chi-squared with 19 degrees of freedom, 1 in 50,000"
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 0.02, "neighbouring pictures"
    between = np.corrcoef(table.T) - np.eye(5)
    assert np.abs(between).max() < 0.02, "columns of one picture"


@pytest.mark.parametrize("other", [(7, 4), (8, 3), (0, 0), (3, 7), (2**63, 3)])
def test_another_epoch_or_seed_draws_anew(other):
    ids = np.arange(20_000)
    one, two = random_table(7, 3, ids, 2), random_table(*other, ids, 2)
    assert np.abs(np.corrcoef(one.T, two.T)[:2, 2:]).max() < 0.03 and not np.isclose(one, two).all(axis=1).any()


def test_draws_are_a_pure_function_of_seed_epoch_and_picture():
    ids = np.random.default_rng(0).permutation(1000)
    table = random_table(1, 2, np.arange(1000), 5)
    assert np.array_equal(random_table(1, 2, ids, 5), table[ids])
    assert np.array_equal(random_table(1, 2, ids[17:18], 5), table[ids[17:18]])
    assert np.array_equal(random_table(1, 2, ids, 2), table[ids][:, :2])


def test_draws_are_splitmix64_in_plain_arithmetic():
    golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

    def stir(x):
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    for seed, epoch, picture in [(0, 0, 0), (7, 3, 49_999), (2**63, 10**6, 2**40)]:
        state = stir((stir((seed * golden + epoch) & mask) + golden * (picture + 1)) & mask)
        wanted = [(stir((state + golden * (column + 1)) & mask) >> 11) / 2**53 for column in range(3)]
        assert random_table(seed, epoch, np.array([picture]), 3)[0].tolist() == wanted


def test_auto_depends_on_the_room_to_crop_from_and_on_mirrors():
    assert (
        resolve_policy("auto", stored_size=147, size=128, mirrored=True) == "zoom+flip"
        and resolve_policy("auto", stored_size=147, size=128, mirrored=False) == "zoom"
    )
    assert (
        resolve_policy("auto", stored_size=32, size=32, mirrored=True) == "shift+flip"
        and resolve_policy("auto", stored_size=8, size=8, mirrored=False) == "shift"
    )
    assert resolve_policy("none", stored_size=147, size=128, mirrored=True) == "none"


def test_a_level_is_told_in_words_with_its_amounts():
    assert describe_policy("zoom+flip", 128) == "zoom to 35% to 100% of the area, flip"
    assert describe_policy("shift", 32) == "shift by up to 2 px" and describe_policy("none", 32) == "none"


def augmented(pixels, rows, parts, size, uniform):
    return augment_pixels(pixels, rows, uniform, parts=parts, size=size)


def shifted(picture, uniform, size, flip):
    """The oracle of a shift: pad by reflection, cut out, mirror."""
    reach, start = max(1, size // 16), round((picture.shape[0] - size) / 2)
    pad = [(reach, reach), (reach, reach), (0, 0)]
    padded = np.pad(picture, pad, mode="reflect" if len(picture) > 1 else "edge")
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
        assert np.array_equal(as_pictures(x)[i], shifted(pixels[i], uniform[i], size, flip))


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
    assert np.array_equal(as_pictures(centre), pixels[:, 2:12, 2:12])
    flipped = (uniform[:, 0] < 0.5) & (level == "flip")
    assert flipped.any() == (level == "flip") and not flipped.all()
    assert torch.equal(x[~flipped], centre[~flipped]) and torch.equal(x[flipped], centre[flipped].flip(3))


def zoom_uniform(area, ratio, left, top, flip=False):
    """The draws that make this zoom: area in [0.35, 1], the stretch, the place in [0, 1)."""
    return np.array([[0.0 if flip else 0.9, (area - 0.35) / 0.65, np.log(ratio) / np.log(4 / 3) / 2 + 0.5, left, top]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_a_zoom_of_everything_gives_the_picture_back(channels, flip):
    pixels = noise(1, 16, channels)
    x = augmented(pixels, np.array([0]), "zoom+flip", 16, zoom_uniform(1, 1, 0.7, 0.2, flip))
    assert np.array_equal(as_pictures(x)[0], pixels[0][:, ::-1] if flip else pixels[0])


def looked_up(picture, box, size):
    """Slow bilinear enlargement of `box`, clamped at its own edge as Pillow does."""
    left, top, right, bottom = box
    out = np.empty((size, size, picture.shape[2]))
    for axis, (low, high) in (("x", (left, right)), ("y", (top, bottom))):
        scale = (high - low) / size
        reach = max(scale, 1.0)
        weights = np.zeros((size, len(picture)))
        for i in range(size):
            middle = low + (i + 0.5) * scale
            at = np.arange(max(0, int(middle - reach + 0.5)), min(len(picture), int(middle + reach + 0.5)))
            weights[i, at] = np.maximum(0, 1 - np.abs((at + 0.5 - middle) / reach))
            weights[i] /= weights[i].sum()
        if axis == "x":
            half = np.einsum("sx,yxc->ysc", weights, picture.astype(float))
        else:
            out = np.einsum("sy,yxc->sxc", weights, half)
    return out


@pytest.mark.parametrize("area, ratio, left, top", [(0.35, 1, 0, 0), (0.5, 1.2, 0.999, 0.5), (0.7, 0.8, 0.3, 0.999)])
def test_a_zoom_is_the_bilinear_look_up_of_its_box(area, ratio, left, top):
    pixels = noise(1, 20)
    wide, high = 20 * np.sqrt(area * ratio), 20 * np.sqrt(area / ratio)
    box = (left * (20 - wide), top * (20 - high), left * (20 - wide) + wide, top * (20 - high) + high)
    x = augmented(pixels, np.array([0]), "zoom", 16, zoom_uniform(area, ratio, left, top))
    assert np.abs(as_pictures(x)[0] - looked_up(pixels[0], box, 16)).max() <= 1.01, "rounded twice to whole numbers"


def test_a_zoom_stays_within_the_picture_whatever_is_drawn():
    corners = np.array(np.meshgrid(*[[0.0, 0.5, 1 - 2**-53]] * 5)).reshape(5, -1).T
    for side in (1, 2, 7, 147):
        pixels = np.full((1, side, side, 3), 200, np.uint8)
        x = augmented(pixels, np.zeros(len(corners), int), "zoom+flip", max(1, side - 1), corners)
        assert (x == 200).all()
    x = augmented(noise(1, 30), np.zeros(300, int), "zoom", 26, random_table(0, 0, np.arange(300), 5))
    assert x.min() >= 0 and x.max() <= 255 and len({row.numpy().tobytes() for row in x}) == 300


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_happens_to_a_picture_does_not_depend_on_its_batch(level, channels):
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
def test_a_picture_is_mirrored_only_where_a_level_says_flip(level):
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


def test_flips_alternate_so_that_two_epochs_in_a_row_show_both_sides():
    ids = np.arange(2000)
    flips = np.stack([augment_random_table(5, epoch, ids)[:, 0] < 0.5 for epoch in range(4)])
    assert np.array_equal(flips[0], ~flips[1]) and np.array_equal(flips[0], flips[2])
    assert 0.45 < flips[0].mean() < 0.55
    assert np.array_equal(augment_random_table(5, 3, ids)[:, 1:], random_table(5, 3, ids, 5)[:, 1:])


@pytest.mark.parametrize("mirrored", [False, True])
def test_views_are_the_picture_its_shifts_and_their_mirror_images(mirrored):
    x = torch.randn(2, 3, 64, 64)
    found = tta_views(x, mirrored)
    assert len(found) == (6 if mirrored else 3) and torch.equal(found[0], x)
    assert all(v.shape == x.shape for v in found)
    assert torch.equal(found[1][..., 2:, 2:], x[..., :-2, :-2]) and torch.equal(found[2][..., :-2, :-2], x[..., 2:, 2:])
    if mirrored:
        assert all(torch.equal(v.flip(-1), m) for v, m in zip(found[:3], found[3:], strict=True))


def test_a_picture_too_small_to_shift_is_seen_once():
    assert len(tta_views(torch.randn(1, 1, 2, 2), True)) == 1


@pytest.mark.parametrize(
    "level, wanted",
    [
        ("light", "zoom+flip"),
        ("medium", "zoom+flip+affine+color"),
        ("strong", "zoom+flip+trivial+erase"),
        ("none", "none"),
        ("flip+erase", "flip+erase"),
    ],
)
def test_levels_are_parts(level, wanted):
    assert resolve_policy(level, stored_size=40, size=32, mirrored=True) == wanted
    assert resolve_policy("strong", stored_size=32, size=32, mirrored=False) == "shift+trivial+erase"
    assert "TrivialAugment" in describe_policy("shift+trivial", 32)
