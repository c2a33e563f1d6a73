"""The catalogue of bad image sets, each through the public path: found, packed, divided, checked for copies.

Every case says what must come out: an error's text, or what the summary counts. The set on disk is never changed.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from image_folders import class_folders, fill, image_bytes, split_folders, tree
from PIL import Image

from skipway.data.images.choose_decode_settings import choose_decode_settings
from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodedImages
from skipway.data.images.split import describe, hold_out, refuse_leaks
from skipway.data.sources.choose_source import open_source
from skipway.errors import InputError


def through(
    root, max_unreadable=0.01, follow_links=False, allow_empty_classes=False, allow_duplicates=False
) -> DecodedImages:
    source = open_source(str(root), follow_links, allow_empty_classes)
    packed = decode_images(source, choose_decode_settings(source, None, "squash", 50_000_000), max_unreadable)
    refuse_leaks(packed, allow_duplicates)
    hold_out(packed, 0.25, 0)
    return packed


@dataclass
class Case:
    """A row of the catalogue: how to build it, options, and what must come out of it."""

    row: str
    what: str
    build: object
    error: str = ""
    told: tuple = ()  # phrases of the summary's warnings, notes or reasons
    train: int | None = None
    options: tuple = ()

    def __str__(self):
        return f"{self.row}: {self.what}"


def bad(path, data=b"<html>404</html>"):
    Path(path).write_bytes(data)


def bad_in_training(root):
    bad(class_folders(root, ("a", "b"), 40) / "a" / "7.png")


def many_bad(root):
    for i in range(3):
        bad(class_folders(root, ("a", "b"), 40) / "b" / f"{i}.png") if i == 0 else bad(root / "b" / f"{i}.png", b"")


def bad_in_validation(root):
    bad(split_folders(root, ("a", "b"), 5, ("train", "val", "test")) / "val" / "a" / "0.png", image_bytes(1)[:-60])
    bad(root / "test" / "b" / "4.png", b"")


def vanished(root):
    class_folders(root, ("a", "b"), 40)
    (root / "a" / "gone.png").symlink_to(root / "a" / "nowhere.png")


def conversions(root):
    class_folders(root, ("a", "b"), 4)
    base = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    for name, mode in (("grey", "L"), ("two", "1"), ("palette", "P"), ("la", "LA"), ("rgba", "RGBA")):
        base.convert(mode).save(root / "a" / f"{name}.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 0)).save(root / "b" / "clear.png")


def loop(root):
    class_folders(root, ("a", "b"), 4)
    (root / "round").symlink_to(root / "round")
    (root / "a" / "round.png").symlink_to(root / "a" / "round.png")


def outside(root):
    class_folders(root, ("a",), 4)
    fill(root.parent / "other", 4, seed=9)
    (root / "b").symlink_to(root.parent / "other")


def file_outside(root):
    class_folders(root, ("a", "b"), 4)
    bad(root.parent / "secret.png", image_bytes(77))
    (root / "a" / "link.png").symlink_to(root.parent / "secret.png")


def empty_class(root):
    class_folders(root, ("a", "b"), 4)
    (root / "c").mkdir()


def only_bad(root):
    class_folders(root, ("a", "b"), 40)
    bad(fill(root / "c", 1) / "0.png")


def missing_in_validation(root):
    split_folders(root, ("cat", "cow", "dog"), 4)
    shutil.rmtree(root / "val" / "cat")


def extra_in_validation(root):
    fill(split_folders(root, ("cat", "dog"), 4) / "val" / "emu")


def junk(root):
    class_folders(root, ("0", "1", "2", "10"), 4)
    bad(root / ".DS_Store")
    bad(root / "0" / "Thumbs.db")
    fill(root / "__MACOSX" / "0")


def nested(root):
    for i, name in enumerate(("a/cat", "a/dog/deep", "b/cat")):
        fill(root / name, 4, seed=i)


HOSTILE = ("<img src=x onerror=alert(1)>", "=cmd()", "\x1b[2J", "new\nline", "y" * 255, "'..'")


def hostile_names(root):
    class_folders(root, HOSTILE, 4)
    for i, name in enumerate(HOSTILE):
        bad(root / HOSTILE[0] / f"{name[:200]}.png", image_bytes(5000 + i))


def bytes_in_a_class_name(root):
    class_folders(root, ("a", "b"), 4)
    os.mkdir(os.path.join(os.fsencode(root), b"\xff\xfe"))
    shutil.copy(root / "a" / "0.png", os.path.join(os.fsencode(root), b"\xff\xfe", b"0.png"))


def bytes_in_a_file_name(root):
    class_folders(root, ("a", "b"), 40)
    with open(os.path.join(os.fsencode(root), b"a", b"caf\xe9.png"), "wb") as file:
        file.write(b"bad")


def same_in_both(root):
    split_folders(root, ("a", "b"), 4)
    shutil.copy(root / "train" / "a" / "0.png", root / "val" / "a" / "other.png")


def two_classes(root):
    class_folders(root, ("a", "b"), 8)
    shutil.copy(root / "a" / "0.png", root / "b" / "other.png")


def near(one, other):
    return lambda root: class_folders(root, (one, other, "z"), 4)


def no_regular_files(root):
    class_folders(root, ("a", "b"), 40)
    os.mkfifo(root / "a" / "pipe.jpg")


CASES = [
    Case(
        "I4",
        "one bad file in eighty needs more than the default",
        bad_in_training,
        "1 of 80 images .* --max-unreadable",
    ),
    Case(
        "I4",
        "and is left out where that is allowed",
        bad_in_training,
        told=("1 left out", "unsupported format"),
        train=59,
        options=(("max_unreadable", 0.02),),
    ),
    Case(
        "I4",
        "three bad files are all named",
        many_bad,
        r"3 of 80 .*b/0.png: unsupported format.*b/1.png, b/2.png: empty file",
    ),
    Case(
        "I5",
        "bad files of validation and test are left out",
        bad_in_validation,
        options=(("max_unreadable", 0.1),),
        told=("2 left out", "val 9", "test 9", "empty file"),
        train=10,
    ),
    Case(
        "I6",
        "a file that is gone when it is read",
        vanished,
        told=("1 left out", "not readable"),
        train=60,
        options=(("max_unreadable", 0.02),),
    ),
    Case(
        "I9",
        "grey, bilevel, palette, alpha",
        conversions,
        told=("palette converted to RGB", "transparency composited over white", "gray repeated", "bilevel converted"),
    ),
    Case(
        "I15", "a FIFO never blocks", no_regular_files, told=("1 left out", "FIFO"), options=(("max_unreadable", 0.02),)
    ),
    Case(
        "I16", "links in a circle end", loop, told=("1 left out", "symbolic links"), options=(("max_unreadable", 0.2),)
    ),
    Case("I16", "a class outside of the folder", outside, "the symbolic link leads out of the folder. Use"),
    Case("I16", "a class outside that may be read", outside, train=6, options=(("follow_links", True),)),
    Case("I16", "a file outside of the folder", file_outside, r"1 of 9 .*symbolic link leads out of the data folder"),
    Case("I17", "an empty class", empty_class, "found none in 'c'"),
    Case(
        "I17",
        "an empty class that may be",
        empty_class,
        told=("ignored class folders without images: c",),
        train=6,
        options=(("allow_empty_classes", True),),
    ),
    Case(
        "I17",
        "only bad files in a class",
        only_bad,
        "got none of 'c'",
        options=(("max_unreadable", 0.5),),
    ),
    Case("I18", "one class", lambda root: class_folders(root, ("a",), 4), "got only 'a'"),
    Case(
        "I18",
        "one image of each class",
        lambda root: class_folders(root, ("a", "b"), 1),
        "expected at least 2 distinct images per class",
    ),
    Case("I18", "few images", lambda root: class_folders(root, ("a", "b"), 2), told=("fewer than 20",), train=2),
    Case("I19", "a class missing from validation", missing_in_validation, told=("no images of: cat",), train=12),
    Case(
        "I19",
        "a class that only validation has",
        extra_in_validation,
        "expected the classes of the training set, got more in the val set",
    ),
    Case("I20", "numbers in a fixed order, junk ignored", junk, train=12, told=("classes 0, 1, 10, 2",)),
    Case("I20", "names that differ in case", near("cat", "Cat"), "differ only in case, spaces or Unicode form"),
    Case("I20", "names that differ in a space", near("cat", "cat "), "differ only in case, spaces or Unicode form"),
    Case(
        "I20", "names that differ in spelling", near("\u00e9", "e\u0301"), "differ only in case, spaces or Unicode form"
    ),
    Case("I21", "folders within a class", nested, told=("the class is the top folder",), train=9),
    Case("I22", "hostile names", hostile_names, train=23),
    Case("I22", "a class name that is no text", bytes_in_a_class_name, r"class names in UTF-8, got \\udcff\\udcfe"),
    Case("I22", "a bad file whose name is no text", bytes_in_a_file_name, r"a/caf\\udce9.png: unsupported format"),
    Case("I23", "the same file in two splits", same_in_both, "each image in only one split, got 1 in"),
    Case(
        "I23",
        "where that is allowed",
        same_in_both,
        train=8,
        told=("duplicates across splits: 1, such", "exact duplicates of other images: 1"),
        options=(("allow_duplicates", True),),
    ),
    Case(
        "I23",
        "the same file under two classes",
        two_classes,
        told=("duplicates with different labels: 1, such as a/0.png (a)",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_catalogue(case, tmp_path):
    root = tmp_path / "set"
    case.build(root)
    before = tree(tmp_path)
    if case.error:
        with pytest.raises(InputError, match=case.error) as error:
            through(root, **dict(case.options))
        said = str(error.value)
        assert "\n" not in said and "\x1b" not in said and said.isprintable()
        assert ". " in said and said.endswith("."), "a fix follows"
        assert error.value.exit_code == 2
    else:
        packed = through(root, **dict(case.options))
        check_whole(packed, root)
        said = summary(packed)
        for phrase in case.told:
            assert phrase in said
        assert case.train in (None, len(packed.splits["train"]))
    assert tree(tmp_path) == before, "the user's set is as it was"


def summary(packed):
    about = describe(packed)
    assert about["skipped"] == len(packed.skipped)
    counts = [f"{split} {count}" for split, count in about["counts"].items()]
    reasons = [s.reason for s in packed.skipped]
    told = [f"{about['skipped']} left out", f"classes {', '.join(packed.class_names)}", *counts, *reasons]
    return "\n".join([*told, *about["notes"], *about["warnings"]])


def check_whole(packed, root):
    """Each image stands in one split under the class of its own folder, and nothing that was left out stands in."""
    rows = np.concatenate(list(packed.splits.values()))
    assert sorted(rows) == list(range(len(packed.keys))) and len(packed.pixels) == len(packed.keys)
    assert not {s.key for s in packed.skipped} & set(packed.keys)
    for i, key in enumerate(packed.keys):
        assert packed.class_names[packed.targets[i]] in key.split("/")[:2]
