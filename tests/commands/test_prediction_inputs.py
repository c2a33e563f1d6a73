"""Inputs of predict: every file that was passed has a row, with a reason if there is no answer."""

import numpy as np
import pytest
import torch
from file_trees import KINDS, noise, write_zip
from file_trees import place as place_tree
from image_folders import image_bytes
from PIL import Image
from sklearn.datasets import load_wine
from small_runs import Words

from skipway.cli import app
from skipway.commands.predict import predict
from skipway.commands.prediction_inputs import list_inputs
from skipway.errors import InputError
from skipway.runs.train_run import train
from skipway.utils import stop_signals
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag

QUIET = Console(quiet=True)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_folders_and_archives_have_a_row_each(weights, tmp_path, kind):
    files = noise("1.png", "deep/a/2.png", "deep/odd") | {"notes.txt": b"x", "a.mp4": b"x", ".hidden.png": b"x"}
    source, words = place_tree(tmp_path, files, kind), Words()
    rows = predict(weights, source, console=words)
    assert [row.source for row in rows] == [f"{source}/{name}" for name in ("1.png", "deep/odd", "deep/a/2.png")]
    assert all(row.usable for row in rows)
    alone = predict(weights, place_tree(tmp_path / "plain", files, "folder"))
    assert [row.top for row in rows] == [row.top for row in alone]
    remark = "1 .mp4 file (video: save its frames as images), 1 .txt file (text)"
    assert [text for text in words.lines if text.endswith(remark)] == [f"{source}: skipped {remark}"]


def test_every_file_that_was_passed_has_a_row(weights, tmp_path):
    names = {
        "a.png": image_bytes(1),
        "b.mp4": b"x",
        "c.txt": b"x",
        "d.csv": b"x",
        "e": b"x",
        "f.zip": b"x",
        "g.png": b"",
    }
    sources = [tmp_path / name for name in names]
    for path, data in zip(sources, names.values(), strict=True):
        path.write_bytes(data)
    (tmp_path / "empty").mkdir(), write_zip(tmp_path / "bare.zip", {"x.txt": b"x"})
    sources += [tmp_path / "empty", tmp_path / "bare.zip", tmp_path / "gone.png", tmp_path / "gone.zip"]
    rows = predict(weights, sources)
    assert [row.source for row in rows] == [str(path) for path in sources]
    reasons = {row.source.rpartition("/")[2]: row.reason for row in rows if not row.usable}
    assert set(reasons) == {path.name for path in sources} - {"a.png"}
    assert reasons["b.mp4"] == "not an image: video: save its frames as images"
    assert reasons["c.txt"] == "not an image: text" and "d.csv: expected rows after the header" in reasons["d.csv"]
    assert "f.zip: expected the content of a zip or tar archive" in reasons["f.zip"]
    assert "empty holds no images. Pass images" in reasons["empty"]
    assert "bare.zip holds no images (only other files: 1 .txt file (text)). Pass images" in reasons["bare.zip"]
    assert "No such file" in reasons["gone.png"] and "No such file" in reasons["gone.zip"]
    assert "empty file" in reasons["g.png"]


def test_an_entry_of_an_archive_that_cannot_be_read_has_its_reason(weights, tmp_path):
    path = write_zip(tmp_path / "set.zip", noise("a.png") | {"b.png": b"", "c.png": b"text"})
    rows = predict(weights, [path])
    assert [row.usable for row in rows] == [True, False, False]
    assert rows[1].reason == f"cannot use {path}/b.png: empty file" and "unsupported format" in rows[2].reason


def test_links_to_folders_outside_are_named(weights, tmp_path):
    root = place_tree(tmp_path, noise("a.png"), "folder")
    (root / "more").symlink_to(place_tree(tmp_path, noise("b.png"), "folder", "other"))
    (root / "b.png").symlink_to(tmp_path / "other" / "b.png")
    words = Words()
    assert [row.usable for row in predict(weights, root, console=words)] == [True, True]
    assert f"{root}: skipped links to folders outside, first more; pass these folders, too" in words.lines


@pytest.mark.parametrize(
    "shape, names",
    [
        ((8, 8), ["array"]),
        ((8, 8, 3), ["array"]),
        ((2, 8, 8), ["array[0]", "array[1]"]),
        ((2, 8, 8, 3), ["array[0]", "array[1]"]),
    ],
)
def test_an_array_of_several_images_is_several_inputs(shape, names):
    inputs = list_inputs(np.zeros(shape, np.uint8), QUIET)
    assert [image.name for image in inputs] == names
    assert inputs[0].source.shape == (shape[1:] if len(names) > 1 else shape)


def test_one_input_without_images_is_an_error_and_several_are_rows(weights, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="one holds no images. Pass images, or a folder with images"):
        predict(weights, tmp_path / "one")
    rows = predict(weights, [tmp_path / "one", tmp_path / "two"])
    assert ["holds no images" in row.reason for row in rows] == [True, True]


@pytest.mark.parametrize("names, code", [(["a.png", "b.mp4"], 0), (["b.mp4", "gone.png"], 2)])
def test_the_exit_code_is_2_only_if_no_input_has_an_answer(weights, tmp_path, monkeypatch, capfd, names, code):
    (tmp_path / "a.png").write_bytes(image_bytes(1)), (tmp_path / "b.mp4").write_bytes(b"x")
    monkeypatch.setattr(stop_signals, "STOP", StopFlag())
    with pytest.raises(SystemExit) as ended:
        app.main(["predict", weights, *names])
    out, err = capfd.readouterr()
    assert ended.value.code == code and len(out.splitlines()) == 2 and "could not be used" in err


def test_a_file_of_a_format_without_a_signature_is_read_by_its_suffix(weights, tmp_path):
    Image.new("L", (8, 8), 90).save(tmp_path / "a.tga")
    write_zip(tmp_path / "set.zip", {"a.tga": (tmp_path / "a.tga").read_bytes()})
    assert [row.usable for row in predict(weights, [tmp_path / "a.tga", tmp_path / "set.zip"])] == [True, True]


def test_one_of_several_tables_that_cannot_be_used_has_a_row(tmp_path):
    run = train("wine", epochs=1, output=tmp_path)
    frame = load_wine(as_frame=True).frame.head(2)
    frame.to_csv(tmp_path / "good.csv", index=False)
    frame[["alcohol"]].to_csv(tmp_path / "short.csv", index=False)
    sources = [tmp_path / name for name in ("good.csv", "short.csv", "gone.csv")]
    rows = predict(run.path, [*sources, frame])
    assert [row.usable for row in rows] == [True, True, False, False, True, True]
    assert [row.source for row in rows[2:4]] == [str(tmp_path / "short.csv"), str(tmp_path / "gone.csv")]
    assert "malic_acid" in rows[2].reason and "gone.csv" in rows[3].reason
    with pytest.raises(InputError, match="gone.csv"):
        predict(run.path, sources[2])


def test_tensors_with_channels_last_are_images_too():
    image = torch.arange(2 * 8 * 9 * 3).reshape(2, 8, 9, 3)
    for tensor in (image, image.permute(0, 3, 1, 2)):
        rows = list_inputs(tensor, QUIET)
        assert [row.name for row in rows] == ["tensor[0]", "tensor[1]"]
        assert all(torch.equal(row.source, image[i].permute(2, 0, 1)) for i, row in enumerate(rows))
