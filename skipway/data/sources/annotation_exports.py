"""Detection and segmentation exports, which have boxes or masks in place of one class per image.

They are recognized so that `images/` and `labels/` or `masks/` are never trained as two classes.
"""

import os
import re

from skipway.data.sources.file_tree import FileTree, Folder
from skipway.data.sources.image_source import split_of, split_of_folder, words_of
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = ["mask_warning", "refuse_exports"]

_HEAD = 4096  # bytes of an annotation file that are inspected
_SAMPLE = 20  # annotation files that are inspected
_IMAGE_WORDS = frozenset({"image", "images", "img", "imgs", "jpegimages", "photos", "originals", "original", "frames"})
_MASK_WORDS = frozenset(
    {
        *("mask", "masks", "label", "labels", "annot", "annotation", "annotations", "gt", "groundtruth", "truth"),
        *("seg", "segmentation", "segmentationclass", "segmentationobject", "trainannot", "valannot", "testannot"),
    }
)
_MASK_ENDING = re.compile(r"[ _-]+(mask|masks|label|labels|gt|seg|segmentation|annotation|l|m)(_?\d+)?$", re.I)
_ENDING_LENGTH = 24  # characters at the end of a name that are searched for the ending of a mask
_YOLO_LINE = re.compile(rb"\d+( [-+.\de]+){4,}\s*$", re.M)
_COCO_KEY = re.compile(rb'"(images|annotations|categories)"\s*:')


def refuse_exports(folder: Folder, tree: FileTree) -> None:
    """Check that a folder is not a detection or segmentation export.

    Raises:
        InputError: it is one; the message names the format and the fix.
    """
    for name, evidence in (_yolo(folder, tree), _json(folder, tree), _voc(folder, tree)):
        if name:
            raise InputError(
                f"cannot use {folder.place(tree.where)}: expected one folder of images per class, got a {name} "
                f"detection dataset ({printable(evidence)}), which has boxes in place of classes. Export it for "
                "classification, or crop the boxes into class folders."
            )
    images, masks = _masks(folder)
    if masks:
        raise InputError(
            f"cannot use {folder.place(tree.where)}: expected one folder of images per class, got a segmentation "
            f"dataset (images in {printable(images)}/, masks of the same names in {printable(masks)}/). Sort the "
            "images into class folders without the masks."
        )


def mask_warning(folder: Folder) -> str:
    """Return a warning if images of a class folder are named like masks of other images, or ""."""
    for inner in folder.walk():
        images, masks = _masks(inner)
        if masks:
            return (
                f"the images in {printable(inner.below(masks))} have the names of those in {printable(images)}; remove "
                "them if they are masks"
            )
        named = [name for name in inner.images if _MASK_ENDING.search(_stem(name[-2 * _ENDING_LENGTH :]))]
        stems = set(map(_stem, inner.images)) if named else set()
        named = [name for name in named if _unmasked(name) in stems]
        if 2 * len(named) >= len(stems) - len(named) > 0:
            return (
                f"{len(named):,} of {len(inner.images):,} images in {printable(inner.path)} are named like masks of "
                f"the others, such as {printable(named[0])}; remove them if they are masks"
            )
    return ""


def _yolo(folder: Folder, tree: FileTree) -> tuple[str, str]:
    """Recognize images/ with labels/, and text files of boxes next to images of the same name."""
    labels = _child(folder, "labels")
    if labels and _loose_images(folder) and not labels.has_images():
        texts = [path for path in labels.other_paths() if path.endswith(".txt")]
        if any(_has_boxes(path, tree) for path in texts[:_SAMPLE]):
            return "YOLO", f"images/ and labels/ with {count_of(len(texts), '.txt file')}"
    for inner in _unsorted(folder):
        texts = _sidecars(inner, ".txt")
        if any(_has_boxes(path, tree) for path in texts[:_SAMPLE]):
            return "YOLO", f"{count_of(len(texts), '.txt file')} with the names of images"
    return "", ""


def _has_boxes(path: str, tree: FileTree) -> bool:
    return _YOLO_LINE.match(tree.head(path, _HEAD)) is not None


