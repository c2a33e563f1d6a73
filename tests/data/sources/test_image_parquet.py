import json
import re
import sys
import tracemalloc

import numpy as np
import pytest
from image_folders import fill, image_bytes, parquet

from skipway.data.column_roles import ColumnRoles
from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.open_data import open_data
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_parquet import parquet_source
from skipway.data.sources.parquet_files import parquet_files
from skipway.errors import InputError, MissingExtra

pyarrow = pytest.importorskip("pyarrow")

NAMES = ("cat", "cow", "dog")


def opened(path, **options):
    return parquet_source(path, roles=ColumnRoles.of(options))


@pytest.mark.parametrize("column", ["img", "image"])
def test_images_and_class_names_come_out_of_the_file(tmp_path, column):
    file = parquet(tmp_path / "train-00000-of-00001.parquet", [2, 0, 1], NAMES, column)
    for data in (tmp_path, file):
        source = open_source(str(data))
        assert source.class_names == NAMES and source.targets["train"].tolist() == [2, 0, 1]
        assert source.keys["train"] == [f"{file.name}:{i}" for i in range(3)]
        assert list(source.contents("train")) == source.peek() == [image_bytes(i) for i in range(3)]
    assert open_source(str(tmp_path)).name == tmp_path.name and open_source(str(file)).name == file.stem


def test_labels_that_are_text_are_class_names(tmp_path):
    parquet(tmp_path / "train.parquet", ["dog", "cat", "dog"])
    source = open_source(str(tmp_path))
    assert source.class_names == ("cat", "dog") and source.targets["train"].tolist() == [1, 0, 1]


def test_numbers_without_names_are_sorted_as_numbers(tmp_path):
    parquet(tmp_path / "train.parquet", [10, 2, 1, 2])
    parquet(tmp_path / "test.parquet", [2, 10])
    source = open_source(str(tmp_path))
    assert source.class_names == ("1", "2", "10") and source.targets["train"].tolist() == [2, 1, 0, 1]
    assert source.targets["test"].tolist() == [1, 2] and source.warnings == ["the test set has no images of: 1"]


def test_shards_of_a_split_follow_one_another(tmp_path):
    for i, labels in enumerate([[0, 1], [2, 0], [1]]):
        parquet(tmp_path / "data" / f"train-0000{i}-of-00003.parquet", labels, NAMES, seed=i)
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [1, 2, 0], NAMES, seed=9)
    source = open_source(str(tmp_path))
    assert source.targets["train"].tolist() == [0, 1, 2, 0, 1] and list(source.keys) == ["train", "val"]
    assert source.keys["train"][2] == "data/train-00001-of-00003.parquet:0"
    assert list(source.contents("train")) == [
        image_bytes(1000 * i + j) for i, j in [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    ]


def test_the_hubs_converted_files_are_told_apart_by_their_folders(tmp_path):
    for i, split in enumerate(("train", "validation", "test")):
        parquet(tmp_path / "default" / split / "0000.parquet", [0, 1, 2], NAMES, seed=i)
    source = open_source(str(tmp_path))
    assert (
        list(source.keys) == ["train", "val", "test"] and source.keys["val"][0] == "default/validation/0000.parquet:0"
    )
    assert len({key for keys in source.keys.values() for key in keys}) == 9


@pytest.mark.parametrize("name", ["valid", "val-0", "validation_1", "Validation.x"])
def test_validation_has_several_names(tmp_path, name):
    parquet(tmp_path / "train.parquet", [0, 1], NAMES[:2])
    parquet(tmp_path / f"{name}.parquet", [0, 1], NAMES[:2])
    assert open_source(str(tmp_path)).count("val") == 2


def test_labels_of_another_split_are_matched_by_name_in_every_shard(tmp_path):
    parquet(tmp_path / "train-0.parquet", [0, 1, 2], NAMES)
    parquet(tmp_path / "train-1.parquet", [0, 1, 2], ("dog", "cow", "cat"))
    parquet(tmp_path / "test-0.parquet", [0, 1], ("dog", "cat"))
    parquet(tmp_path / "test-1.parquet", [0, 1, 2], ("cow", "dog", "cat"))
    source = open_source(str(tmp_path))
    assert source.targets["train"].tolist() == [0, 1, 2, 2, 1, 0]
    assert source.targets["test"].tolist() == [2, 0, 1, 2, 0]


def test_several_data_sets_in_one_folder_are_refused(tmp_path):
    for name in ("small", "large"):
        parquet(tmp_path / name / "train.parquet", [0, 1], NAMES[:2])
    with pytest.raises(
        InputError, match=r"expected one dataset, got several \(large, small\). Pass one of their folders"
    ):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path / "small")).count("train") == 2


