import errno
import os

import numpy as np
import pytest
from image_folders import class_folders, contents_of, fill, image_bytes, split_folders

from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import BadImage
from skipway.data.sources.file_tree import DiskTree
from skipway.data.sources.image_folder import labeled_source
from skipway.data.sources.image_source import class_order, split_of
from skipway.errors import InputError

HOSTILE = ["<img src=x onerror=alert(1)>", "=cmd()", "\x1b[2J", "a\nb", "x" * 255, "..", "../../x", "'", "%s%n", "‮txt"]


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and "\x1b" not in text
    text.encode("utf-8")
    return text


def test_class_folders_become_labelled_images_in_a_fixed_order(tmp_path):
    source = open_source(str(class_folders(tmp_path, ("dog", "cat"), 3)))
    assert source.class_names == ("cat", "dog") and source.name == tmp_path.name and source.mirrored
    assert source.keys == {"train": [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]}
    assert source.targets["train"].tolist() == [0, 0, 0, 1, 1, 1] and source.targets["train"].dtype == np.int64
    assert contents_of(source) == [(tmp_path / key).read_bytes() for key in source.keys["train"]]
    assert source.count("train") == 6 and source.count("val") == 0 and source.warnings == []


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("val", ["val", "valid", "validation", "VAL"])
@pytest.mark.parametrize("test", ["test", "testing"])
def test_split_folders_may_have_any_of_their_names(tmp_path, train, val, test):
    source = open_source(str(split_folders(tmp_path, ("a", "b"), 1, (train, val, test))))
    assert list(source.keys) == ["train", "val", "test"] and source.keys["val"] == [f"{val}/a/0.png", f"{val}/b/0.png"]
    assert source.name == tmp_path.name


def test_a_name_that_says_nothing_of_a_split_is_none():
    assert [split_of(n) for n in ("Valid", "trains", "", "TEST")] == ["val", None, None, "test"]


@pytest.mark.parametrize(
    "names, order",
    [
        (("10", "2", "1", "0"), ("0", "1", "10", "2")),
        (("b", "A", "a1", "B2"), ("A", "B2", "a1", "b")),
        (("ö", "z", "o\u0308x"), ("z", "ö", "öx")),
        (("-1", "_", " lead", "é"), (" lead", "-1", "_", "é")),
    ],
)
def test_the_order_of_classes_is_that_of_their_characters_wherever_the_folders_lie(tmp_path, names, order):
    assert open_source(str(class_folders(tmp_path, names, 1))).class_names == order
    assert class_order(list(reversed(names)), "here") == order


@pytest.mark.parametrize("one, other", [("cat", "Cat"), ("\u00e9", "e\u0301"), ("dog", "dog "), ("straße", "STRASSE")])
def test_near_equal_class_names_are_refused_in_either_set(tmp_path, one, other):
    with pytest.raises(InputError, match="which differ only in case, spaces or Unicode form. Merge or rename one"):
        open_source(str(class_folders(tmp_path / "a", (one, other, "z"), 1)))
    split_folders(tmp_path / "b", (one, "z"), 1)
    fill(tmp_path / "b" / "val" / other)
    with pytest.raises(InputError, match="differ only in case"):
        open_source(str(tmp_path / "b"))


def test_an_accent_spelt_otherwise_in_validation_is_the_same_class(tmp_path):
    class_folders(tmp_path / "train", ("\u00e9", "z"), 1)
    class_folders(tmp_path / "val", ("e\u0301", "z"), 1)
    source = open_source(str(tmp_path))
    assert source.class_names == ("z", "\u00e9")
    assert dict(zip(source.keys["val"], source.targets["val"].tolist(), strict=True)) == {
        "val/e\u0301/0.png": 1,
        "val/z/0.png": 0,
    }


