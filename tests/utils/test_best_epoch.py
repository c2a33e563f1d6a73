import pytest

from skipway.utils.best_epoch import FEW_SAMPLES, best_epoch, is_best_so_far

LUCKY = [(1.0, 0.69), (0.5, 0.68), (0.75, 0.6), (0.75, 0.5), (0.75, 0.4), (0.75, 0.45)]  # 4 images, chance is 50%


def rows(pairs, metric="accuracy"):
    return [{"epoch": i + 1, f"val_{metric}": a, "val_loss": b} for i, (a, b) in enumerate(pairs)]


@pytest.mark.parametrize(
    "pairs, count, expected",
    [
        ([], 4, 0),
        ([(0.5, 1.0)], 4, 1),
        # With many samples: the highest accuracy, of equal ones the lowest loss, of equal losses the first.
        ([(0.5, 1.0), (0.8, 0.5), (0.7, 0.4)], 1000, 2),
        ([(0.8, 0.6), (0.8, 0.5), (0.8, 0.55)], 1000, 2),
        ([(0.8, 0.5), (0.8, 0.5)], 1000, 1),
        ([(0.801, 0.5), (0.8, 0.1)], 1000, 1),
        # With few: luck in the first epoch does not count, however many the images that were right.
        (LUCKY[:1], 4, 1),
        (LUCKY[:2], 4, 2),
        (LUCKY, 4, 6),
        (LUCKY, FEW_SAMPLES, 1),
        # A single jump in the middle does not count either; a plateau does.
        ([(0.5, 1.0), (0.5, 1.0), (0.5, 1.0), (0.9, 1.0), (0.5, 1.0), (0.8, 0.5), (0.8, 0.5), (0.8, 0.5)], 50, 8),
        # A loss that rises while the accuracy stays: the earlier epoch stays.
        ([(0.5, 1.0), (0.8, 0.5), (0.8, 0.5), (0.8, 0.5), (0.8, 0.9), (0.8, 0.9)], 50, 4),
        # An accuracy that falls by more than a sample is not made up for by a lower loss.
        ([(0.9, 0.5), (0.9, 0.5), (0.9, 0.5), (0.8, 0.4), (0.8, 0.4), (0.8, 0.4)], 50, 3),
    ],
)
def test_the_best_epoch_is_the_one_that_the_rule_names(pairs, count, expected):
    assert best_epoch(rows(pairs), "accuracy", count) == expected


def test_a_number_is_chosen_by_its_smoothed_curve_without_a_tolerance():
    curve = [(0.1, 0.9), (0.5, 0.5), (0.5, 0.5), (0.9, 0.1), (0.1, 0.9), (0.6, 0.4), (0.61, 0.4), (0.62, 0.39)]
    assert best_epoch(rows(curve, "r2"), "r2", 50) == 4  # 0.5, 0.5 and 0.9: 0.63 on average
    assert best_epoch(rows([*curve, (0.7, 0.3)], "r2"), "r2", 50) == 9


def test_the_choice_at_an_epoch_needs_no_more_than_the_rows_and_the_choice_before():
    history = rows(LUCKY)
    best = 0
    for end in range(1, len(history) + 1):
        assert best_epoch(history[:end], "accuracy", 4) in (best, end)
        best = end if is_best_so_far(history[:end], best, "accuracy", 4) else best
    assert best == 6


@pytest.mark.parametrize(
    "pairs, expected",
    [
        ([(0.9, 0.5), (0.9, 0.6)], 1),
        ([(0.9, 0.5), (0.85, 0.4), (0.9, 0.6), (0.9, 0.55)], 1),
        ([(0.9, 0.5), (0.9, 0.4)], 2),
        ([(0.9, 0.5), (0.94, 0.5), (0.8, 0.7), (0.8, 0.7)], 2),
        ([(0.9, 0.5), (0.8, 0.7), (0.99, 0.5), (0.99, 0.5)], 4),  # 0.8 and 0.99: 0.895 on average
    ],
)
def test_a_fitted_head_stays_until_fine_tuning_is_better(pairs, expected):
    history = [{**row, "lr": 0.0 if row["epoch"] == 1 else 0.1} for row in rows(pairs)]
    assert best_epoch(history, "accuracy", 50) == expected
