"""Evaluation of a trained network on labeled images."""

import shutil

import numpy as np
import pytest
from file_trees import write_tree, write_zip
from image_folders import parquet
from small_runs import Words, image_folder, table
from table_files import homes, written

import skipway as sw
from skipway.commands import evaluate as evaluate_command
from skipway.commands.check_data import check
from skipway.commands.evaluate import evaluate
from skipway.errors import InputError, Interrupted
from skipway.runs.train_run import train
from skipway.utils.stop_signals import StopFlag


def test_evaluation_counts_every_image_once_and_matches_classes_by_name(place, weights, tmp_path):
    whole = evaluate(weights, place / "kinds")
    assert whole.count == 36 and sum(r["count"] for r in whole.classes) == 36 and whole.split == "all"
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
    assert (
        text.startswith("all: accuracy ")
        and "(skipped 1 unreadable or unlabeled)" in text
        and len(text.splitlines()) == 6
    )


@pytest.mark.parametrize(
    "form", ["{}/{}", "wrapped/deeper/{}/{}", "val/{}/{}", "test/test/{}/{}", "{}/patient/left/{}", "val/{}/patient/{}"]
)
@pytest.mark.parametrize("kinds", [("bee",), ("ant", "bee")])
def test_a_part_of_the_classes_and_one_split_are_enough(place, weights, tmp_path, kinds, form):
    whole = {row["class"]: row for row in evaluate(weights, place / "kinds").classes}
    files = {}
    for kind in kinds:
        files |= {form.format(kind, file.name): file.read_bytes() for file in (place / "kinds" / kind).iterdir()}
    split = form.partition("/")[0] if form.startswith(("val", "test")) else "all"
    for data in (write_tree(tmp_path / "set", files), write_zip(tmp_path / "set.zip", files)):
        part = evaluate(weights, data)
        assert part.count == 12 * len(kinds) and part.split == split
        by_class = {row["class"]: row for row in part.classes}
        assert {name: row["count"] for name, row in by_class.items()} == {n: 12 * (n in kinds) for n in whole}
        assert all(by_class[kind]["recall"] == whole[kind]["recall"] for kind in kinds)
        assert np.isfinite([part.accuracy, part.loss]).all()


def test_one_class_and_one_split_of_parquet_files_are_enough(place, weights, tmp_path):
    pytest.importorskip("pyarrow")
    files = sorted((place / "kinds" / "bee").iterdir())
    rows = [file.read_bytes() for file in files]
    names = ["ant", "bee", "cow"]
    for i, path in enumerate(("a/test-00000-of-00001.parquet", "b/bees.parquet")):
        parquet(tmp_path / path, [1] * len(rows), names, rows=rows)
        part = evaluate(weights, tmp_path / path.partition("/")[0])
        assert part.split == ("test", "all")[i] and [row["count"] for row in part.classes] == [0, 12, 0]


def test_evaluation_takes_the_options_that_training_takes(place, weights, tmp_path):
    data = shutil.copytree(place / "kinds", tmp_path / "data")
    shutil.move(data / "ant", tmp_path / "ant")
    (data / "ant").symlink_to(tmp_path / "ant")
    (data / "cow" / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="leads out of the folder. Use --follow-links"):
        evaluate(weights, data)
    words = Words()
    assert evaluate(weights, data, follow_links=True, console=words).count == 36
    assert words.lines == ["warning: ignored files in the folder, which are not images: 1 .txt file (text)"]
    (data / "emu").mkdir()
    with pytest.raises(InputError, match="found none in 'emu'. Add images, remove the folder, or use --allow-empty"):
        evaluate(weights, data, follow_links=True)
    assert evaluate(weights, data, follow_links=True, allow_empty_classes=True).count == 36
    with pytest.raises(
        InputError, match="expected options for reading data .*got follow_link .did you mean follow_links"
    ):
        evaluate(weights, data, follow_link=True)
    with pytest.raises(InputError, match="expected readable images, got none"):
        evaluate(weights, place / "kinds", max_pixels=10)
    assert len(check(data, max_pixels=10, follow_links=True, allow_empty_classes=True).as_dict()["unreadable"]) == 36


