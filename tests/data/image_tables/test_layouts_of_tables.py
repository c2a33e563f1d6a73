"""Every layout of a table of images that works as it comes."""

import json

import numpy as np
import pandas as pd
import pytest
from file_trees import noise
from table_of_images import LABELS, images, labels_of, opened, rows

from skipway.data.open_data import open_data
from skipway.data.sources.file_tree import DiskTree
from skipway.data.sources.image_source import Source, read_content


def expected(folder="", count=10, first=0):
    """{path: class} of the images of `images` with the labels of `rows`."""
    return {f"{folder}/{i}.jpg".lstrip("/"): LABELS[i % 2] for i in range(first, first + count)}


def test_kaggle_with_ids_without_suffix_and_a_test_table_without_labels(tmp_path):
    files = images("train") | images("test", 3, 90)
    files |= {"train.csv": rows("id,breed", "{},{}"), "test.csv": b"id\n90\n91\n92\n"}
    files["sample_submission.csv"] = b"id,breed\n90,cat\n91,cat\n92,cat\n"
    source = opened(tmp_path, files)
    assert labels_of(source) == expected("train") and list(source.keys) == ["train"]
    assert source.warnings == ["ignored test.csv: it has no column 'breed'"]
    assert source.roles == "columns: image 'id', target 'breed'"
    contents = [read_content(item) for item in source.contents("train")]
    assert contents == [files[key] for key in source.keys["train"]]
    assert len(source.peek()) == 10


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_kaggle_with_suffixes_in_a_folder_or_an_archive(tmp_path, kind):
    files = images("images") | {"train.csv": rows("image,label,width", "{}.jpg,{},100")}
    source = opened(tmp_path, files, kind=kind, **{"target": "label"})
    assert labels_of(source) == expected("images") and source.name == "set"
    assert read_content(next(iter(source.contents("train")))) == files["images/0.jpg"]


def test_a_table_file_and_two_folders_of_the_same_names(tmp_path):
    files = images("train") | images("test") | {"train.csv": rows("id,label", "{},{}"), "test.csv": b"id\n1\n"}
    assert labels_of(opened(tmp_path, files)) == expected("train")
    source = opened(tmp_path / "x", images("all") | {"labels.csv": rows("file,label", "{}.JPG,{}")}, data="labels.csv")
    assert labels_of(source) == expected("all") and source.name == "labels"


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_hugging_face_metadata_next_to_loose_images_in_split_folders(tmp_path, suffix):
    def table(count, first):
        if suffix == "csv":
            return rows("file_name,label", "{}.jpg,{}", count, first)
        lines = [{"file_name": f"{i}.jpg", "label": LABELS[i % 2]} for i in range(first, first + count)]
        return "\n".join(map(json.dumps, lines)).encode()

    files = images("train") | images("test", 4, 10)
    files |= {f"train/metadata.{suffix}": table(10, 0), f"test/metadata.{suffix}": table(4, 10)}
    source = opened(tmp_path, files)
    assert labels_of(source) == expected("train") and labels_of(source, "test") == expected("test", 4, 10)
    loose = opened(tmp_path / "loose", images() | {f"metadata.{suffix}": table(10, 0)})
    assert labels_of(loose) == expected()


def test_label_studio_exports_with_one_choice_and_with_several(tmp_path):
    header = "annotation_id,annotator,choice,created_at,id,image,lead_time"
    form = "{0},1,{1},2024-01-05T10:00:00Z,{0}7,/data/upload/1/abcdef0{0}-{0}.jpg,{0}.5"
    source = opened(tmp_path, images() | {"project.csv": rows(header, form)})
    assert labels_of(source) == expected() and source.roles == "columns: image 'image', target 'choice'"
    form = form.replace("{1}", '"{{""choices"":[""{1}"",""pet""]}}"')
    table = rows(header, form, 9) + b"9,1,pet,2024-01-05T10:00:00Z,97,/data/local-files/?d=some/9.jpg,1\n"
    source = opened(tmp_path / "several", images() | {"project.csv": table})
    assert source.task == "multilabel" and source.class_names == ("cat", "dog", "pet")
    assert labels_of(source)["0.jpg"] == ("cat", "pet") and labels_of(source)["9.jpg"] == ("pet",)


def test_google_automl_without_a_header_finds_local_files_by_name(tmp_path):
    table = rows("", "TRAIN,gs://bucket/some/{}.jpg,{}", 8) + rows("", "VALIDATION,gs://bucket/{}.jpg,{}", 2, 8)
    source = opened(tmp_path, images("photos") | {"all.csv": table}, data="all.csv")
    assert labels_of(source) == expected("photos", 8) and labels_of(source, "val") == expected("photos", 2, 8)
    assert source.roles == "columns: image 'image', target 'label', split 'split'"
    several = b"".join(b"gs://bucket/%d.jpg,cat%s\n" % (i, b",dog" * (i % 2)) for i in range(10))
    source = opened(tmp_path / "several", images() | {"all.csv": several})
    assert labels_of(source)["0.jpg"] == ("cat",) and labels_of(source)["1.jpg"] == ("cat", "dog")
    unassigned = rows("", "TRAIN,gs://b/{}.jpg,{}", 5) + rows("", "UNASSIGNED,gs://b/{}.jpg,{}", 5, 5)
    unassigned += b"TEST,gs://b/10.jpg,cat\n"
    source = opened(tmp_path / "unassigned", images("", 11) | {"all.csv": unassigned})
    assert labels_of(source) == expected() and labels_of(source, "test") == {"10.jpg": "cat"}


