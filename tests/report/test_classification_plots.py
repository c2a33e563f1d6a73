import math

import numpy as np
import pytest
from drawn import has, looks_drawn, pixels

from skipway.errors import InputError
from skipway.report import classification_plots, plot_style

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


@pytest.mark.parametrize("num_classes", [1, 2, 10, 25, 26, 60, 61, 120, 300])
def test_a_confusion_matrix_of_any_size_is_readable(tmp_path, num_classes):
    matrix = np.full((num_classes, num_classes), 1) + 50 * np.eye(num_classes, dtype=int)
    classification_plots.plot_confusion_matrix(matrix, [f"class {i}" for i in range(num_classes)], tmp_path / "m.png")
    found = looks_drawn(tmp_path / "m.png")
    assert max(found.shape) < 1800


def test_right_is_blue_and_wrong_is_orange_and_an_empty_class_is_gray(tmp_path):
    classification_plots.plot_confusion_matrix(
        np.array([[5, 0, 0], [5, 0, 0], [0, 0, 0]]), ["a", "b", "c"], tmp_path / "m.png"
    )
    found = looks_drawn(tmp_path / "m.png")
    for color in ("#00395c", "#7a3300", plot_style.EMPTY):
        assert has(found, color) > 2000


def test_a_matrix_that_does_not_fit_its_names_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected 2 x 2 counts for 2 class names, got 2 x 3"):
        classification_plots.plot_confusion_matrix(np.zeros((2, 3)), ["a", "b"], tmp_path / "m.png")
    with pytest.raises(InputError, match="expected 0 x 0 counts for 0 class names, got 0"):
        classification_plots.plot_confusion_matrix(np.zeros(0), [], tmp_path / "m.png")


@pytest.mark.parametrize("num_classes", [1, 10, 120])
def test_class_bars_show_every_split_and_at_most_forty_classes(tmp_path, num_classes):
    counts = {f"class {i}": {"train": 100 + i, "val": 20, "test": 30, "extra": 9} for i in range(num_classes)}
    classification_plots.plot_class_counts(counts, tmp_path / "c.png")
    found = looks_drawn(tmp_path / "c.png")
    assert found.shape[0] < 1800
    for color in (plot_style.BLUE, plot_style.VERMILION, plot_style.GREEN, plot_style.PURPLE):
        assert has(found, color) > 300


def test_class_bars_handle_odd_counts(tmp_path):
    classification_plots.plot_class_counts(
        {"a": {"train": 0}, "b": {}, "c": {"val": math.nan, "train": -1}}, tmp_path / "c.png"
    )
    looks_drawn(tmp_path / "c.png", height=100)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (32, 20, 3), (400, 700, 3), (1, 90, 3)])
def test_a_sheet_shows_images_of_every_size(tmp_path, shape):
    rng = np.random.default_rng(0)
    classification_plots.plot_image_grid(
        [rng.integers(0, 255, shape, dtype=np.uint8)] * 11, [f"no {i}" for i in range(11)], tmp_path / "s.png", 4
    )
    looks_drawn(tmp_path / "s.png", 700, 600)


def test_a_small_image_is_enlarged_without_blur(tmp_path):
    board = (np.indices((4, 4)).sum(0) % 2 * 255).astype(np.uint8)
    classification_plots.plot_image_grid([board], [""], tmp_path / "s.png")
    found = pixels(tmp_path / "s.png")[20:150, 20:150]
    assert ((found == 0) | (found == 255)).mean() > 0.97


def test_a_figure_without_data_says_so(tmp_path):
    classification_plots.plot_class_counts({}, tmp_path / "c.png")
    classification_plots.plot_image_grid([], [], tmp_path / "d.png")
    assert all(pixels(tmp_path / f"{n}.png").std() > 5 for n in "cd")


def test_hostile_names_are_drawn_without_a_warning(tmp_path):
    n = len(HOSTILE)
    classification_plots.plot_confusion_matrix(np.eye(n) * 3 + 1, HOSTILE, tmp_path / "m.png")
    classification_plots.plot_class_counts({name: {"train": 5, name: 2} for name in HOSTILE}, tmp_path / "c.png")
    classification_plots.plot_image_grid([np.zeros((8, 8), np.uint8)] * n, HOSTILE, tmp_path / "s.png")
    for name in "mcs":
        looks_drawn(tmp_path / f"{name}.png")
