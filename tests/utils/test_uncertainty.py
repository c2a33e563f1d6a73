import numpy as np
import pytest

from skipway.utils.uncertainty import difference_floor, exceeds_share, jitter, r2_interval, share_noise, wilson_interval


def test_the_interval_is_wilsons():
    assert wilson_interval(0.9, 100) == pytest.approx((0.82563, 0.94477), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)


def test_the_interval_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for right, count in ((1, 4), (3, 4), (88, 97), (500, 1000)):
        expected = stats.binomtest(right, count).proportion_ci(method="wilson")
        assert wilson_interval(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_the_interval_of_r2_covers_the_truth_in_95_of_100_draws():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2000):
        x = rng.standard_normal(60)
        y = x + rng.standard_normal(60)  # R2 is 0.5
        low, high = r2_interval(np.corrcoef(x, y)[0, 1] ** 2, 60)
        covered.append(low <= 0.5 <= high)
    assert 0.93 < np.mean(covered) < 0.97
    assert r2_interval(0.9, 4) == (-1.0, 1.0)
    assert r2_interval(0.03, 60)[0] < 0 < r2_interval(0.3, 60)[0] and r2_interval(-0.3, 60)[0] < -0.3
    assert r2_interval(1.0, 60)[1] == pytest.approx(1.0)


def test_the_floor_of_a_difference_is_newcombes():
    # Newcombe 1998, table II, method 10: 56 of 70 against 48 of 80, from 0.0524 to 0.3339.
    first, second = wilson_interval(56 / 70, 70), wilson_interval(48 / 80, 80)
    assert difference_floor(56 / 70, first[0], 48 / 80, second[1]) == pytest.approx(0.0524, abs=1e-4)


def test_the_noise_of_a_share_is_never_nothing():
    assert share_noise(1.0, 4) == pytest.approx(0.1863, abs=1e-4)
    assert share_noise(0.5, 10_000) == pytest.approx(0.005, abs=1e-5)


def test_the_jitter_is_that_of_the_noise_and_not_of_the_trend():
    rng = np.random.default_rng(1)
    noise = 0.02 * rng.standard_normal(2000)
    trend = np.linspace(0, 5, 2000)
    assert jitter(list(trend)) == pytest.approx(0, abs=1e-12)
    assert jitter(list(trend + noise)) == pytest.approx(0.02, rel=0.1)
    noise[::100] += 3  # a few jumps do not count
    assert jitter(list(trend + noise)) == pytest.approx(0.02, rel=0.2)
    assert jitter([0.1, 0.9, 0.1]) == 0


def test_a_share_is_exceeded_if_the_exact_test_says_so():
    stats = pytest.importorskip("scipy.stats")
    for right, count, share in ((4, 4, 0.5), (6, 6, 0.5), (28, 40, 0.5), (26, 40, 0.5), (990, 1000, 0.97)):
        low, tail = wilson_interval(right / count, count)[0], stats.binomtest(right, count, share, "greater").pvalue
        assert exceeds_share(right / count, count, share) == (low > share and tail < 0.025)
    assert not exceeds_share(1.0, 4, 0.5) and exceeds_share(0.52, 10_000, 0.5) and not exceeds_share(0.5, 9_999, 0.5)