def test_roboflow_columns_of_0_and_1_are_classes_or_labels(tmp_path):
    files = images("train") | images("valid", 4, 10)
    table = "filename, cat, dog", "{0}.jpg, 1, 0\n{n}1.jpg, 0, 1"
    first = "\n".join([table[0], *(f"{i}.jpg, {1 - i % 2}, {i % 2}" for i in range(10))]).encode()
    second = "\n".join([table[0], *(f"{i}.jpg, {1 - i % 2}, {i % 2}" for i in range(10, 14))]).encode()
    files |= {"train/_classes.csv": first, "valid/_classes.csv": second}
    source = opened(tmp_path, files)
    assert labels_of(source) == expected("train") and labels_of(source, "val") == expected("valid", 4, 10)
    both = first.replace(b"1.jpg, 0, 1", b"1.jpg, 1, 1")
    source = opened(tmp_path / "both", files | {"train/_classes.csv": both})
    assert source.task == "multilabel" and labels_of(source)["train/1.jpg"] == ("cat", "dog")
    assert opened(tmp_path / "asked", files, task="multilabel").task == "multilabel"


def test_ham10000_is_not_part_1_against_part_2(tmp_path):
    files = images("HAM10000_images_part_1", 5) | images("HAM10000_images_part_2", 5, 5)
    files["HAM10000_metadata.csv"] = rows("lesion_id,image_id,dx,age", "HAM_{0},{0},{1},4{0}").replace(
        b"HAM_9", b"HAM_8"
    )
    source = opened(tmp_path, files)
    assert source.class_names == LABELS and source.count("train") == 10
    assert labels_of(source) == expected("HAM10000_images_part_1", 5) | expected("HAM10000_images_part_2", 5, 5)
    assert any("use --group-column" in warning for warning in source.warnings)
    grouped = opened(tmp_path / "groups", files, group_column="lesion_id")
    assert grouped.groups["train"][-2:] == ["HAM_8", "HAM_8"] and not grouped.warnings


def test_names_of_files_hold_classes_or_numbers(tmp_path):
    files = noise(*[f"{LABELS[i % 2]}_{i}.jpg" for i in range(10)])
    source = opened(tmp_path, files, label_regex="^([a-z]+)_")
    assert labels_of(source) == {f"{LABELS[i % 2]}_{i}.jpg": LABELS[i % 2] for i in range(10)}
    assert source.target_names == ()
    ages = noise(
        *[f"{folder}/{20 + i}_{i % 2}_x.jpg" for folder, i in [("train", i) for i in range(8)] + [("test", 9)]]
    )
    source = opened(tmp_path / "ages", ages, label_regex=r"^(?P<age>\d+)_(?P<sex>\d)_", task="regression")
    assert source.target_names == ("age", "sex") and labels_of(source)["train/21_1_x.jpg"] == (21, 1)
    assert labels_of(source, "test") == {"test/29_1_x.jpg": (29, 1)}
    folders = noise(*[f"{label}/{i}/1.jpg" for label in LABELS for i in range(2)])
    assert opened(tmp_path / "paths", folders, label_regex="^([^/]+)/").class_names == LABELS


def test_several_targets_separators_and_lists(tmp_path):
    source = opened(tmp_path, images() | {"t.csv": rows("file,x,y", "{0}.jpg,{0}.5,-{0}")}, target="x,y")
    assert source.task == "regression" and labels_of(source)["3.jpg"] == (3.5, -3)
    source = opened(tmp_path / "one", images() | {"t.csv": rows("file,age", "{0}.jpg,{0}.5")})
    assert source.task == "regression" and source.targets["train"].shape == (10, 1)
    table = ("file,tags\n" + "".join(f"{i}.jpg,{['a', 'a|b', 'b'][i % 3]}\n" for i in range(10))).encode()
    for number, options in enumerate([{}, {"label_sep": "|"}, {"task": "multilabel"}]):
        source = opened(tmp_path / f"sep{number}", images() | {"t.csv": table}, **options)
        assert (source.task, source.label_sep) == ("multilabel", "|") and labels_of(source)["1.jpg"] == ("a", "b")
    words = opened(tmp_path / "words", images() | {"t.csv": table.replace(b"|", b" ")}, task="multilabel")
    assert words.label_sep == " " and labels_of(words)["1.jpg"] == ("a", "b")
    python = opened(tmp_path / "python", images() | {"t.csv": table.replace(b"a|b", b"\"['a', 'b']\"")})
    assert labels_of(python)["1.jpg"] == ("a", "b")
    cities = table.replace(b"a|b", b'"Paris, France"').replace(b"jpg,a", b"jpg,Bonn").replace(b"jpg,b", b"jpg,Ulm")
    assert opened(tmp_path / "cities", images() | {"t.csv": cities}).task == "classification"


