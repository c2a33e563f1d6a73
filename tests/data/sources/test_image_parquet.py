import re
import sys
import tracemalloc

import numpy as np
import pytest
from image_folders import fill, image_bytes, parquet

from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_parquet import parquet_files, parquet_source
from skipway.errors import InputError, MissingExtra

pyarrow = pytest.importorskip("pyarrow")

NAMES = ("cat", "cow", "dog")


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
        InputError, match="cannot find the split of .*more.parquet: expected a name that begins with train"
    ):
        open_source(str(tmp_path))
    for name in ("a", "b"):
        parquet(tmp_path / "x" / f"test-{name}.parquet", [0, 1])
    with pytest.raises(InputError, match="expected a parquet file whose name begins with train. Rename one"):
        open_source(str(tmp_path / "x"))


@pytest.mark.parametrize("table", [{"photo": [1], "label": [0]}, {"image": [1], "target": [0]}])
def test_missing_columns_are_named(tmp_path, table):
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"expected the columns image or img and label, got \w+, \w+. Rename"):
        open_source(str(tmp_path))


def test_a_image_column_of_another_type_is_refused(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"image": ["a.png"], "label": [0]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="the column 'image' of .*: expected a struct of bytes and path, got string"):
        open_source(str(tmp_path))


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


@pytest.mark.parametrize("labels, said", [([0, None, 1], "no label"), ([0, 7, 1], "7"), ([0, -1, 1], "-1")])
def test_a_label_that_is_no_class_is_named_by_its_row(tmp_path, labels, said):
    parquet(tmp_path / "train.parquet", labels, NAMES[:2])
    with pytest.raises(
        InputError, match=f"row 1 of the train set of .*: expected a class of the training set, got {said}. Correct"
    ):
        open_source(str(tmp_path))


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
        (pyarrow.array([[0], [1, 2]]), "list<"),
        (pyarrow.array([{"name": "cat"}, {"name": "dog"}]), "struct<name: string>"),
        (
            pyarrow.array([[("cat", 1)], [("dog", 2)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "map<string, int64",
        ),
        (pyarrow.array([[0, 1], [1, 2]], pyarrow.list_(pyarrow.int64(), 2)), "fixed_size_list<"),
    ],
)
def test_labels_that_are_lists_or_structs_are_refused_in_every_split(tmp_path, labels, kind):
    parquet(tmp_path / "train.parquet", labels)
    text = f"train.parquet: expected labels as strings or integers, got {kind}"
    with pytest.raises(InputError, match=f"{re.escape(text)}.*Store one class per image"):
        open_source(str(tmp_path))
    parquet(tmp_path / "train.parquet", ["cat", "dog"])
    parquet(tmp_path / "test.parquet", labels)
    with pytest.raises(
        InputError, match="cannot read the column 'label' of .*test.parquet: expected labels as strings or integers"
    ):
        open_source(str(tmp_path))


def test_a_label_that_is_nan_is_no_class(tmp_path):
    parquet(tmp_path / "train.parquet", pyarrow.array([1.0, 2.0, float("nan")]))
    with pytest.raises(InputError, match="row 2 of the train set of .*got no label"):
        open_source(str(tmp_path))


def test_a_file_that_does_not_fit_in_memory_is_not_called_broken(tmp_path, monkeypatch):
    parquet(tmp_path / "train.parquet", ["cat", "dog"])

    def full(*_, **__):
        raise pyarrow.ArrowMemoryError("malloc of size 99 failed")

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read", full)
    with pytest.raises(MemoryError):
        open_source(str(tmp_path))