def test_junk_is_ignored_wherever_it_lies(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    for junk in (".DS_Store", "Thumbs.db", "a/.DS_Store", "b/desktop.ini", "a/._0.png"):
        (tmp_path / junk).write_bytes(b"junk")
    fill(tmp_path / "__MACOSX" / "a")
    fill(tmp_path / ".ipynb_checkpoints")
    source = open_source(str(tmp_path))
    assert source.class_names == ("a", "b") and source.count("train") == 2 and source.warnings == []


def test_files_that_are_no_images_of_a_class_are_counted(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    for name in ("README", "a/labels.txt", "a/more.txt", "loose.png"):
        (tmp_path / name).write_bytes(b"text")
    assert open_source(str(tmp_path)).warnings == [
        "ignored 1 image in the folder, outside of its class folders",
        "ignored files in the folder, which are not images: 2 .txt files (text), 1 file without suffix (no known image "
        "format)",
    ]


def test_an_empty_folder_within_a_class_is_none_of_our_business(tmp_path):
    (class_folders(tmp_path, ("a", "b"), 1) / "a" / "notes").mkdir()
    assert open_source(str(tmp_path)).count("train") == 2


def test_a_class_missing_from_validation_moves_no_label(tmp_path):
    class_folders(tmp_path / "train", ("cow", "cat", "dog"), 1)
    class_folders(tmp_path / "val", ("cat", "dog"), 1)
    (tmp_path / "val" / "cow").mkdir()
    source = open_source(str(tmp_path))
    by_key = dict(zip(source.keys["val"], source.targets["val"].tolist(), strict=True))
    assert by_key == {"val/cat/0.png": 0, "val/dog/0.png": 2} and source.class_names == ("cat", "cow", "dog")
    assert source.warnings == ["the val set has no images of: cow"]


def test_a_class_that_training_lacks_is_refused(tmp_path):
    split_folders(tmp_path, ("a", "b"), 1)
    fill(tmp_path / "val" / "c")
    with pytest.raises(
        InputError, match="expected the classes of the training set, got more in the val set: c. Rename"
    ):
        open_source(str(tmp_path))


def test_a_class_folder_without_images_is_refused_or_left_out(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError,
        match="expected images in every class folder, found none in 'empty'. Add images.*--allow-empty-classes",
    ):
        open_source(str(tmp_path))
    (tmp_path / "void").mkdir()
    with pytest.raises(InputError, match=r"found none in 'empty' and 1 more. Add"):
        open_source(str(tmp_path))
    source = open_source(str(tmp_path), allow_empty_classes=True)
    assert source.class_names == ("a", "b")
    assert source.warnings == ["ignored class folders without images: empty, void"]


def test_fewer_than_two_classes_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least 2 classes, got only 'a'. Add a folder for each"):
        open_source(str(class_folders(tmp_path / "one", ("a",))))
    (tmp_path / "none" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match="expected at least 2 classes, got none"):
        open_source(str(tmp_path / "none"))


def test_two_folders_for_one_split_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected one val folder, got 'val' and 'valid'. Remove or rename one"):
        open_source(str(split_folders(tmp_path, splits=("train", "val", "valid"))))


def test_splits_and_classes_side_by_side_are_refused(tmp_path):
    fill(split_folders(tmp_path, splits=("train",)) / "cat")
    with pytest.raises(
        InputError,
        match=r"expected either split folders or class folders, got splits \(train\) and others \(cat\). Move",
    ):
        open_source(str(tmp_path))


def test_a_validation_folder_without_training_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a train folder, got only val. Add"):
        open_source(str(split_folders(tmp_path, splits=("val",))))


def test_links_that_lead_out_are_refused_unless_they_may_be_followed(tmp_path):
    inside = class_folders(tmp_path / "set", ("a",), 1)
    (inside / "b").symlink_to(fill(tmp_path / "elsewhere", 1, seed=9))
    with pytest.raises(InputError, match="b: the symbolic link leads out of the folder. Use --follow-links"):
        open_source(str(inside))
    source = open_source(str(inside), follow_links=True)
    assert source.count("train") == 2 and all(isinstance(c, bytes) for c in contents_of(source))


def test_a_split_folder_that_leads_out_is_refused_too(tmp_path):
    inside = split_folders(tmp_path / "set", ("a", "b"), 1, ("train",))
    (inside / "val").symlink_to(class_folders(tmp_path / "elsewhere", ("a", "b"), 1, seed=7))
    with pytest.raises(InputError, match="val: the symbolic link leads out of the folder"):
        open_source(str(inside))
    assert open_source(str(inside), follow_links=True).count("val") == 2


def test_a_image_that_leads_out_is_left_out_with_its_reason(tmp_path):
    inside = class_folders(tmp_path / "set", ("a", "b"), 1)
    (tmp_path / "secret.png").write_bytes(image_bytes(5))
    (inside / "a" / "link.png").symlink_to(tmp_path / "secret.png")
    contents = contents_of(open_source(str(inside)))
    assert [type(c) for c in contents] == [bytes, BadImage, bytes] and "leads out" in str(contents[1])


def test_links_within_the_folder_are_read_and_circles_end(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    (tmp_path / "c").symlink_to(tmp_path / "c")
    (tmp_path / "a" / "again.png").symlink_to(tmp_path / "a" / "0.png")
    (tmp_path / "b" / "round.png").symlink_to(tmp_path / "b" / "round.png")
    (tmp_path / "b" / "gone.png").symlink_to(tmp_path / "b" / "nowhere.png")
    for follow in (False, True):
        source = open_source(str(tmp_path), follow_links=follow)
        kinds = dict(zip(source.keys["train"], map(type, contents_of(source)), strict=True))
        assert [key for key, kind in kinds.items() if kind is bytes] == ["a/0.png", "a/again.png", "b/0.png"]
        assert {kinds["b/round.png"], kinds["b/gone.png"]} == {BadImage}


def test_a_link_to_a_parent_ends(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    (tmp_path / "up").symlink_to(tmp_path)
    for follow in (False, True):
        source = open_source(str(tmp_path), follow_links=follow, allow_empty_classes=True)
        assert source.class_names == ("a", "b") and source.count("train") == 2
        assert source.warnings[0] == "ignored 1 link to folders that are read already, first up"


def test_a_class_name_that_is_no_text_is_named(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9")
    os.mkdir(odd)
    with open(os.path.join(odd, b"0.png"), "wb") as file:
        file.write(image_bytes(7))
    with pytest.raises(InputError, match=r"expected class names in UTF-8, got caf\\udce9. Rename") as error:
        open_source(str(tmp_path))
    one_line(error)


def test_a_file_name_that_is_no_text_is_read(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    with open(os.path.join(os.fsencode(tmp_path), b"a", b"\xff\xfe.png"), "wb") as file:
        file.write(image_bytes(7))
    source = open_source(str(tmp_path))
    assert source.keys["train"][1] == "a/\udcff\udcfe.png" and contents_of(source)[1] == image_bytes(7)


@pytest.mark.parametrize("name", [n for n in HOSTILE if "/" not in n and n != ".."])
def test_a_hostile_class_or_file_name_is_a_name(tmp_path, name):
    class_folders(tmp_path / "classes", (name, "b"), 1)
    assert set(open_source(str(tmp_path / "classes")).class_names) == {name, "b"}
    class_folders(tmp_path / "files", ("a", "b"), 1)
    (tmp_path / "files" / "a" / (name[:251] + ".png")).write_bytes(image_bytes(3))
    assert open_source(str(tmp_path / "files")).count("train") == 3
    (tmp_path / "classes" / "b" / "0.png").unlink()
    with pytest.raises(InputError) as error:
        open_source(str(tmp_path / "classes"))
    one_line(error)
    fill(tmp_path / "classes" / "b")
    (tmp_path / "classes" / name / "0.png").unlink()
    with pytest.raises(InputError, match="found none in") as error:
        open_source(str(tmp_path / "classes"))
    one_line(error)


def test_what_is_no_regular_file_never_blocks(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    os.mkfifo(tmp_path / "a" / "pipe.jpg")
    (tmp_path / "a" / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe")
    source = open_source(str(tmp_path))
    reasons = {key: str(c) for key, c in zip(source.keys["train"], contents_of(source), strict=True)}
    assert reasons["a/pipe.jpg"] == "expected a regular file, got a FIFO"
    assert reasons["a/folder.jpg"] == "expected a regular file, got a folder"
    with pytest.raises(InputError, match="or .tsv file, got a pipe, a socket or a device. Convert"):
        open_source(str(tmp_path / "pipe"))
    os.mkfifo(tmp_path / "pipe.zip")
    with pytest.raises(InputError, match="cannot read the archive .*pipe.zip: expected a regular file, got a FIFO"):
        open_source(str(tmp_path / "pipe.zip"))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    class_folders(tmp_path, ("a", "b"), 1)
    scandir = os.scandir

    def locked(path):
        if os.fspath(path).endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match="cannot list the folder .*b: Permission denied. Check its permissions"):
        labeled_source(DiskTree(tmp_path))


def test_peeking_reads_some_images_from_all_over(tmp_path):
    source = labeled_source(DiskTree(class_folders(tmp_path, {"a": 250, "b": 250})))
    peeked = source.peek()
    assert len(peeked) == 200 and peeked[:2] == [(tmp_path / "a" / n).read_bytes() for n in ("0.png", "10.png")]
    everything = contents_of(source)
    assert any(content in peeked for content in everything[250:])


def test_loose_images_are_no_classes(tmp_path):
    fill(tmp_path, 3)
    with pytest.raises(
        InputError, match="expected one subfolder of images per class, got 3 images without subfolders. Put"
    ):
        open_source(str(tmp_path))
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="images per class, got no images. Put"):
        open_source(str(tmp_path / "bare"))


@pytest.mark.parametrize(
    "data", ["", "no such thing", "~nobody-of-this-name/x", "a\0b", "x" * 5000, "digit", "\x1b[2J"]
)
def test_data_that_is_not_there_is_named_with_what_there_could_be(data):
    with pytest.raises(InputError, match="cannot find the data .*Pass a folder with one subfolder per class") as error:
        open_source(data)
    assert ("did you mean digits" in one_line(error)) == (data == "digit")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "set.mp4").write_bytes(b"video")
    with pytest.raises(InputError, match="one subfolder per class, an archive of it, or a .*got a .mp4 file. Convert"):
        open_source(str(tmp_path / "set.mp4"))
    (tmp_path / "set").write_bytes(b"")
    with pytest.raises(InputError, match="got a file without extension"):
        open_source(str(tmp_path / "set"))


def test_digits_need_no_file_and_go_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(class_folders(tmp_path / "x", ("digits", "cifar10"), 1))
    class_folders(tmp_path / "x" / "cifar10" / "train", ("u", "v"), 1)
    (tmp_path / "x" / "cifar10" / "0.png").unlink()
    source = open_source("digits")
    assert source.count("train") == 1797 and source.class_names == tuple("0123456789") and not source.mirrored
    first = next(source.contents("train"))
    assert first.shape == (8, 8) and first.dtype == np.uint8 and first.max() == 239 and len(source.peek()) == 200
    assert open_source("cifar10").class_names == ("u", "v"), "a folder that exists goes before a name of the Hub"