def test_files_of_an_unknown_split_are_refused(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / "more.parquet", [0, 1])
    with pytest.raises(
        InputError, match="cannot find the split of .*more.parquet: expected a name with train, validation or test, as"
    ):
        open_source(str(tmp_path))
    for name in ("a", "b"):
        parquet(tmp_path / "x" / f"test-{name}.parquet", [0, 1])
    with pytest.raises(InputError, match="expected a parquet file whose name contains train. Rename one"):
        open_source(str(tmp_path / "x"))


def test_missing_columns_are_named(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"photo": [1], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="expected a column of images, got 'photo', 'label'. Save them with the Image"):
        parquet_source(tmp_path)
    two = {"image": [image_bytes(0)], "height": [1.5], "width": [1.5]}
    pyarrow.parquet.write_table(pyarrow.table(two), tmp_path / "train.parquet")
    with pytest.raises(
        InputError,
        match="expected a column label, or one other column of labels, got 'image', 'height', 'width'. Choose",
    ):
        parquet_source(tmp_path)
    for target in ("hieght", "height, image"):
        with pytest.raises(InputError, match="cannot find the target .* in .*: expected one of 'height', 'width'"):
            opened(tmp_path, target=target)
    with pytest.raises(
        InputError, match="cannot find the image column 'imgae' in .*: expected one of 'image'.* Correct"
    ):
        opened(tmp_path, image_column="imgae")


def test_a_image_column_of_another_type_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(
        InputError, match="the column 'image' of .*: expected bytes, or a struct of bytes and path, got string. Save"
    ):
        parquet_source(tmp_path)


def test_large_binary_and_other_orders_of_fields_are_images_too(tmp_path):
    struct = pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.large_binary()})
    parquet(tmp_path / "train.parquet", [0, 1], NAMES[:2], struct=struct)
    assert list(open_source(str(tmp_path)).contents("train")) == [image_bytes(0), image_bytes(1)]


def test_a_later_shard_that_lacks_a_column_is_named(tmp_path):
    parquet(tmp_path / "train-0.parquet", [0, 1])
    pyarrow.parquet.write_table(pyarrow.table({"label": [0]}), tmp_path / "train-1.parquet")
    with pytest.raises(InputError, match="train-1.parquet: expected the column 'image' as in the train file. Add"):
        list(open_source(str(tmp_path)).contents("train"))
    pyarrow.parquet.write_table(pyarrow.table({"image": [0]}), tmp_path / "train-1.parquet")
    with pytest.raises(InputError, match="train-1.parquet: expected the column 'label' as in the train file. Add"):
        open_source(str(tmp_path))


def test_a_label_that_is_no_class_is_named_by_its_row(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 7, 1], NAMES[:2])
    with pytest.raises(
        InputError,
        match="row 1 of the train set of .*: expected a class of the training set, got 7. Correct",
    ):
        open_source(str(tmp_path))


@pytest.mark.parametrize("labels", [[0, None, 1], [0, -1, 1]])
def test_rows_without_a_label_are_skipped_and_listed(tmp_path, labels):
    parquet(tmp_path / "train.parquet", labels, NAMES[:2])
    source = open_source(str(tmp_path))
    assert source.keys["train"] == ["train.parquet:0", "train.parquet:2"] and source.targets["train"].tolist() == [0, 1]
    assert list(source.contents("train")) == [image_bytes(0), image_bytes(2)]
    assert [(row.key, row.reason) for row in source.skipped] == [("train.parquet:1", "no value in the column 'label'")]
    with pytest.raises(InputError, match="cannot read 1 of .* images"):
        decode_images(source, DecodeSettings(8, 8, 3))
    assert len(decode_images(source, DecodeSettings(8, 8, 3), max_unreadable=0.5).skipped) == 1


def test_a_label_that_only_validation_has_is_refused(tmp_path):
    parquet(tmp_path / "train.parquet", ["a", "b"])
    parquet(tmp_path / "val.parquet", ["b", "\x1b[2J"])
    with pytest.raises(
        InputError, match=r"row 1 of the val set of .*: expected a class of the training set, got \\x1b\[2J"
    ):
        open_source(str(tmp_path))


