"""Data that is passed in Python instead of a path: arrays, tensors, lists of images, DataFrames and datasets.

`hold_data` keeps the objects for the duration of a call and returns a name for them, which takes the place of a path
in the options of a run. The functions that open a path look it up with `held_data`.

Shapes: N samples; images are (N, H, W), (N, H, W, C) or (N, C, H, W), rows (N, F).
"""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from skipway.data.sources.dataset_samples import fetch_sample, labeled_sample
from skipway.data.sources.decode import BadImage
from skipway.data.sources.image_source import Content, Item, read_content, split_of
from skipway.data.sources.lazy_content import FileContent
from skipway.errors import InputError, printable
from skipway.utils.format_text import count_of

__all__ = [
    "Held",
    "Samples",
    "dataset_images",
    "held_data",
    "hold_data",
    "image_item",
    "is_dataset",
    "is_frame",
]

_MAX_CHANNELS = 16
_NAME = "<{} in Python>"
_HELD: ContextVar["Held | None"] = ContextVar("held", default=None)


@dataclass(frozen=True)
class Samples:
    """Samples of one split, before anything is decoded.

    Attributes:
        x: a DataFrame, an array of rows (N, F), or a list with one `Item` per image.
        y: targets as they were passed, or None if they are columns of `x`.
        keys: name of each sample, for messages and tables.
        class_names: names of the classes that the integers in `y` mean, if the dataset has them.
    """

    x: Any
    y: Any
    keys: list[str]
    class_names: tuple[str, ...] = ()

    @property
    def are_images(self) -> bool:
        """True for images, False for rows of a table."""
        return isinstance(self.x, list)


@dataclass(frozen=True)
class Held:
    """Objects of one call: their name, and the samples of each split."""

    name: str
    splits: dict[str, Samples]

    @property
    def are_images(self) -> bool:
        """True for images, False for rows of a table."""
        return self.splits["train"].are_images


@contextmanager
def hold_data(data: Any, y: Any = None, validation: Any = None) -> Iterator[Any]:
    """Keep data that is passed in Python within this context, and return a name for it.

    Args:
        data: a path or a name, which is returned as it is; or a NumPy array, a tensor, a list of paths, PIL images or
            arrays, a DataFrame, a Hugging Face Dataset or DatasetDict, or a map-style dataset of torch.
        y: targets, one per sample; None if the data has them.
        validation: (X, y), or a dataset; None to hold out a part of `data`.

    Raises:
        InputError: an object cannot be used as data.
    """
    if data is None or isinstance(data, str) or hasattr(data, "__fspath__"):
        for name, value in (("y", y), ("validation", validation)):
            if value is not None:
                raise InputError(
                    f"cannot use {name} with {printable(data)!r}: expected it with arrays, got a path or a name. Drop "
                    f"{name}; targets and splits are part of a dataset on disk."
                )
        yield data
        return
    splits = {"train": (data, y)}
    if isinstance(data, dict):
        splits = _splits_of(data, y)
    if validation is not None:
        splits["val"] = _pair(validation, y is not None)
    samples = {split: samples_of(*pair, "" if split == "train" else f"{split} ") for split, pair in splits.items()}
    count = len(samples["train"].keys)
    name = _NAME.format(count_of(count, "image" if samples["train"].are_images else "row"))
    token = _HELD.set(Held(name, samples))
    try:
        yield name
    finally:
        _HELD.reset(token)


def held_data(name: str) -> "Held | None":
    """Return the data that `hold_data` keeps under a name, or None if the name is a path.

    Raises:
        InputError: the data under this name belonged to another call.
    """
    held = _HELD.get()
    if held is not None and held.name == name:
        return held
    if _is_held_name(name):
        raise InputError(
            f"cannot open {name}: expected the same objects as in the first call. Pass them again in Python, as in "
            "skipway.train(X, y, resume=RUN)."
        )
    return None


def _is_held_name(name: str) -> bool:
    """Return True if a name is one of `hold_data`."""
    return name.startswith("<") and name.endswith(_NAME.rpartition("}")[2])


def is_frame(x: Any) -> bool:
    """Return True for a pandas DataFrame."""
    return hasattr(x, "columns") and hasattr(x, "iloc")


