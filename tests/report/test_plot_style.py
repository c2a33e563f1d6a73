from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image
from processes import run_python

from skipway.report import classification_plots, learning_curves, plot_style

HISTORY = [
    {
        "epoch": epoch,
        "train_loss": 0.1 + 2 / epoch,
        "val_loss": 0.2 + 2 / epoch,
        "train_accuracy": 1 - 0.8 / epoch,
        "val_accuracy": 0.95 - 0.8 / epoch,
    }
    for epoch in range(1, 6)
]


def test_a_name_is_drawn_as_plain_text():
    assert plot_style.drawable_text("$\\frac{") == "\\$\\frac{"
    assert plot_style.drawable_text("\U0001f9ff a\x1b\udcff") == "□ a\\x1b\\udcff"
    assert plot_style.unique_labels(["a" * 200, "a" * 199, "b"]) == [
        "aaaaaaaaaaaa…aaaaaaaaaaa #0",
        "aaaaaaaaaaaa…aaaaaaaaaaa #1",
        "b",
    ]


def test_long_text_is_shortened_in_the_middle():
    assert plot_style.shorten("a very long name of a class", 12) == "a very…class"
    assert plot_style.shorten("short") == "short"
    assert all(len(plot_style.shorten("x" * 99, width)) == width for width in range(2, 60))


def test_equal_values_are_equal_files_from_any_thread(tmp_path):
    names = [f"class {i}" for i in range(6)]

    def draw(index):
        learning_curves.plot_learning_curves(HISTORY, tmp_path / f"c{index}.png")
        classification_plots.plot_confusion_matrix(np.eye(6) + index * 0, names, tmp_path / f"m{index}.png")
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
