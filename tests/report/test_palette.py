"""Contrast of every text of reports and plots with its ground, in light and dark."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from skipway.report import classification_plots, plot_style
from skipway.report.palette import PALETTE, SERIES, TEXT, contrast, css_variables, mix
from skipway.report.svg_figures import _LEVELS, cell_opacity

LEAST = 4.5  # of text, WCAG 2.2 level AA
TEMPLATES = Path(plot_style.__file__).parent / "templates"


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "soft", "note"])
@pytest.mark.parametrize("text", TEXT)
def test_text_is_readable_on_every_ground(text, ground, theme):
    assert contrast(PALETTE[text][theme], PALETTE[ground][theme]) >= LEAST


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_counts_are_readable_on_every_cell_of_a_confusion_matrix(theme):
    ink, empty = PALETTE["ink"][theme], PALETTE["soft"][theme]
    for color in ("right", "wrong"):
        for level in range(1, _LEVELS + 1):
            assert contrast(ink, mix(PALETTE[color][theme], empty, cell_opacity(level))) >= LEAST
    assert contrast(ink, PALETTE["bar"][theme]) >= LEAST


def test_counts_are_readable_on_every_cell_of_the_png():
    for colors in (classification_plots.RIGHT, classification_plots.WRONG):
        for share in np.linspace(0, 1, 50):
            assert max(contrast(text, to_hex(colors(share))) for text in ("#000000", plot_style.GROUND)) >= LEAST


def test_labels_of_the_plots_are_readable():
    for name in ("INK", "MUTED", "BLUE", "VERMILION", "GREEN", "PURPLE"):
        assert contrast(getattr(plot_style, name), plot_style.GROUND) >= LEAST
    assert all(name in TEXT for name in SERIES)


def test_contrast_is_that_of_the_guidelines():
    assert contrast("#ffffff", "#ffffff") == 1 and contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


def test_every_text_color_of_the_stylesheet_is_tested():
    style = (TEMPLATES / "style.html").read_text()
    assert set(re.findall(r"(?<![-\w])color: var\(--(\w+)\)", style)) <= set(TEXT)
    text_rules = re.findall(r"^\.chart (?:text|\.[tk]) \{ fill: var\(--(\w+)\)", style, re.M)
    assert len(text_rules) == 3 and set(text_rules) <= set(TEXT)
    used = set(re.findall(r"var\(--(\w+)\)", style)) - {"sans", "mono", "share", "low", "high", "w"}
    assert used <= set(PALETTE) and not re.findall(r"#[0-9a-f]{6}", style)


def test_both_themes_define_every_variable():
    for dark in (False, True):
        assert re.findall(r"--(\w+): #", css_variables(dark=dark)) == list(PALETTE)
