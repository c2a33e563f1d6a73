import pytest

from skipway.training.schedule import SCHEDULES, constant, cosine, one_cycle

POSITIONS = [i / 1000 for i in range(1001)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_stays_between_nothing_and_one_and_reaches_one(name):
    values = [SCHEDULES[name](p) for p in POSITIONS]
    assert max(values) == 1.0 and min(values) >= 0
    assert all(v > 0 for v in values[:-1])


def test_one_cycle_rises_for_a_quarter_and_falls_to_almost_nothing():
    values = [one_cycle(p) for p in POSITIONS]
    assert values[0] == pytest.approx(1 / 25) and values[250] == 1.0 and values[-1] == pytest.approx(1e-4)
    assert values[:251] == sorted(values[:251]) and values[250:] == sorted(values[250:], reverse=True)
    assert one_cycle(0.125) == pytest.approx((1 + 1 / 25) / 2)


def test_cosine_warms_up_shortly_and_falls_to_zero():
    values = [cosine(p) for p in POSITIONS]
    assert values[50] == 1.0 and values[25] == pytest.approx(0.5) and values[-1] == pytest.approx(0)
    assert cosine(0.525) == pytest.approx(0.5) and cosine(0) > 0


def test_constant_is_constant():
    assert {constant(p) for p in POSITIONS} == {1.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_position_past_the_end_is_the_end(name):
    assert SCHEDULES[name](1.2) == SCHEDULES[name](1.0)