def samples_of(x: Any, y: Any, prefix: str = "") -> Samples:
    """Return the samples of one split.

    Args:
        x: see `hold_data`.
        y: targets, or None if `x` has them.
        prefix: beginning of the names of the samples, such as "val ".

    Raises:
        InputError: `x` is no dataset, has no length, or has another length than `y`.
    """
    if isinstance(x, torch.utils.data.DataLoader):
        raise InputError(
            "cannot use a DataLoader as data: expected a dataset, because sample order and batches are part of the "
            "training options. Pass its .dataset."
        )
    if isinstance(x, bytes | bytearray | memoryview):
        raise InputError(
            f"cannot use data of the type {type(x).__name__}: expected several images, got the bytes of one object. "
            "Pass a list of paths, PIL images or arrays."
        )
    if hasattr(x, "iloc") and not is_frame(x):
        x = list(x)  # a pandas Series of paths or images
    if isinstance(x, torch.utils.data.IterableDataset) or not _has_length(x) or not hasattr(x, "__getitem__"):
        raise InputError(
            f"cannot use data of the type {type(x).__name__}: expected samples with a length and an index, because "
            "shuffling, validation and resuming need them. Pass an array, a list, a DataFrame or a map-style dataset."
        )
    if not len(x):
        raise InputError(f"cannot use data of the type {type(x).__name__}: expected samples, got none. Add samples.")
    if _is_hugging_face(x):
        samples = _hugging_face(x, y, prefix)
    elif is_frame(x):
        samples = Samples(x, y, [f"{prefix}row {printable(i)}" for i in x.index])
    elif isinstance(x, np.ndarray | Tensor):
        samples = _array(x, y, prefix)
    elif isinstance(x, list | tuple):
        samples = _sequence(x, y, prefix)
    else:
        samples = _map_style(x, y, prefix)
    if samples.y is not None and not _has_length(samples.y):
        raise InputError(
            f"cannot use y: expected one target per sample, got {type(samples.y).__name__} without a length. Pass an "
            "array or a list."
        )
    if samples.y is not None and len(samples.y) != len(samples.keys):
        raise InputError(
            f"cannot use y: expected one target per sample, got {len(samples.y):,} for {len(samples.keys):,} samples. "
            "Pass X and y of the same length."
        )
    return samples


def _has_length(x: Any) -> bool:
    return isinstance(x, Sized) and getattr(x, "ndim", 1) != 0


def is_dataset(x: Any) -> bool:
    """Return True for a map-style dataset, of torch or Hugging Face."""
    return isinstance(x, torch.utils.data.Dataset) or _is_hugging_face(x)


def _is_hugging_face(x: Any) -> bool:
    return type(x).__module__.split(".")[0] == "datasets"


def dataset_images(x: Any) -> list[Item]:
    """Return the images of a map-style dataset, without its targets.

    Raises:
        InputError: a Dataset of Hugging Face has no column of images, or several.
    """
    if not _is_hugging_face(x):
        return _images_of(x)
    columns = _image_columns(x)
    if len(columns) != 1:
        raise InputError(
            f"cannot use the Dataset: expected one column of images, got {len(columns)} (columns "
            f"{', '.join(map(printable, list(x.features)[:12]))}). Select columns."
        )
    return _row_images(x, columns[0])


def image_item(image: Any) -> Item:
    """Return the content of one image, an array or a function that reads it when it is decoded.

    Args:
        image: a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W) or (H, W).
    """
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        return FileContent(Path(image), None, False, {})
    if isinstance(image, Image.Image):
        return partial(_pillow_content, image)
    if isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        if image.ndim == 3 and image.shape[0] <= _MAX_CHANNELS:
            image = np.ascontiguousarray(image.transpose(1, 2, 0))
    if isinstance(image, BadImage) or (isinstance(image, np.ndarray) and image.ndim in (2, 3)):
        return image
    shape = f" of shape {image.shape}" if isinstance(image, np.ndarray) else ""
    return BadImage(f"expected a path, a PIL image, or an array (H, W) or (H, W, C), got {type(image).__name__}{shape}")


def _pillow_content(image: Image.Image) -> Content:
    """Return a PIL image as the content of an uncompressed file, upright, so that it is decoded like any other."""
    file = BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        plain = upright if upright.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F") else None
        (plain or upright.convert("RGB")).save(file, "TIFF")
    except Exception as error:  # a lazily loaded image may be truncated, with nearly every type of exception
        return BadImage(f"broken: {printable(error)[:200]}")
    return file.getvalue()


def _splits_of(data: dict[Any, Any], y: Any) -> dict[str, tuple[Any, Any]]:
    """Return the splits of a DatasetDict or a dict of datasets."""
    names = {split_of(str(name)): name for name in data}
    if y is not None or "train" not in names or None in names or len(names) < len(data):
        raise InputError(
            "cannot use a dict as data: expected one dataset for each of train, val and test, without y, got "
            f"{', '.join(printable(name)[:40] for name in list(data)[:8]) or 'none'}. Rename the splits."
        )
    return {str(split): (data[name], None) for split, name in names.items()}


def _pair(validation: Any, need_y: bool) -> tuple[Any, Any]:
    if not need_y:
        return validation, None
    if not isinstance(validation, tuple) or len(validation) != 2:
        raise InputError(
            f"cannot use validation: expected (X, y), got {type(validation).__name__}. Pass images or rows with their "
            "targets."
        )
    return validation