def test_a_test_set_with_withheld_labels_is_left_out(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1], NAMES[:2])
    parquet(tmp_path / "test.parquet", [-1, -1, -1], NAMES[:2])
    source = open_source(str(tmp_path))
    assert list(source.keys) == ["train"] and source.warnings == ["ignored the test set: its labels are withheld"]


def test_class_names_that_repeat_or_are_too_few_are_refused(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1], ("a", "a"))
    with pytest.raises(InputError, match="the column 'label' of .*: expected unique class names, got duplicates"):
        open_source(str(tmp_path))
    parquet(tmp_path / "train.parquet", [3, 3])
    with pytest.raises(
        InputError, match="the column 'label' of .*: expected at least 2 classes, got 1. Add images of other"
    ):
        open_source(str(tmp_path))


def test_declared_classes_without_images_are_refused_or_left_out(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 2, 2], (*NAMES, "eel"))
    parquet(tmp_path / "test.parquet", [2], NAMES)
    with pytest.raises(
        InputError,
        match=r"images of every class, found none of 'cow' and 1 more. Add images.*--allow-empty-classes",
    ):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), allow_empty_classes=True)
    assert source.class_names == ("cat", "dog") and source.targets["train"].tolist() == [0, 1, 1]
    assert source.targets["test"].tolist() == [1]
    assert source.warnings[0] == "ignored classes without training images: cow, eel"


def test_rows_without_bytes_are_skipped_and_counted(tmp_path):
    rows = [image_bytes(0), None, b"", image_bytes(3), b"no image"]
    parquet(tmp_path / "train.parquet", [0, 1, 0, 1, 0], NAMES[:2], rows=rows)
    source = open_source(str(tmp_path))
    assert [type(c) for c in source.contents("train")] == [bytes, BadImage, BadImage, bytes, bytes]
    packed = decode_images(source, DecodeSettings(8, 8, 3), max_unreadable=0.6)
    assert packed.keys == ["train.parquet:0", "train.parquet:3"] and packed.targets.tolist() == [0, 1]
    reasons = {s.key: s.reason for s in packed.skipped}
    assert reasons["train.parquet:1"] == reasons["train.parquet:2"] == "empty: the row has no image bytes"
    assert reasons["train.parquet:4"].startswith("unsupported format") and not packed.notes


@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    file = parquet(tmp_path / "train.parquet", [0, 1], NAMES[:2])
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)] if keep == 0.5 else whole[:keep])
    with pytest.raises(InputError, match="cannot read the parquet file .*train.parquet: .*Download it again") as error:
        open_source(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_page_that_is_broken_within_the_file_is_named_while_it_is_read(tmp_path):
    file = parquet(tmp_path / "train.parquet", [0, 1], NAMES[:2])
    whole = bytearray(file.read_bytes())
    whole[4:60] = b"\xff" * 56
    file.write_bytes(whole)
    with pytest.raises(InputError, match="cannot read the parquet file .*train.parquet"):
        list(open_source(str(tmp_path)).contents("train"))


def test_a_file_without_rows_has_no_class(tmp_path):
    parquet(tmp_path / "train.parquet", [], NAMES)
    with pytest.raises(InputError, match="found none of 'cat'"):
        open_source(str(tmp_path))
    parquet(tmp_path / "train.parquet", [])
    with pytest.raises(InputError, match="expected at least 2 classes"):
        open_source(str(tmp_path))


def test_images_beside_parquet_files_are_refused(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1])
    fill(tmp_path / "cat")
    with pytest.raises(InputError, match="expected either images or parquet files, got both. Move one"):
        open_source(str(tmp_path))


def test_an_empty_folder_holds_nothing(tmp_path):
    assert parquet_files(tmp_path) == []
    with pytest.raises(InputError, match="expected one subfolder of images per class, got no images. Put"):
        open_source(str(tmp_path))


