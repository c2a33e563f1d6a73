import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from drawn import has, looks_drawn, pixels
from PIL import Image
from processes import run_python

from skipway.errors import InputError
from skipway.report import learning_curves

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "=cmd()",
    "\x1b[2J",
    "two\nlines",
    "$\\frac{",
    "\U0001f9ff bead",
    "ab\u200fcd",
    "x" * 255,
    "\udcff",
    "猫",
    "犬",
    "عربي",
    "$a$",
    "\\$\\",
    "",
    "e\u0301",
    "%s {0}",
]


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
    learning_curves.curves(history(epochs), tmp_path / "new" / "curves.png")
    found = looks_drawn(tmp_path / "new" / "curves.png", 1200, 450)
    assert has(found, learning_curves.BLUE) > 60 and has(found, learning_curves.VERMILION) > 60
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_curves_bear_what_is_not_a_number(tmp_path):
    rows = history(
        12, val_loss=[math.nan, "nan", 1.0, math.inf, None, 1.0, "x"], val_accuracy=[math.nan] * 12, train_loss=[9e9]
    )
    learning_curves.curves(rows, tmp_path / "a.png")
    assert has(looks_drawn(tmp_path / "a.png"), learning_curves.VERMILION) > 60
    learning_curves.curves([{"epoch": 1}, {"epoch": 2}], tmp_path / "b.png")
    looks_drawn(tmp_path / "b.png")
    learning_curves.curves(history(40, val_loss=[1.0, math.nan] * 20), tmp_path / "c.png")
    assert has(looks_drawn(tmp_path / "c.png"), learning_curves.VERMILION) > 300, "values between NaNs are dots"


def test_the_best_epoch_can_be_given(tmp_path):
    for name, best in (("own", None), ("same", 12), ("other", 3), ("unknown", 99)):
        learning_curves.curves(history(12), tmp_path / name, best=best)
    own, same, other, unknown = ((tmp_path / n).read_bytes() for n in ("own", "same", "other", "unknown"))
    assert own == same == unknown != other


def test_the_schedule_is_drawn_over_the_run(tmp_path):
    learning_curves.schedule([(i / 99, 0.1 * (1 - i / 99)) for i in range(100)], tmp_path / "a.png")
    assert has(looks_drawn(tmp_path / "a.png"), learning_curves.BLUE) > 500
    learning_curves.schedule([(0.0, 0.0), (0.5, math.nan)], tmp_path / "b.png")
    looks_drawn(tmp_path / "b.png")


def test_momentum_is_drawn_below_the_learning_rate_where_it_is_known(tmp_path):
    learning_curves.schedule([(i / 99, 0.1 * (1 - i / 99)) for i in range(100)], tmp_path / "a.png")
    learning_curves.schedule(
        [(i / 99, 0.1 * (1 - i / 99), 0.85 + 0.1 * i / 99) for i in range(100)], tmp_path / "b.png"
    )
    alone, both = looks_drawn(tmp_path / "a.png"), looks_drawn(tmp_path / "b.png")
    assert both.shape[0] > alone.shape[0] + 100
    assert has(both, learning_curves.VERMILION) > 300 > has(alone, learning_curves.VERMILION)


@pytest.mark.parametrize("num_classes", [1, 2, 10, 25, 26, 60, 61, 120, 300])
def test_a_confusion_matrix_of_any_size_is_readable(tmp_path, num_classes):
    matrix = np.full((num_classes, num_classes), 1) + 50 * np.eye(num_classes, dtype=int)
    learning_curves.confusion(matrix, [f"class {i}" for i in range(num_classes)], tmp_path / "m.png")
    found = looks_drawn(tmp_path / "m.png")
    assert max(found.shape) < 1800


def test_right_is_blue_and_wrong_is_orange_and_an_empty_class_is_grey(tmp_path):
    learning_curves.confusion(np.array([[5, 0, 0], [5, 0, 0], [0, 0, 0]]), ["a", "b", "c"], tmp_path / "m.png")
    found = looks_drawn(tmp_path / "m.png")
    for color in ("#00395c", "#7a3300", learning_curves.EMPTY):
        assert has(found, color) > 2000


def test_a_matrix_that_does_not_fit_its_names_is_refused(tmp_path):
    with pytest.raises(InputError, match="the confusion matrix is 2 x 3, expected 2 x 2 for the 2 class names given"):
        learning_curves.confusion(np.zeros((2, 3)), ["a", "b"], tmp_path / "m.png")
    with pytest.raises(InputError, match="the confusion matrix is 0, expected 0 x 0"):
        learning_curves.confusion(np.zeros(0), [], tmp_path / "m.png")


