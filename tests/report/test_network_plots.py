"""Plots of flow and lesion: drawn whole, with what matters in them, whatever the values."""

import math

import numpy as np
import pytest
from drawn import has, looks_drawn, pixels
from processes import run_python

from skipway.report import network_plots, plot_style
from skipway.report.axes_layout import APART, _apart, finite_median, line_end

HOSTILE = ["<img src=x>", "two\nlines", "$\\frac{", "x" * 255, "猫", "%s {0}", "$a$", ""]


def flow_of(blocks=6, kind="skip", growth=1.0, **changes):
    rows = [
        {
            "path": f"stage{1 + 2 * i // blocks}.{i}",
            "kind": kind,
            "into": 1.0,
            "body": 0.1 * growth**i,
            "out": 1.1,
            "shortcut": 1.0 if kind == "skip" else None,
            "added": 0.1 * growth**i,
            "ratio": 0.1,
            "gradient_in": growth**-i,
            "gradient_out": 1.0,
            **changes,
        }
        for i in range(blocks)
    ]
    layers = [
        {"path": f"{r['path']}.conv{n}", "out": 1.0, "gradient": growth**-i} for i, r in enumerate(rows) for n in "12"
    ]
    return {"mode": "training", "loss": 2.3, "blocks": rows, "layers": layers, "notes": []}


@pytest.mark.parametrize("count, blocks", [(1, 1), (2, 50), (4, 3)])
def test_a_flow_has_a_column_for_each_and_a_line_for_each_side(tmp_path, count, blocks):
    network_plots.plot_signal_flow(
        {f"network {i}": flow_of(blocks, growth=1.5) for i in range(count)}, tmp_path / "new" / "f.png"
    )
    found = looks_drawn(tmp_path / "new" / "f.png", 1300, 1000)
    for color in (
        plot_style.BLUE,
        plot_style.VERMILION,
        plot_style.GREEN,
        plot_style.PURPLE,
        plot_style.INK,
    ):
        assert has(found, color) > 30 * count