def test_evaluation_refuses_what_it_cannot_do(place, weights, tmp_path):
    other = image_folder(tmp_path / "other", 2, kinds=("ant", "yak"))
    message = r"cannot evaluate .*: expected the classes of the model \(ant, bee, cow\), got yak. Rename the"
    with pytest.raises(InputError, match=message):
        evaluate(weights, other)
    with pytest.raises(InputError, match="expected the split train, got 'test'"):
        evaluate(weights, place / "kinds", split="test")
    for kind in ("ant", "bee"):
        (tmp_path / "torn" / kind).mkdir(parents=True)
        (tmp_path / "torn" / kind / "a.png").write_text("x")
    with pytest.raises(InputError, match="cannot evaluate .*: expected readable images, got none. Run `skipway check`"):
        evaluate(weights, tmp_path / "torn")
    late = StopFlag()
    decode_images = evaluate_command.decode_images
    try:
        evaluate_command.decode_images = lambda *a, **k: (decode_images(*a, **k), late.request("SIGTERM"))[0]
        with pytest.raises(Interrupted, match="stopped by SIGTERM while evaluating"):
            evaluate(weights, place / "kinds", stop=late)
    finally:
        evaluate_command.decode_images = decode_images


def test_images_that_the_run_was_trained_on_are_counted(place, tmp_path):
    run = place / "runs" / "run"
    assert "are in the training set" in str(evaluate(run, place / "kinds"))
    evaluation = evaluate(run, place / "kinds", split="train")
    trained = evaluation.trained_on
    assert 0 < trained < evaluation.count and "training set" not in str(evaluation)  # a share was held out
    for kind in ("ant", "bee", "cow"):
        shutil.copytree(place / "kinds" / kind, tmp_path / "test" / kind)
        (tmp_path / "train" / kind).mkdir(parents=True)
        shutil.copy(place / "kinds" / kind / "00.png", tmp_path / "train" / kind)
    evaluation = evaluate(run / "weights" / "best.safetensors", tmp_path)
    assert evaluation.trained_on == trained and f"{trained} of these samples are in the training set" in str(evaluation)


@pytest.mark.parametrize("target", ["price", "dear"])
def test_rows_that_the_run_was_trained_on_and_rows_left_out_are_counted(tmp_path, target):
    frame = homes(60)
    home = written(tmp_path / "homes.csv", frame)
    run = train(
        home, output=tmp_path, name="run", target=target, ignore="dear" if target == "price" else "price", epochs=1
    )
    trained = sum(row["split"] == "train" for row in table(run.path / "splits.csv"))
    words, evaluation = Words(), evaluate(run.path, home)
    assert 0 < trained == evaluation.trained_on < evaluation.count == 60
    assert f"warning: {trained} of these samples are in the training set" in str(evaluation)
    assert "warning" not in str(evaluate(run.path, home, split="train"))
    others = homes(30, seed=5).astype({target: object})
    others.loc[:3, target] = [None, "", "NaN", "null"]
    evaluation = evaluate(run.path, written(tmp_path / "others.csv", others), console=words)
    assert (evaluation.count, evaluation.skipped, evaluation.trained_on) == (26, 4, 0)
    assert "on 26 rows (skipped 4 without a target)" in str(evaluation) and "warning" not in str(evaluation)
    assert f"missing values of 'size': {others['size'][4:].isna().sum()}" in words
    for column, cell in (("size", "inf"), ("size", "-1e999"), (target, "inf")):
        odd = others.astype(object)
        odd.loc[9, column] = cell
        with pytest.raises(InputError, match=f"odd.csv:11, (column|target) '{column}': expected .*, got '{cell}'"):
            evaluate(run.path, written(tmp_path / "odd.csv", odd))
