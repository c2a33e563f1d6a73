"""Predictions for images: one row per input in order, equal to the network's own."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import image_folder

import skipway as sw
from skipway.commands.evaluate import evaluate
from skipway.commands.predict import predict
from skipway.errors import InputError, Interrupted
from skipway.models import network_outputs
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag


def test_there_is_one_row_per_input_in_order(place, weights, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    sources = [place / "kinds" / "cow", "bad.png", "absent.png", place / "kinds" / "ant" / "00.png", "empty"]
    rows = predict(weights, sources)
    cows = sorted(map(str, (place / "kinds" / "cow").iterdir()))
    assert [r.source for r in rows] == [*cows, "bad.png", "absent.png", str(sources[3]), "empty"]
    assert all(r.top and not r.reason for r in rows if r.source.startswith(str(place)))
    reasons = {r.source: r.reason for r in rows if not r.top}
    assert set(reasons) == {"bad.png", "absent.png", "empty"} and all(reasons.values())
    assert "holds no images. Pass images, or a folder with images." in reasons["empty"]
    for row in rows:
        shares = [share for _, share in row.top]
        assert shares == sorted(shares, reverse=True) and len(shares) in (0, 3)
        assert sum(shares) == pytest.approx(1, abs=1e-5) or not shares
    assert rows[0].top[0][0] == "cow" and rows[-2].top[0][0] == "ant"


def test_rows_equal_those_of_the_network(place, weights):
    files = sorted((place / "kinds").rglob("*.png"))
    rows, network = predict(weights, files, top=1, engine="torch", precision="fp32"), sw.load(weights)
    assert [r.top[0][0] for r in rows] == network.predict(files)
    assert [r.top[0][1] for r in rows] == pytest.approx(network.predict_proba(files).max(1).tolist())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_fused_network_is_judged_and_predicts_like_any_other(place, weights, precision):
    network, files = sw.load(weights), sorted((place / "kinds").rglob("*.png"))
    fused = sw.export.fuse(network, precision, torch.randn(8, 1, 8, 8) if precision == "int8" else ())
    assert [r.top[0][0] for r in predict(fused, files[:5], tta=True)] == [
        r.top[0][0] for r in predict(network, files[:5], precision="fp32")
    ]
    assert evaluate(fused, place / "kinds").loss == pytest.approx(evaluate(network, place / "kinds").loss, abs=0.1)


def test_more_than_one_batch_keeps_its_order(place, weights):
    arrays = [np.full((8, 8), v % 256, np.uint8) for v in range(150)]
    arrays[70] = np.zeros((8, 8), np.float32)
    rows = predict(sw.load(weights), arrays)
    assert len(rows) == 150 and [i for i, r in enumerate(rows) if not r.top] == [70]
    alone = predict(weights, [arrays[149]])[0].top
    assert [name for name, _ in rows[149].top] == [name for name, _ in alone]
    assert [p for _, p in rows[149].top] == pytest.approx([p for _, p in alone], abs=0.02)


def test_batches_of_large_images_are_small(weights, monkeypatch):
    network = sw.load(weights)
    assert network_outputs.batch_size_for(network.spec, 64) == 64
    assert network_outputs.batch_size_for(replace(network.spec, size=4096, presize=4096), 64) == 8  # of one channel
    arrays, sizes, forward = [np.full((8, 8), 40 * v, np.uint8) for v in range(5)], [], network_outputs._values
    expected = network.predict_proba(arrays)
    monkeypatch.setattr(network_outputs, "_BATCH_BYTES", 2 * 4 * 8 * 8)
    monkeypatch.setattr(network_outputs, "_values", lambda spec, y: (sizes.append(len(y)), forward(spec, y))[1])
    assert np.allclose(network.predict_proba(arrays), expected, atol=1e-6) and sizes == [2, 2, 1]
    rows = predict(network, arrays, precision="fp32")
    assert sizes == [2, 2, 1] * 2 and [r.top[0][1] for r in rows] == pytest.approx(expected.max(1).tolist(), abs=1e-5)


def test_one_input_need_not_be_a_list(place, weights):
    file = place / "kinds" / "ant" / "00.png"
    for source in (file, str(file), np.zeros((8, 8), np.uint8)):
        assert len(predict(weights, source)) == 1


def test_nothing_to_predict_and_nothing_to_name_are_refused(weights):
    with pytest.raises(InputError, match="cannot predict: expected at least one image or a folder of images"):
        predict(weights, [])
    with pytest.raises(InputError, match="invalid top: expected an integer of at least 1, got 0"):
        predict(weights, ["x"], top=0)


def test_a_stop_is_said(place, weights):
    stop = StopFlag()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted, match="stopped by SIGTERM after 0 of 12 images. Run it again"):
        predict(weights, place / "kinds" / "ant", stop=stop)


def test_average_views_are_what_is_counted_where_they_are_asked_for(place, weights):
    network = sw.load(weights)
    files = sorted((place / "kinds").rglob("*.png"))
    plain, several = (predict(weights, files, tta=tta) for tta in (False, True))
    assert [p.source for p in plain] == [p.source for p in several] and plain != several
    assert all(sum(share for _, share in p.top) == pytest.approx(1, abs=1e-5) for p in several)
    evaluation = evaluate(network, place / "kinds", tta=True)
    names = [p.top[0][0] for p in several]
    assert evaluation.accuracy == pytest.approx(
        np.mean([n == f.parent.name for n, f in zip(names, files, strict=True)])
    )
    assert "auroc" in evaluation.metrics and "auroc" in str(evaluation)


def test_images_of_16_bits_that_became_black_are_named(weights, tmp_path, capsys):
    folder = image_folder(tmp_path / "data", 2)
    Image.fromarray(np.full((9, 9), 3000, np.uint16)).save(folder / "ant" / "dark.png")
    network, console = sw.load(weights), Console()
    rows = predict(network, [folder / "ant"], console=console)
    assert [row.usable for row in rows] == [True] * 3
    assert [row.remark.partition(":")[0] for row in rows] == ["", "", "nearly black"]
    assert re.search(r"warning: 1 of 3 images, first .*dark.png: nearly black: 16-bit values", capsys.readouterr().out)
    evaluate(network, folder, console=console)
    assert "images: nearly black: 16-bit values" in capsys.readouterr().out
    with pytest.warns(UserWarning, match="dark.png: nearly black: 16-bit values that use only the lowest bits"):
        network.predict([folder / "ant" / "dark.png"])
