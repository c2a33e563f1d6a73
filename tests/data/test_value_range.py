import numpy as np
import pytest

from skipway.data.value_range import compute_range, describe_range, levels_of, stored_pixels, to_levels, viewable
from skipway.errors import InputError


def test_the_range_leaves_out_hot_pixels_and_missing_values():
    generator = np.random.default_rng(0)
    images = [generator.integers(100, 220, (64, 64, 2), dtype=np.uint16) for _ in range(10)]
    images[3][5, 7] = 65535
    assert compute_range(images, channels=2) == ((100.0, 219.0), (100.0, 219.0))
    floats = [image.astype(np.float32) / 1000 for image in images]
    floats[0][0, :2] = np.nan, np.inf
    floats[1][:32] = np.finfo(np.float32).min, np.float32(3.4e38)
    (low, high), second = compute_range(floats, channels=2)
    assert low == pytest.approx(0.1, abs=1e-3) and high == pytest.approx(0.219, abs=1e-3) and second[1] < 0.22


@pytest.mark.parametrize("value", [0, -7, 65535])
def test_equal_values_have_a_range_that_can_be_used(value):
    assert compute_range([np.full((4, 4, 1), value, np.int32)], channels=1) == ((value, value + 1),)


def test_few_bright_values_on_black_keep_their_range():
    image = np.zeros((100, 100, 20), np.uint16)
    image[3, 5] = 900  # one pixel of ten thousand
    ((low, high),) = compute_range([image[:, :, :1]] * 3, channels=1)
    assert low == 0 and 0 < high <= 900
    blank = [np.zeros((100, 100, 1), np.uint16)] * 9
    assert compute_range([*blank, image[:, :, :1]], channels=1) == ((0, 900),), "rarer than the percentile"
    assert compute_range([np.zeros((4, 4, 1), np.uint16)], channels=1) == ((0, 1),)


def test_no_images_have_the_unit_range():
    assert compute_range([], channels=2) == ((0, 1), (0, 1))


def test_levels_are_linear_and_clipped():
    values = np.array([[[90], [100], [160], [220], [500]]], np.uint16)
    levels, any_missing = to_levels(values, ((100.0, 220.0),))
    np.testing.assert_allclose(levels.ravel(), [0, 0, 127.5, 255, 255])
    assert levels.dtype == np.float32 and not any_missing


def test_missing_values_become_black_and_infinite_ones_keep_their_sign():
    values = np.array([[[np.nan], [np.inf], [-np.inf], [0.5], [3.4e38], [-3.4e38]]], np.float32)
    levels, any_missing = to_levels(values, ((0.0, 1.0),))
    np.testing.assert_allclose(levels.ravel(), [0, 255, 0, 127.5, 0, 0])
    assert any_missing


def test_large_integers_keep_their_differences():
    values = np.array([[[2**31 - 3], [2**31 - 2], [2**31 - 1]]], np.int64)
    levels, _ = to_levels(values, ((2.0**31 - 3, 2.0**31 - 1),))
    np.testing.assert_allclose(levels.ravel(), [0, 127.5, 255])


def test_stored_pixels_keep_levels_and_bytes():
    levels = np.linspace(0, 255, 1001, dtype=np.float32).reshape(-1, 1)
    assert np.abs(levels_of(stored_pixels(levels)) - levels).max() <= 0.5 / 257 + 1e-5
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(levels_of(stored_pixels(pixels)), pixels)
    assert levels_of(pixels) is pixels
    np.testing.assert_array_equal(stored_pixels(np.float32([-3, 300])), [0, 65535])


@pytest.mark.parametrize("channels, shown", [(1, 1), (2, 1), (3, 3), (5, 3), (16, 3)])
def test_any_number_of_channels_can_be_shown(channels, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, channels), dtype=np.uint8)
    np.testing.assert_array_equal(viewable(pixels), pixels[..., :shown])
    np.testing.assert_array_equal(viewable(stored_pixels(pixels)), pixels[..., :shown])


def test_a_range_is_described_per_channel_if_they_differ():
    assert describe_range(((0.0, 1.0), (0.0, 1.0))) == "values from 0 to 1"
    assert describe_range(((0.0, 1.5), (-100.0, 8848.0))) == "values from 0 to 1.5, -100 to 8848"


def test_wrong_ranges_are_refused():
    from skipway.data.value_range import checked_range

    for wrong in ([1], "ab", None, [[0, 1], [0, 1]], [[1, 1]], [[0, float("nan")]], [[-1e308, 1e308]], 5):
        with pytest.raises(InputError, match="cannot use a value range: expected one finite pair .low, high. with low"):
            checked_range(wrong, 1)
