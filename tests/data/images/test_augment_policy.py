import numpy as np
import pytest

from skipway.data.images.augment_policy import (
    augment_random_table,
    describe_policy,
    random_table,
    resolve_policy,
)


def test_draws_are_uniform_and_unrelated():
    table = random_table(7, 3, np.arange(50_000), 5)
    assert table.shape == (50_000, 5) and table.min() >= 0 and table.max() < 1
    assert np.abs(table.mean(axis=0) - 0.5).max() < 0.008 and np.abs(table.var(axis=0) - 1 / 12).max() < 0.002
    for column in table.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 2500) ** 2 / 2500).sum() < 55, "chi-squared with 19 degrees of freedom, 1 in 50,000"
        assert abs(np.corrcoef(column[:-1], column[1:])[0, 1]) < 0.02, "neighbouring images"
    between = np.corrcoef(table.T) - np.eye(5)
    assert np.abs(between).max() < 0.02, "columns of one image"


@pytest.mark.parametrize("other", [(7, 4), (8, 3), (0, 0), (3, 7), (2**63, 3)])
def test_another_epoch_or_seed_draws_anew(other):
    ids = np.arange(20_000)
    one, two = random_table(7, 3, ids, 2), random_table(*other, ids, 2)
    assert np.abs(np.corrcoef(one.T, two.T)[:2, 2:]).max() < 0.03 and not np.isclose(one, two).all(axis=1).any()


def test_draws_are_a_pure_function_of_seed_epoch_and_image():
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

    for seed, epoch, image in [(0, 0, 0), (7, 3, 49_999), (2**63, 10**6, 2**40)]:
        state = stir((stir((seed * golden + epoch) & mask) + golden * (image + 1)) & mask)
        wanted = [(stir((state + golden * (column + 1)) & mask) >> 11) / 2**53 for column in range(3)]
        assert random_table(seed, epoch, np.array([image]), 3)[0].tolist() == wanted


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


def test_flips_alternate_so_that_two_epochs_in_a_row_show_both_sides():
    ids = np.arange(2000)
    flips = np.stack([augment_random_table(5, epoch, ids)[:, 0] < 0.5 for epoch in range(4)])
    assert np.array_equal(flips[0], ~flips[1]) and np.array_equal(flips[0], flips[2])
    assert 0.45 < flips[0].mean() < 0.55
    assert np.array_equal(augment_random_table(5, 3, ids)[:, 1:], random_table(5, 3, ids, 5)[:, 1:])


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
    for channels, text in ((1, "brightness, contrast and saturation"), (5, "without saturation, which needs RGB")):
        assert text in describe_policy("shift+color", 32, channels)
    assert "TrivialAugment, without saturation, which needs RGB" in describe_policy("shift+trivial", 32, 2)