def test_hidden_files_and_folders_of_that_name_are_no_parquet_files(tmp_path):
    file = parquet(tmp_path / "train.parquet", [0, 1])
    parquet(tmp_path / ".cache" / "train.parquet", [0, 1])
    (tmp_path / "spark.parquet").mkdir()
    assert parquet_files(tmp_path) == [file] == parquet_files(file)
    assert parquet_files(tmp_path / "nowhere") == []


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    parquet(tmp_path / "train.parquet", [0, 1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtra, match=r"reading .*train.parquet needs the extra 'parquet', which is not installed"
    ):
        open_source(str(tmp_path))


def test_one_row_group_is_in_memory_at_a_time(tmp_path):
    random = np.random.default_rng(0)
    rows = [random.bytes(20_000) for _ in range(2000)]
    parquet(tmp_path / "train.parquet", [i % 2 for i in range(2000)], NAMES[:2], rows=rows, row_group_size=100)
    source = parquet_source(tmp_path)
    del rows
    before = pyarrow.total_allocated_bytes()
    tracemalloc.start()
    most = 0
    for content in source.contents("train"):
        assert len(content) == 20_000
        most = max(most, pyarrow.total_allocated_bytes() - before)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most + python < 12_000_000, "the file has 40 MB"


def test_rows_and_labels_stay_aligned_over_many_batches(tmp_path):
    rows = [None if i % 37 == 0 else b"%d" % i for i in range(700)]
    parquet(tmp_path / "train.parquet", [i % 3 for i in range(700)], NAMES, rows=rows)
    source = parquet_source(tmp_path)
    for i, content in enumerate(source.contents("train")):
        assert isinstance(content, BadImage) if i % 37 == 0 else content == b"%d" % i
    assert np.array_equal(source.targets["train"], np.arange(700) % 3)


@pytest.mark.parametrize(
    "labels, kind",
    [
        (pyarrow.array([{"name": "cat"}, {"name": "dog"}]), "struct<name: string>"),
        (
            pyarrow.array([[("cat", 1)], [("dog", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "map<string, int64",
        ),
        (pyarrow.array([[[0]], [[1]]]), "list<"),
        (pyarrow.array([[{"a": 1}], []]), "list<"),
        (pyarrow.array([b"cat", b"dog"]), "binary"),
    ],
)
def test_labels_that_are_nested_are_refused_in_every_split(tmp_path, labels, kind):
    parquet(tmp_path / "train.parquet", labels)
    text = f"train.parquet: expected labels as strings, numbers or lists of them, got {kind}"
    with pytest.raises(InputError, match=f"{re.escape(text)}.*Store one class, or a list of labels, per image"):
        open_source(str(tmp_path))
    parquet(tmp_path / "train.parquet", ["cat", "dog"])
    parquet(tmp_path / "test.parquet", labels)
    with pytest.raises(
        InputError,
        match="cannot read the column 'label' of .*test.parquet: expected labels as strings, numbers or",
    ):
        open_source(str(tmp_path))


@pytest.mark.parametrize(
    "labels",
    [
        pyarrow.array([[2, 0], [], None, [1, 1]]),
        pyarrow.array([[2, 0], [], None, [1, None]], pyarrow.large_list(pyarrow.int64())),
        pyarrow.array([["dog", "cat"], [], None, ["cow"]]),
        pyarrow.array([["dog", "cat"], [], None, ["cow"]], pyarrow.list_(pyarrow.dictionary("int8", pyarrow.string()))),
    ],
)
def test_lists_of_labels_are_a_multilabel_target(tmp_path, labels):
    file = parquet(tmp_path / "train.parquet", labels)
    if "int64" in str(labels.type):
        features = {"label": [{"names": NAMES, "_type": "ClassLabel"}], "tags": {}}
        for feature in (features["label"], {"feature": features["label"][0], "_type": "List", "length": -1}):
            info = {"info": {"features": {"label": feature}}}
            table = pyarrow.parquet.read_table(file).replace_schema_metadata({"huggingface": json.dumps(info)})
            pyarrow.parquet.write_table(table, file)
            assert parquet_source(tmp_path).class_names == NAMES
    source = open_source(str(tmp_path))
    assert source.task == "multilabel" and source.class_names == NAMES and source.target_names == ("label",)
    assert source.targets["train"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert source.targets["train"].dtype == np.float32 and [row.key for row in source.skipped] == ["train.parquet:2"]
    for task in ("classification", "regression"):
        with pytest.raises(InputError, match=f"expected one value per image for --task {task}, got lists. Use --task"):
            opened(tmp_path, task=task)
    parquet(tmp_path / "val.parquet", pyarrow.array([["cow", "eel"]]))
    with pytest.raises(InputError, match="row 0 of the val set of .*: expected a class of the training set, got eel"):
        parquet_source(tmp_path)


@pytest.mark.parametrize(
    "labels, task, said",
    [
        (
            pyarrow.array([[1, 0], [1, 1]]),
            "auto",
            "expected lists of labels, got vectors of 2 numbers. Store the",
        ),
        (
            pyarrow.array([None, None], pyarrow.string()),
            "auto",
            "expected a value in some training rows, got none in 2",
        ),
        (pyarrow.array([None, ""]), "regression", "expected a value in some training rows, got none in 2. Choose"),
        (pyarrow.array([1.0, float("inf")]), "auto", "expected a class in the column 'label', got the number inf. Use"),
    ],
)
def test_labels_that_mean_nothing_are_refused(tmp_path, labels, task, said):
    parquet(tmp_path / "train.parquet", labels)
    with pytest.raises(InputError, match=said):
        opened(tmp_path, task=task)


def test_labels_with_a_separator(tmp_path):
    parquet(tmp_path / "train.parquet", ["dog; cat", "", "cow"])
    source = opened(tmp_path, label_sep=";")
    assert source.targets["train"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]] and source.label_sep == ";"
    with pytest.raises(InputError, match="expected lists of labels for --task multilabel, got single values. Add"):
        opened(tmp_path, task="multilabel")


def columns_file(path, **columns):
    """A parquet file of `columns`, with an image in every row."""
    images = [image_bytes(i) for i in range(len(next(iter(columns.values()))))]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, **columns}), path)
    return path


def test_numbers_and_several_columns_are_targets(tmp_path):
    file = columns_file(
        tmp_path / "train.parquet", age=[20.5, None, 3.0], size=[1, 2, 3], red=[0, 1, 1], big=[True, False, True]
    )
    source = opened(file, target="age", task="regression")
    assert source.task == "regression" and source.class_names == () and source.target_names == ("age",)
    assert source.targets["train"].tolist() == [[20.5], [3.0]] and source.targets["train"].dtype == np.float64
    both = opened(file, target='"age", size')
    assert both.task == "regression" and both.targets["train"].tolist() == [[20.5, 1], [3, 3]]
    assert "'age' or 'size'" in both.skipped[0].reason
    labels = opened(file, target="red,big")
    assert labels.task == "multilabel" and labels.class_names == ("red", "big")
    assert labels.targets["train"].tolist() == [[0, 1], [1, 0], [1, 1]]
    with pytest.raises(InputError, match="row 0 of .*expected a class in the column 'age', got the number 20.5. Use"):
        opened(file, target="age")
    with pytest.raises(InputError, match="expected one target column, got 2. Use --task multilabel for columns of 0"):
        opened(file, target="red,big", task="classification")
    with pytest.raises(InputError, match="row 1 of .*expected 0 or 1 in the column 'size', got 2. Correct the value"):
        opened(file, target="red,size", task="multilabel")
    text = columns_file(tmp_path / "train.parquet", age=["old", "5"])
    with pytest.raises(InputError, match="row 0 of .*expected a finite number in the column 'age', got old. Correct"):
        opened(text, target="age", task="regression")


@pytest.mark.parametrize(
    "labels, names",
    [
        (pyarrow.array([True, False, True]), ("False", "True")),
        (pyarrow.array([2.0, 10.0, float("nan")]), ("2", "10")),
        (pyarrow.array(["b", "a", "b"]).dictionary_encode(), ("a", "b")),
        (pyarrow.array(["b", "a", "b"], pyarrow.large_string()), ("a", "b")),
        (pyarrow.array(["b", "a", "b"], pyarrow.string_view()), ("a", "b")),
    ],
)
def test_labels_of_any_plain_type_are_classes(tmp_path, labels, names):
    pytest.importorskip("pyarrow", "16")
    source = parquet_source(columns_file(tmp_path / "0000.parquet", kind=labels))
    assert source.class_names == names and source.target_names == ("kind",)


def test_the_target_is_a_declared_column_or_the_only_one(tmp_path):
    file = columns_file(tmp_path / "train.parquet", breed=[0, 1], note=["x", "y"], score=[0.5, 1.5])
    with pytest.raises(InputError, match="cannot choose the target of .* got 'breed', 'note'. Choose one with --t"):
        parquet_source(file)
    info = {"info": {"features": {"breed": {"names": ["pug", "lab"], "_type": "ClassLabel"}}}}
    table = pyarrow.parquet.read_table(file).replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(table, file)
    assert parquet_source(file).class_names == ("pug", "lab") and opened(file, target="note").class_names == (
        "x",
        "y",
    )


def test_bytes_without_a_struct_and_several_image_columns(tmp_path):
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    front = pyarrow.array([{"bytes": image_bytes(0), "path": None}, None], struct)
    for kind in (
        pyarrow.binary(),
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.dictionary("int8", pyarrow.binary()),
    ):
        back = pyarrow.array([image_bytes(2), image_bytes(3)], pyarrow.binary()).cast(kind)
        try:
            pyarrow.parquet.write_table(
                pyarrow.table({"front": front, "back": back, "label": ["a", "b"]}), tmp_path / "train.parquet"
            )
        except pyarrow.ArrowNotImplementedError:
            continue
        with pytest.raises(
            InputError, match="expected one column of images, got 'front', 'back'. Choose one with --image"
        ):
            parquet_source(tmp_path)
        assert list(opened(tmp_path, image_column="back").contents("train")) == [
            image_bytes(2),
            image_bytes(3),
        ]
    contents = list(opened(tmp_path, image_column="front").contents("train"))
    assert contents[0] == image_bytes(0) and isinstance(contents[1], BadImage)


def test_paths_are_read_next_to_their_file_and_nowhere_else(tmp_path):
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    for name in ("a.png", "data/b.png", "../c.png"):
        (root / name).write_bytes(image_bytes(len(name)))
    paths = ["a.png", "b.png", "../../c.png", "none.png", None]
    images = pyarrow.array([{"path": path} for path in paths], pyarrow.struct({"path": pyarrow.string()}))
    table = pyarrow.table({"image": images, "label": ["x", "y", "x", "y", "x"]})
    pyarrow.parquet.write_table(table, root / "data" / "train.parquet")
    source = parquet_source(root)
    contents = [item() if callable(item) else item for item in source.contents("train")]
    assert contents[:2] == [image_bytes(5), image_bytes(10)] == source.peek()[:2]
    assert [str(content) for content in contents[2:]] == [
        "the symbolic link leads out of the data folder (allow it with --follow-links)",
        "not readable: No such file or directory",
        "empty: the row has no image bytes",
    ]


@pytest.mark.parametrize(
    "names, counts",
    [
        (["0000", "0001"], {"train": 4}),
        (["part-00000", "part-00001"], {"train": 4}),
        (["data-00000-of-00002", "data-00001-of-00002"], {"train": 4}),
        (["default/partial-train/0000", "default/test/0000"], {"train": 2, "test": 2}),
        (["training_set/part-0", "dev/part-0"], {"train": 2, "val": 2}),
        (["pets-train", "pets-test"], {"train": 2, "test": 2}),
        (["split=train/0", "split=validation/0"], {"train": 2, "val": 2}),
    ],
)
def test_shards_with_numbers_and_splits_in_names(tmp_path, names, counts):
    for i, name in enumerate(names):
        parquet(tmp_path / f"{name}.parquet", [0, 1], NAMES[:2], seed=i)
    source = open_source(str(tmp_path))
    assert {split: source.count(split) for split in source.keys} == counts


def test_a_file_that_does_not_fit_in_memory_is_not_called_broken(tmp_path, monkeypatch):
    parquet(tmp_path / "train.parquet", ["cat", "dog"])

    def full(*_, **__):
        raise pyarrow.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", full)
    with pytest.raises(MemoryError):
        open_source(str(tmp_path))


def test_roles_of_columns_of_other_tables_are_refused(tmp_path):
    file = str(parquet(tmp_path / "train.parquet", ["a", "b"]))
    for role in ("group_column", "weight_column", "split_column", "split_by", "features"):
        flag = "--" + role.replace("_", "-")
        with pytest.raises(InputError, match=f"cannot use {flag} with .*, got a Parquet file of images. Drop {flag}"):
            open_data(file, ColumnRoles.of({role: "w"}))
    assert open_data(file, ColumnRoles.of({"image_column": "image"})).count("train") == 2


def test_a_trained_model_knows_its_target_and_separator(tmp_path):
    class Known(OutputSpec):
        task, class_names, target_names, label_sep = "multilabel", ("a", "b"), ("label",), ";"

    file = str(parquet(tmp_path / "train.parquet", ["a;b", "", "a"]))
    source = open_data(file, known=Known())
    assert source.task == "multilabel" and source.targets["train"].tolist() == [[1, 1], [0, 0], [1, 0]]
