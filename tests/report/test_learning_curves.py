import math

import pytest
from drawn import has, looks_drawn, pixels

from skipway.report import learning_curves, plot_style


def history(epochs, **changes):
    rows = [
        {
            "epoch": e + 1,
            "train_loss": 0.1 + 2 / (e + 1),
            "val_loss": 0.2 + 2 / (e + 1),
            "train_accuracy": 1 - 0.8 / (e + 1),
            "val_accuracy": 0.95 - 0.8 / (e + 1),
        }
        for e in range(epochs)
    ]
    for column, values in changes.items():
        for row, value in zip(rows, values, strict=False):
            row[column] = value
    return rows


@pytest.mark.parametrize("epochs", [1, 2, 12, 300])
def test_curves_show_both_lines_for_few_and_many_epochs(tmp_path, epochs):
    learning_curves.plot_learning_curves(history(epochs), tmp_path / "new" / "curves.png")
    found = looks_drawn(tmp_path / "new" / "curves.png", 1200, 450)
    assert has(found, plot_style.BLUE) > 60 and has(found, plot_style.VERMILION) > 60
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_curves_bear_what_is_not_a_number(tmp_path):
    rows = history(
        12, val_loss=[math.nan, "nan", 1.0, math.inf, None, 1.0, "x"], val_accuracy=[math.nan] * 12, train_loss=[9e9]
    )
    learning_curves.plot_learning_curves(rows, tmp_path / "a.png")
    assert has(looks_drawn(tmp_path / "a.png"), plot_style.VERMILION) > 60
    learning_curves.plot_learning_curves([{"epoch": 1}, {"epoch": 2}], tmp_path / "b.png")
    looks_drawn(tmp_path / "b.png")
    learning_curves.plot_learning_curves(history(40, val_loss=[1.0, math.nan] * 20), tmp_path / "c.png")
    assert has(looks_drawn(tmp_path / "c.png"), plot_style.VERMILION) > 300, "values between NaNs are dots"


def test_the_best_epoch_can_be_given(tmp_path):
    for name, best in (("own", None), ("same", 12), ("other", 3), ("unknown", 99)):
        learning_curves.plot_learning_curves(history(12), tmp_path / name, best=best)
    own, same, other, unknown = ((tmp_path / n).read_bytes() for n in ("own", "same", "other", "unknown"))
    assert own == same == unknown != other


def test_the_schedule_is_drawn_over_the_run(tmp_path):
    learning_curves.plot_schedule([(i / 99, 0.1 * (1 - i / 99)) for i in range(100)], tmp_path / "a.png")
    assert has(looks_drawn(tmp_path / "a.png"), plot_style.BLUE) > 500
    learning_curves.plot_schedule([(0.0, 0.0), (0.5, math.nan)], tmp_path / "b.png")
    looks_drawn(tmp_path / "b.png")


def test_momentum_is_drawn_below_the_learning_rate_where_it_is_known(tmp_path):
    learning_curves.plot_schedule([(i / 99, 0.1 * (1 - i / 99)) for i in range(100)], tmp_path / "a.png")
    learning_curves.plot_schedule(
        [(i / 99, 0.1 * (1 - i / 99), 0.85 + 0.1 * i / 99) for i in range(100)], tmp_path / "b.png"
    )
    alone, both = looks_drawn(tmp_path / "a.png"), looks_drawn(tmp_path / "b.png")
    assert both.shape[0] > alone.shape[0] + 100
    assert has(both, plot_style.VERMILION) > 300 > has(alone, plot_style.VERMILION)


def test_a_figure_without_data_says_so(tmp_path):
    learning_curves.plot_learning_curves([], tmp_path / "a.png")
    learning_curves.plot_schedule([], tmp_path / "b.png")
    assert all(pixels(tmp_path / f"{n}.png").std() > 5 for n in "ab")