def _json(folder: Folder, tree: FileTree) -> tuple[str, str]:
    """Recognize files of boxes for all images (COCO, CreateML, CVAT), and LabelMe files next to images."""
    annotations = _child(folder, "annotations")
    places = [folder, *_unsorted(folder), *([annotations] if annotations else [])]
    if not (_loose_images(folder) or _unsorted(folder)):
        places = []
    for inner in places:
        for name in filter(_names_annotations, inner.others):
            path = inner.below(name)
            head = tree.head(path, _HEAD)
            if name.endswith(".createml.json"):
                return "CreateML", path
            if name.endswith(".json") and _COCO_KEY.search(head):
                return "COCO", path
            if name.endswith(".xml") and b"<annotations" in head:
                return "CVAT", path
    for inner in _unsorted(folder):
        shapes = _sidecars(inner, ".json")
        if any(b'"shapes"' in tree.head(path, _HEAD) for path in shapes[:1]):
            return "LabelMe", f"{count_of(len(shapes), '.json file')} with the names of images"
    return "", ""


def _names_annotations(name: str) -> bool:
    """Return True for names that exports use for annotations, because a .json or .xml file can be anything."""
    is_usual = name.startswith(("instances_", "annotations", "_annotations", "person_keypoints_"))
    return name.endswith((".json", ".xml")) and (is_usual or "coco" in name.lower())


def _voc(folder: Folder, tree: FileTree) -> tuple[str, str]:
    """Recognize Annotations/ with JPEGImages/ or images/, and XML files of boxes next to images of the same name."""
    annotations = _child(folder, "annotations")
    if annotations and _loose_images(folder):
        texts = [path for path in annotations.other_paths() if path.endswith(".xml")]
        if any(b"<annotation>" in tree.head(path, _HEAD) for path in texts[:1]):
            return "Pascal VOC", f"{annotations.name}/ with {count_of(len(texts), '.xml file')}"
    for inner in _unsorted(folder):
        texts = _sidecars(inner, ".xml")
        if any(b"<annotation>" in tree.head(path, _HEAD) for path in texts[:1]):
            return "Pascal VOC", f"{count_of(len(texts), '.xml file')} with the names of images"
    return "", ""


def _loose_images(folder: Folder) -> Folder | None:
    """Return the folder images/ or JPEGImages/ if its images are not in class folders."""
    images = _child(folder, "images") or _child(folder, "jpegimages")
    if images is None or not images.has_images():
        return None
    classes = [inner for inner in images.with_images() if split_of_folder(inner.name) is None]
    return None if len(classes) > 1 else images


def _unsorted(folder: Folder) -> list[Folder]:
    """Return the folders whose images are not in class folders: the folder, and subfolders named images or train."""
    inner = [
        child
        for child in folder.folders.values()
        if any(word in _IMAGE_WORDS or split_of(word) for word in words_of(child.name))
    ]
    return [candidate for candidate in (folder, *inner) if candidate.images]


def _sidecars(folder: Folder, suffix: str) -> list[str]:
    """Return the paths of files with the names of images, if at least half of the images have one."""
    stems = set(map(_stem, folder.images))
    names = [name for name in folder.others if name.endswith(suffix) and _stem(name) in stems]
    return list(map(folder.below, names)) if 2 * len(names) >= len(stems) else []


def _masks(folder: Folder) -> tuple[str, str]:
    """Return the names of a folder of images and of a folder of their masks, or empty names."""
    filled = folder.with_images()
    for masks in filled:
        if not _MASK_WORDS.intersection(words_of(masks.name)):
            continue
        names = {_unmasked(path) for path in masks.image_paths()}
        for images in filled:
            is_named = bool(_IMAGE_WORDS.intersection(words_of(images.name))) or images.name in masks.name
            if not is_named or _MASK_WORDS.intersection(words_of(images.name)):
                continue
            stems = set(map(_stem, images.image_paths()))
            if 2 * len(names & (stems | set(map(_unmasked, images.image_paths())))) >= len(names):
                return images.name, masks.name
    return "", ""


def _child(folder: Folder, name: str) -> Folder | None:
    return next((inner for key, inner in folder.folders.items() if key.lower() == name), None)


def _stem(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[0]


def _unmasked(path: str) -> str:
    """Return the stem of the image for a file of masks: "a_mask.png" -> "a"."""
    stem = _stem(path)
    ending = _MASK_ENDING.search(stem[-_ENDING_LENGTH:])
    return stem[: -len(ending.group())] or stem if ending else stem