def test_of_many_flows_four_are_shown_from_the_first_to_the_last(tmp_path):
    assert network_plots._evenly_chosen(list("abc")) == list("abc") and network_plots._evenly_chosen(
        list("abcdefghij")
    ) == list("adgj")
    flows = {f"epoch {i}": flow_of(2) for i in range(5)}
    network_plots.plot_signal_flow(flows, tmp_path / "a.png")
    network_plots.plot_signal_flow({**flows, "epoch 2": flow_of(2, growth=3.0)}, tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_plain_network_has_no_line_of_a_shortcut(tmp_path):
    network_plots.plot_signal_flow({"plain": flow_of(kind="plain")}, tmp_path / "f.png")
    found = looks_drawn(tmp_path / "f.png")
    assert has(found, plot_style.BLUE) == 0 and has(found, plot_style.VERMILION) > 100


@pytest.mark.parametrize("value", [0.0, None, 1e-300, 1e300, math.inf, "nan"])
def test_a_flow_bears_zeros_gaps_and_extremes(tmp_path, value):
    whole, broken = flow_of(), flow_of()
    for row in broken["blocks"][2:4]:
        row.update(added=value, out=value, gradient_in=value)
    for row in broken["layers"][2:]:
        row.update(gradient=value)
    network_plots.plot_signal_flow({"whole": whole, "broken": broken}, tmp_path / "f.png")
    looks_drawn(tmp_path / "f.png")
    every = flow_of(added=value, body=value, shortcut=value, out=value, gradient_in=value)
    network_plots.plot_signal_flow({"nothing else": {**every, "layers": []}}, tmp_path / "f.png")
    assert max(looks_drawn(tmp_path / "f.png", 1000).shape) < 1600


def test_a_network_without_blocks_has_its_layers(tmp_path):
    network_plots.plot_signal_flow({"layers": {**flow_of(), "blocks": []}}, tmp_path / "f.png")
    assert has(looks_drawn(tmp_path / "f.png"), plot_style.PURPLE) > 100


def lesion_of(blocks=9, remainder="identity", score=0.9, measure="accuracy"):
    paths = [f"stage{1 + 3 * i // blocks}.{i}" for i in range(blocks)]
    kinds = [remainder if remainder != "identity" or i % 3 else "shortcut" for i in range(blocks)]
    places = enumerate(zip(paths, kinds, strict=True))
    pairs = zip(paths, paths[1:], strict=False)
    counts = [count for count in (1, 2, 4, blocks) if count <= blocks]
    draws = [(n, d) for n in (1, 2, 4) for d in range(3)]
    return {
        "measure": measure,
        "score": score,
        "left_out": [],
        "dropped": [{"path": p, "stage": "", "remainder": k, "score": score - 0.02 * (i % 5)} for i, (p, k) in places],
        "several": [{"count": count, "scores": [score - 0.03 * count, score - 0.04 * count]} for count in counts],
        "swapped": [{"first": first, "second": second, "stage": "", "score": score - 0.01} for first, second in pairs],
        "shuffled": [{"exchanges": n, "distance": 0.1 * n + 0.01 * d, "score": score - 0.05 * n} for n, d in draws],
    }


@pytest.mark.parametrize("blocks", [1, 9, 70])
def test_a_lesion_has_a_bar_for_each_block_by_what_stays(tmp_path, blocks):
    network_plots.plot_ablation(
        {"resnet": lesion_of(blocks), "plain": lesion_of(blocks, "nothing")}, tmp_path / "l.png"
    )
    found = looks_drawn(tmp_path / "l.png", 1300, 1100)
    for color in (plot_style.VERMILION, plot_style.PURPLE, plot_style.INK):
        assert has(found, color) > 300
    assert blocks == 1 or min(has(found, plot_style.BLUE), has(found, plot_style.GREEN)) > 150


@pytest.mark.parametrize("only", ["dropped", "several", "shuffled"])
def test_a_lesion_of_some_cuts_shows_those(tmp_path, only):
    cut = lesion_of()
    for key in {"dropped", "several", "swapped", "shuffled"} - {only, "dropped" if only == "several" else only}:
        cut[key] = []
    network_plots.plot_ablation({"n": cut}, tmp_path / "l.png")
    looks_drawn(tmp_path / "l.png", 600, 300)


@pytest.mark.parametrize("measure", ["accuracy", "loss", "a word of $mine$"])
def test_a_lesion_has_the_unit_of_its_measure_and_bears_gaps(tmp_path, measure):
    cut = lesion_of(measure=measure)
    cut["dropped"][1]["score"] = cut["several"][1]["scores"][0] = cut["shuffled"][0]["score"] = None
    network_plots.plot_ablation({"n": cut}, tmp_path / "l.png")
    looks_drawn(tmp_path / "l.png")
    cut["dropped"][2]["score"] = cut["several"][2]["scores"][1] = 1e9
    network_plots.plot_ablation({"n": cut}, tmp_path / "l.png")
    assert max(looks_drawn(tmp_path / "l.png").shape) < 1700


@pytest.mark.parametrize("unit", ["seconds", "FLOPs", "cups of $tea$"])
def test_accuracy_over_compute_has_a_thick_median_and_a_thin_line_a_seed(tmp_path, unit):
    scale = 1e15 if unit == "FLOPs" else 1.0
    runs = {
        name: [[(scale * (e + 0.1 * s), 0.9 - 0.5 / (e * rate) + 0.01 * s) for e in range(1, 12)] for s in range(3)]
        for name, rate in (("grown", 2.0), ("from scratch", 1.0))
    }
    network_plots.plot_accuracy_over_compute(runs, tmp_path / "a.png", unit)
    found = looks_drawn(tmp_path / "a.png", 1200)
    assert min(has(found, plot_style.BLUE), has(found, plot_style.VERMILION)) > 1000
    network_plots.plot_accuracy_over_compute(
        {"one": [[(3.0, 0.5)]], "none": [], "empty": [[]]}, tmp_path / "a.png", unit
    )
    looks_drawn(tmp_path / "a.png", 1000)
    apart = {"apart": [[(1, 0.1), (2, 0.2)], [(5, None), (6, 0.4)]], "whole": [[(1, 0.4), (4, 0.8)]]}
    network_plots.plot_accuracy_over_compute(apart, tmp_path / "a.png", unit)
    looks_drawn(tmp_path / "a.png", 1000)


def test_a_image_without_data_says_so(tmp_path):
    nothing = {"dropped": [], "shuffled": [], "several": [], "swapped": [], "score": 0.9, "measure": "accuracy"}
    network_plots.plot_signal_flow({}, tmp_path / "a.png")
    network_plots.plot_signal_flow({"n": {"blocks": [], "layers": []}}, tmp_path / "b.png")
    network_plots.plot_ablation({"n": nothing}, tmp_path / "c.png")
    network_plots.plot_accuracy_over_compute({}, tmp_path / "f.png")
    assert all(pixels(tmp_path / f"{name}.png").std() > 5 for name in "abcf")


@pytest.mark.parametrize("names", [HOSTILE[:4], HOSTILE[4:]])
def test_hostile_names_are_drawn_without_a_warning(tmp_path, names):
    network_plots.plot_signal_flow(dict.fromkeys(names[:2], flow_of(path="$x$.猫")), tmp_path / "a.png")
    network_plots.plot_signal_flow(dict.fromkeys(names[2:], flow_of(2)), tmp_path / "b.png")
    network_plots.plot_ablation(dict.fromkeys(names, lesion_of(2)), tmp_path / "c.png")
    network_plots.plot_accuracy_over_compute(dict.fromkeys(names, [[(1.0, 0.5), (2.0, 0.6)]]), tmp_path / "f.png")
    for name in "abcf":
        looks_drawn(tmp_path / f"{name}.png", 1000)


def test_words_are_pushed_apart_and_no_farther_than_needed():
    assert _apart([]) == [] and _apart([5.0]) == [5.0] and _apart([0.0, 50.0]) == [0.0, 50.0]
    assert _apart([10.0, 10.0]) == [10 - APART / 2, 10 + APART / 2]
    moved = _apart([0.0, 1.0, 2.0, 30.0, 31.0, 90.0])
    assert np.all(np.diff(moved) > APART - 1e-9) and moved[5] == 90.0 and moved[1] == pytest.approx(1.0)
    assert np.all(np.diff(_apart(np.linspace(0, 40, 12).tolist())) > APART - 1e-9)


def test_a_line_ends_at_its_last_finite_value():
    assert line_end("a", [1, 2, 3], np.array([5.0, 6.0, math.nan]), color="red") == ("a", 2.0, 6.0, "red")
    assert math.isnan(line_end("a", [1], np.array([math.nan]), color="red")[2])
    assert finite_median(np.array([1.0, math.nan, 3.0])) == 2.0 and math.isnan(finite_median(np.array([math.inf])))


def test_pyplot_is_never_loaded():
    code = (
        "import sys, skipway.report.network_plots\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert run_python(code).returncode == 0
