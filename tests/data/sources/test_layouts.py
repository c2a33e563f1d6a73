"""Layouts of class folders as they come, in a folder and in archives alike."""

import pytest
from file_trees import KINDS, noise, numbered, place
from image_folders import contents_of

from skipway.data.sources.choose_source import open_source
from skipway.errors import InputError


class OutputsOf:
    """The outputs of a model that open_source uses."""

    def __init__(self, names):
        self.class_names, self.task = names, "classification"


SOME = ("folder", "zip", "tar")


def opened(root, files, kind="folder", **options):
    return open_source(str(place(root, files, kind)), **options)


def labeled(source):
    """{split: {key: class name}}."""
    return {
        split: {key: source.class_names[i] for key, i in zip(keys, source.targets[split].tolist(), strict=True)}
        for split, keys in source.keys.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_and_an_archive_of_it_are_the_same_dataset(tmp_path, kind):
    files = numbered(("train/cat", "train/dog/p1", "train/dog/p2/left", "val/cat", "val/dog")) | {"val/a.txt": b"x"}
    source, folder = opened(tmp_path, files, kind), opened(tmp_path / "plain", files)
    assert source.name == "set" and source.class_names == ("cat", "dog")
    assert labeled(source) == labeled(folder) and source.keys == folder.keys
    assert sorted(source.keys["train"] + source.keys["val"]) == sorted(set(files) - {"val/a.txt"})
    for split, keys in source.keys.items():
        assert contents_of(source, split) == [files[key] for key in keys]
    assert source.peek() == folder.peek()
    assert [w for w in source.warnings if "temporary file" not in w] == folder.warnings


@pytest.mark.parametrize("kind", SOME)
def test_images_at_any_depth_belong_to_the_top_folder(tmp_path, kind):
    files = numbered(("cat/p1", "cat/p2/2021/left", "dog"))
    source = opened(tmp_path, files, kind)
    assert labeled(source) == {"train": {path: path.split("/")[0] for path in sorted(files)}}
    assert source.warnings == [
        "4 images in the folder in subfolders of class folders, such as cat/p1; the class is the top folder"
    ]


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize(
    "folders, splits",
    [
        (("PetImages/{}",), {"train": "PetImages"}),
        (("a/b/c/{}",), {"train": "a/b/c"}),
        (("images/train/{}", "images/val/{}"), {"train": "images/train", "val": "images/val"}),
        (("training_set/training_set/{}", "test_set/test_set/{}"), {"train": "training_set", "test": "test_set"}),
        (("seg_train/seg_train/{}", "seg_test/seg_test/{}"), {"train": "seg_train", "test": "seg_test"}),
        (("Training/{}", "Testing/{}"), {"train": "Training", "test": "Testing"}),
        (("train/{}", "dev/{}", "test/{}"), {"train": "train", "val": "dev", "test": "test"}),
        (("train/{}", "valid/{}"), {"train": "train", "val": "valid"}),
        (("TrainSet/{}", "ValSet/{}"), {"train": "TrainSet", "val": "ValSet"}),
        (("train_images/{}", "test-images/{}"), {"train": "train_images", "test": "test-images"}),
        (("flowers_train/{}", "flowers_test/{}"), {"train": "flowers_train", "test": "flowers_test"}),
        (("data/x-ray/train/{}", "data/x-ray/val/{}"), {"train": "data/x-ray/train", "val": "data/x-ray/val"}),
        (("train2017/{}", "val2017/{}"), {"train": "train2017", "val": "val2017"}),
        (("train/{}",), {"train": "train"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_wrappers_and_names_of_splits_are_recognized(tmp_path, kind, folders, splits):
    files = numbered([folder.format(name) for folder in folders for name in ("cat", "dog")])
    source = opened(tmp_path, files | {"README.md": b"text"}, kind)
    assert source.class_names == ("cat", "dog") and list(source.keys) == list(splits)
    for split, folder in splits.items():
        assert source.keys[split] == sorted(path for path in files if path.startswith(f"{folder}/"))


@pytest.mark.parametrize("kind", SOME)
def test_one_level_too_high_is_said_with_the_level_that_was_meant(tmp_path, kind):
    files = numbered(("PetImages/Cat", "PetImages/Dog")) | {"docs/readme.txt": b"text"}
    with pytest.raises(
        InputError, match=r"found none in 'docs'.* Did you mean PetImages/ \(2 class folders\)\? Add im"
    ):
        opened(tmp_path, files, kind)
    files = numbered(("one/a/train/x", "one/a/val/x")) | noise("one/loose.png")
    with pytest.raises(InputError, match=r"got only 'x'. Did you mean one/a/ \(2 split folders\)\? Add a folder"):
        opened(tmp_path / "splits", files, kind)


JUNK = ["@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git", "__MACOSX"]
JUNK += [".ipynb_checkpoints", ".Trash-1000", "@Recycle", "#snapshot", ".snapshot", "__pycache__"]


@pytest.mark.parametrize("kind", SOME)
def test_folders_of_drives_and_tools_are_ignored_at_every_level(tmp_path, kind):
    files = numbered(("train/cat", "train/dog", "val/cat", "val/dog"))
    junk = numbered([f"{place}{name}" for name in JUNK for place in ("", "train/", "train/cat/")])
    odd = {"train/cat/._0.png": b"AppleDouble", "Thumbs.db": b"x", "train/dog/desktop.ini": b"x", "ehthumbs.db": b"x"}
    source = opened(tmp_path, files | junk | odd, kind)
    assert sorted(source.keys["train"] + source.keys["val"]) == sorted(files) and source.warnings == []


@pytest.mark.parametrize("kind", SOME)
def test_files_that_are_not_images_are_named_by_their_reason(tmp_path, kind):
    files = numbered(("a", "b")) | {"a/1.mp4": b"x", "b/2.MP4": b"x", "a/IMG.CR2": b"x", "b/notes": b"hello there"}
    assert opened(tmp_path, files | {"b/s.nii.gz": b"x"}, kind).warnings == [
        "ignored files in the folder, which are not images: 2 .mp4 files (video: save its frames as images), 1 .cr2 "
        "file (camera raw: expected a developed image. Convert it to JPEG, PNG or TIFF), 1 file without suffix (no "
        "known image format), 1 .nii.gz file (volume: save its slices as .npy, TIFF or DICOM files)"
    ]


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("known", [None, ("a", "b")])
def test_class_folders_of_other_files_are_named_by_them(tmp_path, kind, known):
    files = {"a/1.mp4": b"x", "b/2.mp4": b"x"}
    with pytest.raises(InputError, match=r"expected images in class folders, found none \(only other files: 2 .mp4"):
        opened(tmp_path, files, kind, allow_empty_classes=True, known=known and OutputsOf(known))


@pytest.mark.parametrize("kind", SOME)
def test_a_file_with_an_odd_suffix_is_an_image_by_its_content(tmp_path, kind):
    images = noise("a/0001", "a/photo.jpg_large", "b/x.001", "b/y")
    source = opened(tmp_path, images | {"a/log.txt": images["a/0001"], "b/z": b"text"}, kind)
    assert source.keys["train"] == sorted(images)


@pytest.mark.parametrize("kind", SOME)
def test_a_class_called_train_is_a_class_among_others(tmp_path, kind):
    files = numbered(("bus", "car", "train"))
    source = opened(tmp_path, files, kind)
    assert source.class_names == ("bus", "car", "train") and source.count("train") == 6
    assert source.warnings == ["the folder 'train' is a class, because it has images and no class folders"]


@pytest.mark.parametrize("kind", SOME)
def test_within_a_folder_train_every_name_is_that_of_a_class(tmp_path, kind):
    files = numbered(("train/test", "train/train", "train/val"))
    source = opened(tmp_path, files, kind)
    assert source.class_names == ("test", "train", "val") and list(source.keys) == ["train"]


@pytest.mark.parametrize(
    "folders, reason",
    [
        (("train", "test"), r"expected class folders in train/, got 2 images without class folders. Put"),
        (
            ("cat", "dog", "test"),
            r"expected class folders in test/, got 2 images without class folders. Put the images",
        ),
        (("train", "plane"), r"if these folders are classes, put all of them into one folder named train"),
        (("train/a", "train/b", "cat"), r"got splits \(train\) and others \(cat\). Move the class folders"),
        (("train", "val/a", "val/b"), r"expected class folders in train/, got 2 images"),
    ],
)
def test_images_in_folders_named_like_splits_are_no_classes(tmp_path, folders, reason):
    with pytest.raises(InputError, match=reason):
        opened(tmp_path, numbered(folders))


@pytest.mark.parametrize("kind", SOME)
def test_images_without_labels_next_to_splits_are_counted(tmp_path, kind):
    files = numbered(("train/cat", "train/dog", "test", "seg_pred/seg_pred", "unlabeled")) | {"docs/a.md": b"x"}
    source = opened(tmp_path, files, kind)
    assert list(source.keys) == ["train"] and source.count("train") == 4
    assert source.warnings == [
        "ignored test: 2 images without class folders",
        "ignored docs: 1 .md file (text)",
        "ignored seg_pred: 2 images",
        "ignored unlabeled: 2 images",
    ]


@pytest.mark.parametrize(
    "folders, reason",
    [
        (("HAM_images_part_1", "HAM_images_part_2"), r"named like parts of one dataset \(HAM_images_part_1, HAM_"),
        (("train/batch1", "train/batch2", "train/batch10"), "named like parts of one dataset"),
        (
            ("set1/cat", "set1/dog", "set2/cat", "set2/dog"),
            r"\(set1, set2\) with the same class folders \(cat, dog\)",
        ),
        (("cat", "dog", "Pets/cat", "Pets/dog"), r"got a copy of the class folders in 'Pets'. Remove it, or pass"),
    ],
)
def test_parts_and_copies_of_a_dataset_are_no_classes(tmp_path, folders, reason):
    with pytest.raises(InputError, match=reason):
        opened(tmp_path, numbered(folders))


@pytest.mark.parametrize(
    "folders, classes",
    [
        (("1", "2"), ("1", "2")),
        (("grade_1", "grade_2"), ("grade_1", "grade_2")),
        (("cat/front", "cat/back", "dog/front", "dog/back"), ("cat", "dog")),
        (("part", "party"), ("part", "party")),
        (("train/cat/p1", "train/cat/p2", "train/dog", "val/cat/p3", "val/cat/p4"), ("cat", "dog")),
    ],
)
def test_class_folders_that_resemble_parts_are_classes(tmp_path, folders, classes):
    source = opened(tmp_path, numbered(folders))
    assert source.class_names == classes and sum(map(len, source.keys.values())) == 2 * len(folders)


def test_splits_of_images_in_one_folder_have_no_classes(tmp_path):
    files = numbered(("train/a/images", "train/b/images", "val/images", "test/test", "set/train/a", "set/train/b"))
    source = opened(tmp_path, files)
    assert list(source.keys) == ["train"] and source.class_names == ("a", "b")
    assert source.warnings[:3] == [
        "ignored set: 4 images",
        "ignored val: 2 images without class folders of the training set",
        "ignored test: 2 images without class folders of the training set",
    ]


@pytest.mark.parametrize("follow", [False, True])
def test_linked_folders_that_multiply_are_read_once(tmp_path, follow):
    root = place(tmp_path, numbered(("a", "b")), "folder")
    for i in range(20):
        (root / "deep" / str(i)).mkdir(parents=True)
    for i in range(19):
        for name in ("left", "right"):
            (root / "deep" / str(i) / name).symlink_to(root / "deep" / str(i + 1))
    source = open_source(str(root), follow_links=follow, allow_empty_classes=True)
    assert source.count("train") == 4 and len(source.warnings) == 2
    assert source.warnings[0].startswith("ignored 55 links to folders that are read already, first deep/")


def test_a_link_out_of_the_folder_at_any_depth_is_refused(tmp_path):
    root, other = place(tmp_path, numbered(("a/p", "b/p")), "folder"), place(tmp_path, numbered(("x",)), "folder", "o")
    (root / "a" / "p" / "more").symlink_to(other / "x")
    with pytest.raises(InputError, match="a/p/more: the symbolic link leads out of the folder. Use --follow-links"):
        open_source(str(root))
    assert open_source(str(root), follow_links=True).keys["train"][2:4] == ["a/p/more/0.png", "a/p/more/1.png"]
