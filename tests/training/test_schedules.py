import pytest

from skipway.training.schedules import SCHEDULES, anneal, constant, make_schedule, momentum_at, scaled, sequential

POSITIONS = [i / 1000 for i in range(1001)]


def values_of(name):
    return [SCHEDULES[name](p) for p in POSITIONS]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_between_nothing_and_one_and_reaches_one(name):
    values = values_of(name)
    assert max(values) == 1.0 and min(values) >= 0
    assert all(v > 0 for v in values[:-1])


def test_one_cycle_rises_for_a_quarter_and_falls_to_almost_nothing():
    values = values_of("one-cycle")
    assert values[0] == pytest.approx(1 / 25) and values[250] == 1.0 and values[-1] == pytest.approx(1e-4)
    assert values[:251] == sorted(values[:251]) and values[250:] == sorted(values[250:], reverse=True)
    assert values[125] == pytest.approx((1 + 1 / 25) / 2)


def test_cosine_warms_up_shortly_and_falls_to_zero():
    values = values_of("cosine")
    assert values[50] == 1.0 and values[25] == pytest.approx(0.51) and values[-1] == pytest.approx(0)
    assert values[525] == pytest.approx(0.5, abs=1e-6) and values[0] == pytest.approx(0.02)


def test_steps_are_tenths_from_the_middle_and_from_three_quarters_on():
    warm, rest = 0.05, 0.95
    for share, wanted in ((0.1, 1.0), (0.49, 1.0), (0.51, 0.1), (0.74, 0.1), (0.76, 0.01), (1.0, 0.01)):
        assert SCHEDULES["steps"](warm + share * rest) == wanted


def test_flat_cosine_is_flat_and_then_a_cosine():
    values = values_of("flat-cosine")
    assert set(values[:720]) == {1.0} and values[860] == pytest.approx(0.5, abs=1e-3) and values[-1] < 2e-4


def test_constant_is_constant():
    assert {constant(p) for p in POSITIONS} == {1.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_position_past_the_end_is_the_end(name):
    assert SCHEDULES[name](1.2) == SCHEDULES[name](1.0)


def test_schedules_are_put_together_and_scaled():
    up, down = anneal(0.0, 1.0, straight=True), anneal(1.0, 0.5)
    both = sequential((0.2, up), (0.8, scaled(down, 3.0)))
    for p in POSITIONS:
        wanted = up(p / 0.2) if p < 0.2 else 3 * down((p - 0.2) / 0.8)
        assert both(p) == pytest.approx(wanted)


def test_a_frozen_share_has_a_course_of_its_own_and_the_rest_half_of_it():
    whole = make_schedule("one-cycle", 0.25)
    assert [whole(0.25 * p) for p in POSITIONS[:-1]] == pytest.approx(values_of("one-cycle")[:-1])
    assert [whole(0.25 + 0.75 * p) for p in POSITIONS] == pytest.approx([v / 2 for v in values_of("one-cycle")])
    assert make_schedule("cosine") is SCHEDULES["cosine"]


def test_momentum_moves_against_the_rate_of_one_cycle_alone():
    assert momentum_at("one-cycle", 0.9, 1.0) == 0.9 and momentum_at("one-cycle", 0.9, 0.0) == pytest.approx(0.95)
    assert momentum_at("one-cycle", 0.0, 0.5) == 0.25
    assert {momentum_at(name, 0.9, 0.1) for name in SCHEDULES if name != "one-cycle"} == {0.9}
