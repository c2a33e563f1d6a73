"""Plots of landscapes: drawn whole, with what matters in them, whatever the values."""

import copy
import math

import numpy as np
import pytest
from drawn import has, looks_drawn, pixels

from skipway.errors import InputError
from skipway.report import loss_landscape_plot, plot_style

HOSTILE = ["<img src=x>", "two\nlines", "$\\frac{", "x" * 255, "猫", "%s {0}", "$a$", ""]


def landscape_of(dims=1, points=21, sharp=1.0, accuracies=True):
    steps = np.linspace(-1, 1, points)
    losses = 0.1 + sharp * (steps**2 if dims == 1 else steps[:, None] ** 2 + 0.5 * steps**2)
    return {
        "seed": 0,
        "steps": steps.tolist(),
        "losses": losses.tolist(),
        "curvature": 2.0 * sharp,
        "nonconvex": 0.0,
        "accuracies": np.exp(-losses).tolist() if accuracies else None,
    }


@pytest.mark.parametrize("accuracies", [True, False])
@pytest.mark.parametrize("sharp", [1.0, 1e6])
def test_slices_of_several_networks_lie_in_one_image(tmp_path, accuracies, sharp):
    found = {"residual": landscape_of(accuracies=accuracies), "plain": landscape_of(sharp=sharp, accuracies=accuracies)}
    loss_landscape_plot.plot_loss_landscape(found, tmp_path / "l.png")
    image = looks_drawn(tmp_path / "l.png", 1200, 450)
    assert min(has(image, plot_style.BLUE), has(image, plot_style.VERMILION)) > 400


@pytest.mark.parametrize("count", [1, 3, 7])
def test_squares_stand_side_by_side_with_one_scale(tmp_path, count):
    loss_landscape_plot.plot_loss_landscape(
        {f"network {i}": landscape_of(2, 9, 1.0 + i) for i in range(count)}, tmp_path / "l.png"
    )
    looks_drawn(tmp_path / "l.png", 600, 400)


def test_equal_losses_have_equal_colors_in_every_square(tmp_path):
    same, other = landscape_of(2, 9), landscape_of(2, 9, sharp=20.0)
    loss_landscape_plot.plot_loss_landscape({"a": same, "b": same}, tmp_path / "twins.png")
    loss_landscape_plot.plot_loss_landscape({"a": same, "b": other}, tmp_path / "pair.png")
    twins, pair = (pixels(tmp_path / f"{name}.png") for name in ("twins", "pair"))
    left = twins[80:400, 150:500], twins[80:400, 726:1076]
    assert np.abs(left[0] - left[1]).mean() < 2
    assert np.abs(twins[80:400, 150:500] - pair[80:400, 150:500]).mean() > 10  # the scale is that of both


@pytest.mark.parametrize("dims, value", [(1, None), (1, 0.0), (1, -5.0), (2, None), (2, math.inf), (2, 1e30)])
def test_a_landscape_bears_gaps_and_extremes(tmp_path, dims, value):
    rough = landscape_of(dims, 9)
    for place in (0, 1, 4):
        rough["losses"][place] = value if dims == 1 else [value] * 9
    rough["curvature"] = rough["nonconvex"] = None
    loss_landscape_plot.plot_loss_landscape({"rough": rough, "whole": landscape_of(dims, 9)}, tmp_path / "l.png")
    found = looks_drawn(tmp_path / "l.png")
    assert dims == 1 or value not in (None, math.inf) or has(found, plot_style.EMPTY) > 5000
    every = copy.deepcopy(rough)
    every["losses"] = [value if dims == 1 else [value] * 9] * 9
    loss_landscape_plot.plot_loss_landscape({"flat": every, "whole": landscape_of(dims, 9)}, tmp_path / "l.png")
    loss_landscape_plot.plot_loss_landscape({"flat": every}, tmp_path / "l.png")
    assert pixels(tmp_path / "l.png").std() > 3


def test_lines_and_squares_are_not_mixed(tmp_path):
    with pytest.raises(InputError, match="cannot plot landscapes of one and of two directions together"):
        loss_landscape_plot.plot_loss_landscape({"a": landscape_of(1), "b": landscape_of(2)}, tmp_path / "l.png")


def test_a_image_without_data_says_so(tmp_path):
    loss_landscape_plot.plot_loss_landscape({}, tmp_path / "d.png")
    empty = {**landscape_of(2, 3), "losses": [[None] * 3] * 3}
    loss_landscape_plot.plot_loss_landscape({"n": empty}, tmp_path / "e.png")
    assert all(pixels(tmp_path / f"{name}.png").std() > 5 for name in "de")


@pytest.mark.parametrize("names", [HOSTILE[:4], HOSTILE[4:]])
def test_hostile_names_are_drawn_without_a_warning(tmp_path, names):
    loss_landscape_plot.plot_loss_landscape(dict.fromkeys(names, landscape_of()), tmp_path / "d.png")
    loss_landscape_plot.plot_loss_landscape(dict.fromkeys(names, landscape_of(2, 5)), tmp_path / "e.png")
    for name in "de":
        looks_drawn(tmp_path / f"{name}.png", 1000)
