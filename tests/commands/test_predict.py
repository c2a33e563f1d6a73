import os
import re
import shutil

import numpy as np
import pytest
import torch
from small_runs import pictures, quick, table

import skipway as sw
from skipway.commands import env
from skipway.commands import evaluate as evaluate_command
from skipway.commands.check_data import check
from skipway.commands.evaluate import evaluate
from skipway.commands.models import model_table
from skipway.commands.predict import predict
from skipway.commands.summary import summarize
from skipway.commands.write_predictions import write_predictions
from skipway.errors import InputError, Interrupted
from skipway.report import html
from skipway.utils.signals import StopFlag


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("use")
    pictures(place / "kinds", 12)
    write, html.write = html.write, lambda folder: folder / "report.html"
    quick(place / "kinds", place / "runs", name="run", epochs=6)
    html.write = write
    return place


@pytest.fixture
def weights(place, tmp_path, monkeypatch):
    """Nothing but the file of weights, in a folder of its own, which is also where we are."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(place / "runs" / "run" / "weights" / "best.safetensors", "alone.safetensors")
    return "alone.safetensors"


def test_there_is_one_row_per_input_in_order(place, weights, tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    (tmp_path / "empty").mkdir()
    sources = [place / "kinds" / "cow", "bad.png", "absent.png", place / "kinds" / "ant" / "00.png", "empty"]
    rows = predict(weights, sources)
    cows = sorted(map(str, (place / "kinds" / "cow").iterdir()))
    assert [r.source for r in rows] == [*cows, "bad.png", "absent.png", str(sources[3]), "empty"]
    assert all(r.top and not r.reason for r in rows if r.source.startswith(str(place)))
    reasons = {r.source: r.reason for r in rows if not r.top}
    assert set(reasons) == {"bad.png", "absent.png", "empty"} and all(reasons.values())
    assert "holds no picture; give pictures, or a folder that has some" in reasons["empty"]
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


def test_one_input_need_not_be_a_list(place, weights):
    file = place / "kinds" / "ant" / "00.png"
    for source in (file, str(file), np.zeros((8, 8), np.uint8)):
        assert len(predict(weights, source)) == 1


def test_nothing_to_predict_and_nothing_to_name_are_refused(weights):
    with pytest.raises(InputError, match="predict needs at least one picture or a folder that holds some"):
        predict(weights, [])
    with pytest.raises(InputError, match="top must be at least 1, not 0"):
        predict(weights, ["x"], top=0)


def test_a_stop_is_said(place, weights):
    stop = StopFlag()
    stop.request("SIGTERM")
    with pytest.raises(Interrupted, match="stopped by SIGTERM after 0 of 12 pictures"):
        predict(weights, place / "kinds" / "ant", stop=stop)


def test_a_table_of_predictions_is_harmless_and_has_a_row_each(place, weights, tmp_path):
    hostile = ["=cmd().png", "-x.png", "a\nb.png", "\x1b[2J.png", "<img>.png"]
    for name in hostile[:-1]:
        shutil.copy(place / "kinds" / "ant" / "00.png", name)
    rows = predict(weights, hostile)
    write_predictions(tmp_path / "p.csv", rows, 3)
    found = table(tmp_path / "p.csv")
    assert [r["file"] for r in found] == ["'=cmd().png", "'-x.png", "a\\x0ab.png", "\\x1b[2J.png", "<img>.png"]
    assert [r["status"] for r in found] == ["ok"] * 4 + ["error"] and found[4]["reason"] and not found[4]["label"]
    assert list(found[0]) == [
        "file",
        "status",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
        "reason",
    ]


def test_evaluation_counts_every_picture_once_and_matches_classes_by_name(place, weights, tmp_path):
    whole = evaluate(weights, place / "kinds")
    assert whole.count == 36 and sum(r["count"] for r in whole.classes) == 36 and whole.split == "train"
    files = sorted((place / "kinds").rglob("*.png"))
    right = np.mean([a == f.parent.name for a, f in zip(sw.load(weights).predict(files), files, strict=True)])
    assert whole.accuracy == right
    some = shutil.copytree(place / "kinds", tmp_path / "some")
    shutil.rmtree(some / "ant")
    (some / "bee" / "bad.png").write_text("x")
    part = evaluate(weights, some)
    assert part.count == 24 and part.skipped == 1 and [r["count"] for r in part.classes] == [0, 12, 12]
    for row, all_row in zip(part.classes[1:], whole.classes[1:], strict=True):
        assert row["class"] == all_row["class"] and row["recall"] == all_row["recall"]
    text = str(part)
    assert text.startswith("train: accuracy ") and "(1 unreadable left out)" in text and len(text.splitlines()) == 6


def test_evaluation_refuses_what_it_cannot_do(place, weights, tmp_path):
    other = pictures(tmp_path / "other", 2, kinds=("ant", "yak"))
    with pytest.raises(InputError, match="has classes that the network does not know: yak; it knows ant, bee, cow"):
        evaluate(weights, other)
    with pytest.raises(InputError, match="has no test split; it has train"):
        evaluate(weights, place / "kinds", split="test")
    for kind in ("ant", "bee"):
        (tmp_path / "torn" / kind).mkdir(parents=True)
        (tmp_path / "torn" / kind / "a.png").write_text("x")
    with pytest.raises(InputError, match="no picture of .* can be read; `skipway check` names what is wrong with each"):
        evaluate(weights, tmp_path / "torn")
    late = StopFlag()
    original = evaluate_command.decode_images
    try:
        evaluate_command.decode_images = lambda *a, **k: (original(*a, **k), late.request("SIGTERM"))[0]
        with pytest.raises(Interrupted, match="stopped by SIGTERM while evaluating"):
            evaluate(weights, place / "kinds", stop=late)
    finally:
        evaluate_command.decode_images = original


def test_check_says_what_a_careful_eye_sees(place, tmp_path):
    said = check(place / "kinds")
    assert "kinds: 3 classes, 36 train pictures" in said and "grey; trained at 8 px" in said and "ant  train 12" in said
    data = shutil.copytree(place / "kinds", tmp_path / "d")
    (data / "ant" / "bad\x1b.png").write_text("x")
    shutil.copy(data / "ant" / "00.png", data / "ant" / "copy.png")
    said = check(data)
    assert "1 cannot be read:" in said and "bad\\x1b.png: " in said and "mind: " in said and "\x1b" not in said


def test_a_summary_takes_names_runs_and_files(place, weights, tmp_path):
    by_name, by_file = summarize("resnet20", num_classes=3), summarize(weights)
    assert "parameters" in by_name.lower() and "(1, 1, 8, 8)" in by_file or "8" in by_file
    assert summarize(str(place / "runs" / "run")) == by_file
    assert summarize("resnet20", code=True) != by_name
    (tmp_path / "resnet20").mkdir()
    assert summarize("resnet20", num_classes=3) == by_name
    with pytest.raises(InputError, match="size must be at least 1, not 0"):
        summarize("resnet20", size=0)
    with pytest.raises(InputError, match="num_classes must be at least 1, not -1"):
        summarize("resnet20", num_classes=-1)
    with pytest.raises(InputError, match="no network is called 'resnet21'"):
        summarize("resnet21")


def test_every_registered_network_has_its_line():
    lines = list(model_table())
    assert [line.split()[0] for line in lines] == sw.list_models()
    assert len({line.index(" parameters  ") for line in lines}) == 1  # one below the other


@pytest.mark.parametrize(
    "name, told",
    [
        ("resnet50d", "25,576,264 parameters  bottleneck 3-4-6-3, deep stem, shortcut pool, 1000 classes"),
        ("resnet20", "269,722 parameters  basic 3-3-3, small stem, widths 16-32-64, shortcut pad, 10 classes"),
        ("densenet161", "28,681,000 parameters  densenet 6-12-36-24, large stem, growth 48, 1000 classes"),
        ("resmlp", "274,570 parameters  resmlp 4, 10 classes"),
        ("resnet9", "6,573,120 parameters  resnet9 2-0-2, small stem, 10 classes"),
    ],
)
def test_a_line_tells_what_the_network_is_made_of(name, told):
    assert [line.split(maxsplit=1) for line in model_table(name)] == [[name, told]]


def test_a_pattern_that_nothing_matches_is_refused():
    with pytest.raises(InputError, match="no network's name matches 'y"):
        model_table("y*")


def test_the_environment_is_named(monkeypatch):
    said = env.environment_table()
    assert all(word in said for word in ("skipway", "torch", "precision", f"{os.cpu_count()} cores"))
    assert re.search(r"^threads +\d+, limited by ", said, re.M)
    monkeypatch.setattr(env, "find_spec", lambda name: None)
    assert "not installed: pip install 'skipway[parquet]'" in env.environment_table()
    assert env._version("no-such-package-anywhere") == "not installed"


def test_several_views_are_what_is_counted_where_they_are_asked_for(place, weights):
    network = sw.load(weights)
    files = sorted((place / "kinds").rglob("*.png"))
    plain, several = (predict(weights, files, tta=tta) for tta in (False, True))
    assert [p.source for p in plain] == [p.source for p in several] and plain != several
    assert all(sum(share for _, share in p.top) == pytest.approx(1, abs=1e-5) for p in several)
    found = evaluate(network, place / "kinds", tta=True)
    names = [p.top[0][0] for p in several]
    assert found.accuracy == pytest.approx(np.mean([n == f.parent.name for n, f in zip(names, files, strict=True)]))
    assert "auroc" in found.figures and "auroc" in str(found)