def _array(x: np.ndarray | Tensor, y: Any, prefix: str) -> Samples:
    """Return the samples of an array or a tensor: images of 3 or 4 axes, or rows of 2."""
    array = x.detach().cpu().numpy() if isinstance(x, Tensor) else x
    if array.dtype == object and array.ndim == 1:
        return _sequence(list(array), y, prefix)
    if array.dtype.kind not in "biuf":
        raise InputError(f"cannot use an array of {array.dtype}: expected numbers. Pass a DataFrame for text columns.")
    if array.ndim == 2:
        return Samples(array, _required(y), [f"{prefix}row {i}" for i in range(len(array))])
    if array.ndim not in (3, 4) or 0 in array.shape:
        raise InputError(
            f"cannot use an array of shape {array.shape}: expected rows (N, F) or images (N, H, W), (N, H, W, C) or "
            "(N, C, H, W). Reshape it."
        )
    if array.ndim == 4 and array.shape[3] > _MAX_CHANNELS and array.shape[1] <= _MAX_CHANNELS:
        array = array.transpose(0, 2, 3, 1)
    elif array.ndim == 4 and isinstance(x, Tensor) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)  # the layout of torch, also for narrow images
    return Samples(list(array), _required(y), [f"{prefix}image {i}" for i in range(len(array))])


def _sequence(x: Sequence[Any], y: Any, prefix: str) -> Samples:
    """Return the images of a list of paths, PIL images, arrays and tensors."""
    if y is None and all(isinstance(sample, tuple) and len(sample) == 2 for sample in x):
        return _map_style(x, None, prefix)
    if all(isinstance(row, list | tuple | np.ndarray) and np.ndim(row) == 1 for row in x):
        try:
            matrix = np.array([np.asarray(row, np.float64) for row in x])
        except (TypeError, ValueError):
            raise InputError(
                "cannot use a list of rows: expected as many numbers in each row, got text or rows of different "
                "lengths. Pass a DataFrame."
            ) from None
        return _array(matrix, y, prefix)
    keys = [str(i) if isinstance(i, str) or hasattr(i, "__fspath__") else f"{prefix}image {n}" for n, i in enumerate(x)]
    return Samples([image_item(image) for image in x], _required(y), keys)


def _map_style(x: Any, y: Any, prefix: str) -> Samples:
    """Return the samples of a map-style dataset of (image, target), such as those of torchvision."""
    names = getattr(x, "classes", ())
    class_names = tuple(map(str, names)) if isinstance(names, list | tuple) else ()
    targets = y if y is not None else getattr(x, "targets", None)
    if targets is not None and len(targets) == len(x):
        items = _images_of(x)
    else:
        targets = [labeled_sample(x, i)[1] for i in range(len(x))]
        items = [partial(_labeled_image, x, i, repr(target)) for i, target in enumerate(targets)]
    return Samples(items, targets, [f"{prefix}image {i}" for i in range(len(x))], class_names)


def _images_of(x: Any) -> list[Item]:
    return [partial(_image_of, x, i) for i in range(len(x))]


def _image_of(x: Any, i: int) -> Content:
    sample = fetch_sample(x, i)
    return read_content(image_item(sample[0] if isinstance(sample, tuple | list) else sample))


def _labeled_image(x: Any, i: int, target: str) -> Content:
    """Return the image of a sample whose target, by its `repr`, was read before."""
    sample = fetch_sample(x, i)
    if isinstance(sample, BadImage):
        return sample
    if repr(sample[1]) != target:
        raise InputError(
            f"cannot use sample {i} of the {type(x).__name__}: expected the target {printable(target)[:40]} again, got "
            f"{printable(repr(sample[1]))[:40]}. Return the same sample for an index each time."
        )
    return read_content(image_item(sample[0]))


def _hugging_face(x: Any, y: Any, prefix: str) -> Samples:
    """Return the samples of a Dataset of Hugging Face: images if a column has the feature Image, else rows."""
    features = x.features
    columns = _image_columns(x)
    if not columns:
        return Samples(x.to_pandas(), y, [f"{prefix}row {i}" for i in range(len(x))])
    classes = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if len(columns) > 1 or (y is None and len(classes) != 1):
        raise InputError(
            f"cannot use the Dataset: expected one column of images and one ClassLabel, got {len(columns)} and "
            f"{len(classes)} (columns {', '.join(map(printable, list(features)[:12]))}). Pass y, or select columns."
        )
    class_names = tuple(map(str, features[classes[0]].names)) if y is None else ()
    targets = x[classes[0]] if y is None else y
    names = [f"{prefix}image {i}" for i in range(len(x))]
    return Samples(_row_images(x, columns[0]), list(targets), names, class_names)


def _image_columns(x: Any) -> list[str]:
    return [name for name, feature in x.features.items() if type(feature).__name__ == "Image"]


def _row_images(x: Any, column: str) -> list[Item]:
    return [partial(_row_image, x, i, column) for i in range(len(x))]


def _row_image(x: Any, i: int, column: str) -> Content:
    row = fetch_sample(x, i)
    return row if isinstance(row, BadImage) else read_content(image_item(row[column]))


def _required(y: Any) -> Any:
    if y is None:
        raise InputError("cannot use an array or a list as data: expected targets, got none. Pass y.")
    return y