@pytest.mark.parametrize("num_classes", [1, 10, 120])
def test_class_bars_show_every_split_and_at_most_forty_classes(tmp_path, num_classes):
    counts = {f"class {i}": {"train": 100 + i, "val": 20, "test": 30, "extra": 9} for i in range(num_classes)}
    learning_curves.classes(counts, tmp_path / "c.png")
    found = looks_drawn(tmp_path / "c.png")
    assert found.shape[0] < 1800
    for color in (learning_curves.BLUE, learning_curves.VERMILION, learning_curves.GREEN, learning_curves.PURPLE):
        assert has(found, color) > 300


def test_class_bars_bear_odd_counts(tmp_path):
    learning_curves.classes({"a": {"train": 0}, "b": {}, "c": {"val": math.nan, "train": -1}}, tmp_path / "c.png")
    looks_drawn(tmp_path / "c.png", height=100)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (32, 20, 3), (400, 700, 3), (1, 90, 3)])
def test_a_sheet_shows_pictures_of_every_size(tmp_path, shape):
    rng = np.random.default_rng(0)
    learning_curves.sheet(
        [rng.integers(0, 255, shape, dtype=np.uint8)] * 11, [f"no {i}" for i in range(11)], tmp_path / "s.png", 4
    )
    looks_drawn(tmp_path / "s.png", 700, 600)


def test_a_small_picture_is_enlarged_without_blur(tmp_path):
    board = (np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8)
    learning_curves.sheet([board], [""], tmp_path / "s.png")
    found = pixels(tmp_path / "s.png")[20:150, 20:150]
    assert ((found == 0) | (found == 255)).mean() > 0.97


def test_a_figure_without_data_says_so(tmp_path):
    learning_curves.curves([], tmp_path / "a.png")
    learning_curves.schedule([], tmp_path / "b.png")
    learning_curves.classes({}, tmp_path / "c.png")
    learning_curves.sheet([], [], tmp_path / "d.png")
    assert all(pixels(tmp_path / f"{n}.png").std() > 5 for n in "abcd")


def test_hostile_names_are_drawn_without_a_warning(tmp_path):
    n = len(HOSTILE)
    learning_curves.confusion(np.eye(n) * 3 + 1, HOSTILE, tmp_path / "m.png")
    learning_curves.classes({name: {"train": 5, name: 2} for name in HOSTILE}, tmp_path / "c.png")
    learning_curves.sheet([np.zeros((8, 8), np.uint8)] * n, HOSTILE, tmp_path / "s.png")
    for name in "mcs":
        looks_drawn(tmp_path / f"{name}.png")


def test_a_name_is_drawn_as_plain_text():
    assert learning_curves._safe("$\\frac{") == "\\$\\frac{"
    assert learning_curves._safe("\U0001f9ff a\x1b\udcff") == "□ a\\x1b\\udcff"
    assert learning_curves._labels(["a" * 200, "a" * 199, "b"]) == [
        "aaaaaaaaaaaa…aaaaaaaaaaa #0",
        "aaaaaaaaaaaa…aaaaaaaaaaa #1",
        "b",
    ]


def test_long_text_is_shortened_in_the_middle():
    assert learning_curves.shorten("a very long name of a class", 12) == "a very…class"
    assert learning_curves.shorten("short") == "short"
    assert all(len(learning_curves.shorten("x" * 99, width)) == width for width in range(2, 60))


def test_equal_values_are_equal_files_from_any_thread(tmp_path):
    names = [f"class {i}" for i in range(6)]

    def draw(index):
        learning_curves.curves(history(5), tmp_path / f"c{index}.png")
        learning_curves.confusion(np.eye(6) + index * 0, names, tmp_path / f"m{index}.png")
        return (tmp_path / f"c{index}.png").read_bytes(), (tmp_path / f"m{index}.png").read_bytes()

    with ThreadPoolExecutor(4) as pool:
        assert len({draw(9), *pool.map(draw, range(4))}) == 1
    with Image.open(tmp_path / "c0.png") as image:
        assert set(image.info) == {"dpi"}


def test_pyplot_is_never_loaded():
    code = (
        "import sys, skipway.report.learning_curves, skipway.report.html; sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert run_python(code).returncode == 0
