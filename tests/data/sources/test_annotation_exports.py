"""Detection and segmentation exports are recognized by their form, and class folders that resemble them are not."""

import json

import pytest
from file_trees import noise, numbered, place

from skipway.data.sources.choose_source import open_source
from skipway.errors import InputError

BOXES = b"0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4\n"
VOC = b"<annotation><folder>x</folder><object><bndbox/></object></annotation>"
COCO = json.dumps({"info": {}, "images": [{"id": 1}], "annotations": [], "categories": []}).encode()


def next_to(images, data, suffix):
    return images | {f"{path.rpartition('.')[0]}{suffix}": data for path in images}


def in_parallel(images, data, suffix, old="images", new="labels"):
    return images | {f"{path.rpartition('.')[0].replace(old, new)}{suffix}": data for path in images}


EXPORTS = {
    "yolo": (
        in_parallel(numbered(("images",)), BOXES, ".txt"),
        r"a YOLO detection dataset \(images/ and labels/ with 2",
    ),
    "yolo splits": (in_parallel(numbered(("images/train", "images/val")), BOXES, ".txt"), "YOLO detection"),
    "roboflow yolo": (in_parallel(numbered(("train/images", "valid/images")), BOXES, ".txt"), "YOLO detection"),
    "darknet": (next_to(numbered(("",)), BOXES, ".txt"), r"YOLO detection dataset \(2 .txt files with the names"),
    "darknet splits": (next_to(numbered(("train", "test")), BOXES, ".txt"), "YOLO detection"),
    "coco": (numbered(("images",)) | {"annotations.json": COCO}, r"a COCO detection dataset \(annotations.json\)"),
    "coco splits": (
        numbered(("train2017", "val2017")) | {"annotations/instances_train2017.json": COCO},
        r"COCO detection dataset \(annotations/instances_train2017.json\)",
    ),
    "roboflow coco": (numbered(("train", "valid")) | {"train/_annotations.coco.json": COCO}, "COCO detection"),
    "voc": (
        in_parallel(numbered(("JPEGImages",)), VOC, ".xml", "JPEGImages", "Annotations"),
        r"Pascal VOC detection dataset \(Annotations/ with 2 .xml files\)",
    ),
    "roboflow voc": (next_to(numbered(("train", "test")), VOC, ".xml"), "Pascal VOC detection"),
    "createml": (numbered(("train",)) | {"train/_annotations.createml.json": b"[]"}, "CreateML detection"),
    "cvat": (numbered(("images",)) | {"annotations.xml": b"<?xml?><annotations><version/>"}, "CVAT detection"),
    "labelme": (next_to(numbered(("",)), b'{"version": "5", "shapes": []}', ".json"), "LabelMe detection"),
    "masks": (numbered(("images", "masks")), r"a segmentation dataset \(images in images/, masks of the same names in"),
    "masks of splits": (numbered(("train/images", "train/masks", "val/images", "val/masks")), "a segmentation dataset"),
    "carvana": (
        noise("train/a.jpg", "train/b.jpg", "train_masks/a_mask.gif", "train_masks/b_mask.gif"),
        "train_masks/",
    ),
    "camvid": (numbered(("train", "trainannot", "val", "valannot")), "a segmentation dataset"),
    "voc masks": (numbered(("JPEGImages", "SegmentationClass")), "a segmentation dataset"),
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_is_refused_by_its_name(tmp_path, name, kind):
    files, reason = EXPORTS[name]
    with pytest.raises(InputError, match=reason) as error:
        open_source(str(place(tmp_path, {path.lstrip("/"): data for path, data in files.items()}, kind)))
    assert "\n" not in str(error.value) and "expected one folder of images per class, got a" in str(error.value)


CLASSES = {
    "face masks": numbered(("mask", "no_mask")),
    "labels of bottles": numbered(("label", "cap")),
    "boxes next to images of classes": next_to(numbered(("cat", "dog")), VOC, ".xml"),
    "captions": next_to(numbered(("cat", "dog")), b"a small cat", ".txt"),
    "metadata": numbered(("cat", "dog")) | {"annotations.json": COCO, "annotations.xml": b"<annotations>"},
    "images by kind": numbered(("images", "drawings")),
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_folders_with_such_files_or_names_are_classes(tmp_path, name):
    source = open_source(str(place(tmp_path, CLASSES[name], "folder")))
    assert source.count("train") == 4 and len(source.class_names) == 2


def test_class_folders_next_to_boxes_are_meant(tmp_path):
    files = numbered(("Images/beagle", "Images/pug")) | {"Annotations/beagle/0.xml": VOC}
    with pytest.raises(InputError, match=r"found none in 'Annotations' .*Did you mean Images/ \(2 class folders\)"):
        open_source(str(place(tmp_path, files, "folder")))


def test_folders_of_masks_within_class_folders_are_a_warning(tmp_path):
    files = numbered(("benign/images", "benign/masks", "normal"))
    warnings = open_source(str(place(tmp_path, files, "folder"))).warnings
    masks = "the images in benign/masks have the names of those in images; remove them if they are masks"
    assert masks in warnings and len(warnings) == 2


def test_masks_within_class_folders_are_a_warning(tmp_path):
    files = noise(
        *[f"{name}/{name} ({i}){end}.png" for name in ("benign", "normal") for i in (1, 2) for end in ("", "_mask")]
    )
    warnings = open_source(str(place(tmp_path, files, "folder"))).warnings
    assert warnings == [
        f"2 of 4 images in {name} are named like masks of the others, such as {name} (1)_mask.png; remove them if they "
        "are masks"
        for name in ("benign", "normal")
    ]