def test_parquet_with_names_and_lists_of_labels(tmp_path):
    frame = pd.DataFrame({"file": [f"{i}.jpg" for i in range(10)], "label": [LABELS[i % 2] for i in range(10)]})
    path = tmp_path / "plain"
    for name, data in (images("photos")).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    frame.to_parquet(path / "train.parquet")
    for data in (path, path / "train.parquet"):
        assert labels_of(open_data(str(data))) == expected("photos")
    frame["label"] = [["cat"], ["cat", "dog"]] * 5
    frame.to_parquet(path / "train.parquet")
    source = open_data(str(path))
    assert labels_of(source)["photos/1.jpg"] == ("cat", "dog") and labels_of(source)["photos/0.jpg"] == ("cat",)


def test_split_columns_and_tables_by_split(tmp_path):
    table = (
        "file,label,set\n" + "".join(f"{i}.jpg,{LABELS[i % 2]},{['train', 'test'][i > 7]}\n" for i in range(10))
    ).encode()
    source = opened(tmp_path, images() | {"t.csv": table})
    assert {split: len(keys) for split, keys in source.keys.items()} == {"train": 8, "test": 2}
    flags = ("file,label,is_valid\n" + "".join(f"{i}.jpg,{LABELS[i % 2]},{i > 7}\n" for i in range(10))).encode()
    source = opened(tmp_path / "flags", images() | {"t.csv": flags})
    assert {split: len(keys) for split, keys in source.keys.items()} == {"train": 8, "val": 2}
    files = images() | {
        "train.csv": rows("file,label", "{}.jpg,{}", 7),
        "val.csv": rows("file,label", "{}.jpg,{}", 3, 7),
    }
    source = opened(tmp_path / "tables", files)
    assert labels_of(source) == expected(count=7) and labels_of(source, "val") == expected(count=3, first=7)


def test_weights_and_order_are_columns(tmp_path):
    table = rows("file,label,w,day", "{0}.jpg,{1},{0}.5,2024-01-1{0}")
    source = opened(tmp_path, images() | {"t.csv": table}, target="label", weight_column="w", split_by="day")
    assert source.weights["train"].tolist() == [i + 0.5 for i in range(10)]
    assert np.asarray(source.order["train"].columns["day"]).tolist()[9] == "2024-01-19"
    assert source.roles == "columns: image 'file', target 'label', weight 'w'"


def test_long_tables_become_labels(tmp_path):
    table = b"file,label\n" + b"".join(b"%d.jpg,%s\n" % (i // 2, LABELS[i % 2].encode()) for i in range(20))
    source = opened(tmp_path, images() | {"t.csv": table})
    assert source.task == "multilabel" and labels_of(source) == {f"{i}.jpg": LABELS for i in range(10)}
    assert source.warnings == ["10 of 10 images have rows of several classes, which become labels"]
    repeated = rows("file,label", "{}.jpg,{}") + b"3.jpg,dog\n"
    source = opened(tmp_path / "repeated", images() | {"t.csv": repeated})
    assert labels_of(source) == expected()
    assert source.warnings == ["ignored 1 row with the image and the target of an earlier row"]


def test_a_data_frame_of_paths(tmp_path, monkeypatch):
    import skipway as sw

    opened(tmp_path, images("photos") | {"t.csv": b""}, data="photos", label_regex="(.)")
    frame = pd.DataFrame({"path": [f"{i}.jpg" for i in range(10)], "label": [LABELS[i % 2] for i in range(10)]})
    report = sw.check(frame, target="label", image_root=str(tmp_path / "set" / "photos"))
    assert report.as_dict()["counts"] == {"train": 10} and set(report.as_dict()["classes"]) == set(LABELS)
    monkeypatch.chdir(tmp_path / "set")
    assert sw.check(frame, target="label").as_dict()["counts"] == {"train": 10}


def test_a_table_that_names_no_images_stays_a_table(tmp_path):
    files = {"train.csv": rows("size,city", "{0}.5,{1}"), "x/1.png": images("x", 1)["x/0.jpg"]}
    for data in ("", "train.csv"):
        assert not isinstance(opened(tmp_path, files, data=data, target="city"), Source)
    assert not isinstance(opened(tmp_path, {"t.jsonl": b'{"a": 1, "b": "x"}\n'}, data="t.jsonl", target="b"), Source)


def test_class_folders_are_listed_once(tmp_path, monkeypatch):
    listed = []
    monkeypatch.setattr(DiskTree, "_list", lambda tree, real=DiskTree._list: listed.append(tree) or real(tree))
    assert opened(tmp_path, images("cat") | images("dog", 10, 10)).count("train") == 20
    assert len(listed) == 1
