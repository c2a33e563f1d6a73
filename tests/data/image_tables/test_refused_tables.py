"""Tables of images that are refused in one line, and rows that are left out with their reason."""

import os

import pandas as pd
import pytest
from file_trees import noise, place
from table_of_images import LABELS, images, labels_of, opened, rows

from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.open_data import open_data
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.image_source import Source
from skipway.errors import InputError

TABLE = rows("file,label", "{}.jpg,{}")
CHOICE = rows("file,age,city", "{0}.jpg,{0}.5,{1}")
ON_IMAGES = r"cannot use the images of .*t.csv \('file'\): expected --target, got none. Choose one of 'age', 'city'"
SETTINGS = DecodeSettings(8, 8, 3)

# name: (files, DATA below them, options, words of the error)
REFUSED = {
    "open target": (
        {**images(), "t.csv": CHOICE},
        "",
        {},
        ON_IMAGES,
    ),
    "no target": (
        {**images(), "t.csv": rows("file", "{}.jpg")},
        "t.csv",
        {},
        "expected a column with the target, got only names. Add",
    ),
    "wrong root": (
        {**images("images"), "tables/t.csv": TABLE},
        "tables/t.csv",
        {},
        r"cannot find the images of .*t.csv, column 'file': expected the files that it names, found 0 of 10 files in "
        r".*tables and its subfolders; '0.jpg' is missing. Did you mean --image-root .*set/images\? To learn from the "
        "other columns, add --ignore file",
    ),
    "nowhere": ({"t.csv": TABLE}, "t.csv", {}, "'0.jpg' is missing. Pass their folder as --image-root"),
    "nowhere in a folder": ({"train.csv": TABLE}, "", {"target": "label"}, "found 0 of 10 files"),
    "urls": (
        {"t.csv": rows("url,label", "https://a.org/{}.jpg,{}")},
        "t.csv",
        {},
        r"expected image files, got URLs such as 'https://a.org/0.jpg' \(found 0 of 10 files .*Download the images",
    ),
    "buckets": ({"t.csv": rows("", "s3://b/{},{}")}, "t.csv", {}, "expected image files, got URLs such as 's3://b/0'"),
    "outside": (
        {**images("images"), "tables/t.csv": rows("file,label", "../images/{}.jpg,{}")},
        "tables/t.csv",
        {},
        r"expected images inside of .*tables, got '../images/0.jpg'. Use --image-root ../images, or --follow-links",
    ),
    "no root": (
        {**images(), "t.csv": TABLE},
        "t.csv",
        {"image_root": "nope"},
        "cannot find --image-root nope: expected a",
    ),
    "two columns": (
        {**images("a"), **images("b"), "t.csv": rows("left,right,label", "a/{0}.jpg,b/{0}.jpg,{1}")},
        "",
        {"target": "label"},
        "expected one column with names of images, got 'left', 'right'. Name it with --image-column",
    ),
    "two files": (
        {**images("a"), **images("b"), "t.csv": TABLE},
        "",
        {},
        "cannot choose the file of '0.jpg' in .*: expected one file of this name, got a/0.jpg, b/0.jpg. Choose",
    ),
    "two tables": (
        {**images(), "a.csv": TABLE, "b.csv": TABLE},
        "",
        {},
        "cannot choose the table of .*: expected one table of images, got .*a.csv, .*b.csv. Pass one of them",
    ),
    "two training tables": (
        {**images(), "train.csv": TABLE, "training.csv": TABLE},
        "",
        {},
        "expected one train table, got train",
    ),
    "class folders and a table": (
        {**images("cat", 5), **images("dog", 5, 5), "t.csv": rows("file,age", "{0}.jpg,{0}.5")},
        "",
        {},
        r"expected either class folders or a table of their images, got 2 folders \(cat, dog\) and .*t.csv. Use "
        r"--target age for the table, or --label-regex '\(\[\^/\]\+\)/\[\^/\]\+\$' for the folders",
    ),
    "class folders and an open table": (
        {**images("cat", 5), **images("dog", 5, 5), "t.csv": CHOICE},
        "",
        {},
        "Use --target COLUMN for the table",
    ),
    "boxes": (
        {**images(), "t.csv": rows("", "TRAIN,{}.jpg,{},0.1,0.2,,,0.3,0.4,,")},
        "t.csv",
        {},
        "expected labels of whole images, got boxes after the labels",
    ),
    "split values": (
        {**images(), "t.csv": rows("file,label,part", "{0}.jpg,{1},p{0}")},
        "",
        {"split_column": "part", "target": "label"},
        r"cannot split .* by the column 'part': expected train, val and test, got 'p0', 'p1', .* and 5 more",
    ),
    "only a test set": (
        {**images(), "t.csv": rows("file,label,part", "{0}.jpg,{1},test")},
        "",
        {"split_column": "part", "target": "label"},
        "expected training rows, got only test in the column 'part'",
    ),
    "split column and files": (
        {
            **images(),
            "train.csv": rows("file,label,s", "{}.jpg,{},train"),
            "val.csv": rows("file,label,s", "{}.jpg,{},val"),
        },
        "",
        {"split_column": "s"},
        "cannot use --split-column s: expected one table, got train.csv, val.csv",
    ),
    "few conflicts": (
        {**images("", 20), "t.csv": rows("file,label", "{}.jpg,{}", 20) + b"3.jpg,cat\n"},
        "",
        {},
        "cannot use t.csv:5 and t.csv:22: expected one target for 3.jpg, got 'dog' and 'cat'. Correct them, or use",
    ),
    "two numbers": (
        {**images(), "t.csv": rows("file,age", "{0}.jpg,{0}.5") + b"3.jpg,9.5\n"},
        "",
        {},
        "expected one target for 3.jpg, got '3.5' and '9.5'. Correct them.$",
    ),
    "single task": (
        {**images(), "t.csv": rows("file,label", "{}.jpg,{}|pet")},
        "",
        {"label_sep": "|", "task": "classification"},
        "expected one value per row for --task classification, got several labels",
    ),
    "no separator": (
        {**images(), "t.csv": TABLE},
        "",
        {"task": "multilabel"},
        "cannot find several labels in the target 'label' of .*: expected --label-sep",
    ),
    "two as labels": (
        {**images(), "t.csv": rows("file,x,y", "{0}.jpg,{0},1")},
        "",
        {"target": "x,y", "task": "multilabel"},
        "cannot use t.csv:4, column 'x': expected 0 or 1, got '2'",
    ),
    "labels as classes": (
        {**images(), "t.csv": rows("file,x,y", "{0}.jpg,1,1")},
        "",
        {"target": "x,y", "task": "classification"},
        "expected a single 1 in the columns 'x', 'y' of each row",
    ),
    "a text as number": (
        {**images(), "t.csv": rows("file,x,y", "{0}.jpg,{0},{1}")},
        "",
        {"target": "x,y"},
        "t.csv:2, target 'y': expected several targets to be numbers, or 0 and 1, got 'cat'",
    ),
    "a dash as number": (
        {**images(), "t.csv": rows("file,x,y", "{0}.jpg,{0},{0}") + b"3.jpg,1,-\n"},
        "",
        {"target": "x,y"},
        "t.csv:12, column 'y': expected a number, got '-'",
    ),
    "no values": (
        {**images(), "t.csv": rows("file,label", "{}.jpg,")},
        "",
        {},
        "expected rows with an image and a target, got none",
    ),
    "no training values": (
        {**images(), "train.csv": rows("file,label", "{}.jpg,", 5), "val.csv": rows("file,label", "{}.jpg,{}", 5, 5)},
        "",
        {},
        "expected training rows with a target, got none. Fill",
    ),
    "label of no training row": (
        {
            **images(),
            "train.csv": rows("file,label", "{}.jpg,a|{}", 5),
            "val.csv": rows("file,label", "{}.jpg,b|{}", 5, 5),
        },
        "",
        {"label_sep": "|"},
        "cannot use val.csv:2, target 'label': expected one of the training labels 'a', 'cat', 'dog', got 'b'",
    ),
    "bad pattern": (
        images(),
        "",
        {"label_regex": "("},
        "cannot use --label-regex .*expected a regular expression, got an",
    ),
    "pattern for a table": (
        {**images(), "t.csv": TABLE},
        "t.csv",
        {"label_regex": "(a)"},
        "archive of images, got other data. Pass",
    ),
    "roles of class folders": (
        images("cat") | images("dog", 10, 10),
        "",
        {"image_root": "x", "group_column": "y"},
        "cannot use --image-root and --group-column with .*: expected a table that names images, got images without",
    ),
    "no group": (
        images(),
        "",
        {"label_regex": "a"},
        "expected a group in parentheses for the class, got none. Use a pattern",
    ),
    "no match": (
        images(),
        "",
        {"label_regex": "(x)"},
        "expected a match in the names of .*, got 10 images without one, such as",
    ),
    "json": (
        {"t.jsonl": b'{"a": 1}\n[1]\n'},
        "t.jsonl",
        {"target": "a"},
        r"t.jsonl:2: expected a JSON object, got \[1\]",
    ),
    "json text": (
        {"t.jsonl": b'{"a": 1}\n{"a\n'},
        "t.jsonl",
        {"target": "a"},
        "t.jsonl:2: expected a JSON object, got Invalid",
    ),
    "json bytes": ({"t.jsonl": b"\xff\xff\n"}, "t.jsonl", {}, "t.jsonl:1: expected a JSON object, got Expecting value"),
    "empty json": ({"t.jsonl": b"\n"}, "t.jsonl", {}, "expected JSON objects, got no values"),
    "an open quote": (
        {**images(), "t.csv": b'0.jpg,cat\n1.jpg,"' + b"x" * 200000},
        "t.csv",
        {},
        "cannot read .*t.csv: field larger",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_table_is_refused_in_one_line(tmp_path, name):
    files, data, options, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as error:
        opened(tmp_path, files, data=data, **options)
    assert "\n" not in str(error.value)


def test_the_two_readings_can_be_chosen(tmp_path):
    files, _, _, _ = REFUSED["class folders and a table"]
    assert opened(tmp_path, files, target="age").task == "regression"
    assert labels_of(opened(tmp_path, files, label_regex="([^/]+)/[^/]+$"))["cat/0.jpg"] == "cat"


def test_class_folders_are_not_hidden_by_tables(tmp_path):
    folders = images("cat", 5) | images("dog", 5, 5)
    source = opened(tmp_path / "plain", folders | {"train.csv": rows("a,b", "{0}.5,{1}")})
    assert source.class_names == LABELS and source.count("train") == 10
    assert any("train.csv, which names no images" in warning for warning in source.warnings)
    source = opened(tmp_path / "list", folders | {"list.csv": rows("file", "{}.jpg")})
    assert source.class_names == LABELS and any("which only lists images" in warning for warning in source.warnings)
    source = opened(tmp_path / "broken", folders | {"train.csv": b'a,b\n1,"2\n'})
    assert source.class_names == LABELS and any("ignored a table: cannot read" in w for w in source.warnings)
    agreeing = b"file,label\n" + b"".join(f"{i}.jpg,{'cat' if i < 5 else 'dog'}\n".encode() for i in range(9))
    source = opened(tmp_path / "agreeing", folders | {"t.csv": agreeing})
    assert (
        source.count("train") == 9
        and "ignored 1 image that the table does not name, such as dog/9.jpg" in source.warnings
    )


def test_missing_files_and_rows_without_a_target_are_listed(tmp_path):
    table = TABLE + b"x/90.jpg,cat\n8.jpg,\n,dog\n"
    source = opened(tmp_path, images("", 9) | {"t.csv": table})
    assert [(s.key, s.reason) for s in source.skipped] == [
        ("t.csv:13", "no value in the target 'label'"),
        ("t.csv:14", "no name in 'file'"),
    ]
    with pytest.raises(InputError, match=r"cannot read 4 of 11 images .*9.jpg: no such file \(t.csv:11\)"):
        decode_images(source, SETTINGS, 0.1)
    decoded = decode_images(source, SETTINGS, 0.5)
    assert len(decoded.keys) == 9 and ("x/90.jpg", "no such file (t.csv:12)") in [
        (s.key, s.reason) for s in decoded.skipped
    ]


def test_a_missing_file_is_not_taken_from_another_folder(tmp_path):
    files = noise(*[f"{label}/{i}.png" for label in LABELS for i in range(10)])
    del files["dog/3.png"]
    table = "file,kind\n" + "".join(f"{label}/{i}.png,{label[0]}\n" for label in LABELS for i in range(10))
    source = opened(tmp_path, files | {"t.csv": table.encode()}, target="kind")
    errors = [item for item in source.contents("train") if isinstance(item, InputError)]
    assert [str(error) for error in errors] == ["no such file (t.csv:15)"]


@pytest.mark.parametrize(
    "text", ["../../secret.png", "/etc/passwd", "a\0b.jpg", "x" * 10_000_000, "inner", "0.jpg/", "C:\\x\\y.jpg"]
)
def test_hostile_names_are_missing_files(tmp_path, text):
    path = place(tmp_path, images("", 10) | images("inner", 1, 50), "folder")
    (tmp_path / "secret.png").write_bytes(images()["0.jpg"])
    frame = pd.DataFrame({"file": [*(f"{i}.jpg" for i in range(1, 10)), text], "label": [*(LABELS * 5)]})
    frame.to_json(path / "t.jsonl", orient="records", lines=True)
    source = open_data(str(path))
    (item,) = [item for item in source.contents("train") if isinstance(item, InputError)] or [None]
    if text == "0.jpg/":
        assert item is None
    else:
        assert str(item).startswith(("no such file (t.jsonl:10)", "outside of the data folder"))
        assert len(source.keys["train"][-1]) <= 200


def test_links_and_paths_out_of_the_folder_follow_the_same_rule(tmp_path):
    files = images("set") | images("else", 10, 10)
    place(tmp_path, files, "folder", "all")
    root, others = tmp_path / "all" / "set", tmp_path / "all" / "else"
    (root / "t.csv").write_bytes(
        rows("file,label", "{}.jpg,{}") + rows("", f"{others}/{{}}.jpg,{{}}", 9, 10) + b"link.jpg,dog\n"
    )
    os.symlink(others / "19.jpg", root / "link.jpg")
    source = open_data(str(root / "t.csv"))
    decoded = decode_images(source, SETTINGS, 1.0)
    assert len(decoded.keys) == 10
    reasons = [s.reason for s in decoded.skipped]
    assert "outside of the data folder (allow it with --follow-links, or use --image-root) (t.csv:12)" in reasons
    assert any("leads out of the data folder" in reason for reason in reasons)
    assert len(decode_images(open_data(str(root / "t.csv"), follow_links=True), SETTINGS, 0.0).keys) == 20


def test_a_trained_model_needs_one_split_and_knows_its_target(tmp_path):
    class Known(OutputSpec):
        task, class_names, target_names, label_sep = "classification", ("cat", "dog", "fox"), ("kind",), ""

    table = rows("file,other,kind", "{0}.jpg,{0}.5,{1}").replace(b"dog", b"cat")
    source = opened(tmp_path, images() | {"t.csv": table}, known=Known())
    assert isinstance(source, Source) and source.class_names == Known.class_names
    assert set(labels_of(source).values()) == {"cat"}
    split = rows("file,kind,split", "{}.jpg,{},test")
    source = opened(tmp_path / "test", images() | {"t.csv": split}, known=Known(), split_column="split")
    assert list(source.keys) == ["test"]
    wolf = split.replace(b"dog", b"wolf")
    with pytest.raises(InputError, match="expected one of the training classes 'cat', 'dog', 'fox', got 'wolf'"):
        opened(tmp_path / "wolf", images() | {"t.csv": wolf}, known=Known())


def test_a_trained_model_keeps_rows_without_labels_and_hints_at_no_groups(tmp_path):
    class Known(OutputSpec):
        task, class_names, target_names, label_sep = "multilabel", ("a", "b"), ("tags",), ";"

    table = b"file,patient,tags\n" + b"".join(
        b"%d.jpg,p%d,%s\n" % (i, i // 2, (b"", b"a", b"a;b")[i % 3]) for i in range(10)
    )
    source = opened(tmp_path, images() | {"t.csv": table}, known=Known())
    assert list(labels_of(source).values()) == [((), ("a",), ("a", "b"))[i % 3] for i in range(10)]
    assert not source.skipped and not any("group" in warning for warning in source.warnings)
    message = r"cannot evaluate on the images of .*: expected the target 'tags' of the model, got 'age', 'city'. Choose"
    with pytest.raises(InputError, match=message):
        opened(tmp_path / "other", images() | {"t.csv": CHOICE}, known=Known())


def test_tables_of_rows_in_an_archive(tmp_path):
    files = {"train.csv": rows("size,city", "{0}.5,{1}"), "val.csv": rows("size,city", "{0}.5,{1}")}
    source = opened(tmp_path, files, kind="zip", target="city")
    assert sorted(source.splits) == ["train", "val"] and source.name == "set"
    assert source.splits["train"].row_name(0) == "train.csv:2"


def test_a_damaged_table_in_an_archive_is_named(tmp_path):
    with pytest.raises(InputError, match=r"set.zip/train.csv:2: expected 2 fields as in the header, got 3"):
        opened(tmp_path, images() | {"train.csv": b"a,b\n1,2,3\n"}, kind="zip", target="b")


def test_a_table_in_an_archive_that_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.data.sources.archive_tree.MAX_BYTES", 10)
    with pytest.raises(InputError, match="cannot read the table .*train.csv: file too large: .*Unpack the arch"):
        opened(tmp_path, images() | {"train.csv": TABLE}, kind="zip", target="label")


def test_a_large_json_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.data.sources.table_content._MAX_BYTES", 5)
    with pytest.raises(InputError, match="t.jsonl: expected at most 5 bytes, got 9. Split it, or save it as .parquet"):
        opened(tmp_path, {"t.jsonl": b'{"a": 1}\n'}, data="t.jsonl")
