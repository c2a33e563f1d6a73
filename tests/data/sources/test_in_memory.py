import numpy as np
import pandas as pd
import pytest
import torch
from image_folders import decoded_noise
from PIL import Image
from sklearn.datasets import load_digits, load_wine

import skipway as sw
from skipway.commands.find_lr import find_lr
from skipway.data.column_roles import ColumnRoles
from skipway.data.images.choose_decode_settings import choose_decode_settings
from skipway.data.images.decoded_cache import decode_images
from skipway.data.open_data import open_data
from skipway.data.output_spec import OutputSpec
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.image_source import read_content
from skipway.data.sources.in_memory import dataset_images, hold_data, image_item
from skipway.data.tables.table_source import open_table_source
from skipway.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
PIXELS = decoded_noise([0, 1] * 20, size=8, channels=3).pixels
LABELS = [0, 1] * 20


class Pairs(torch.utils.data.Dataset):
    """A map-style dataset like those of torchvision."""

    classes = ("cat", "dog")

    def __init__(self, as_image=lambda pixels: pixels):
        self.as_image = as_image

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return self.as_image(PIXELS[i]), LABELS[i]


class Image_:
    """The feature of a column of images in Hugging Face datasets, by its name."""


Image_.__name__ = "Image"


class ClassLabel:
    names = ("cat", "dog")


class Hub:
    """The part of a Dataset of Hugging Face that is used."""

    __module__ = "datasets.arrow_dataset"

    def __init__(self, features=None):
        self.features = features or {"picture": Image_(), "kind": ClassLabel()}

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, key):
        return LABELS if key == "kind" else {"picture": Image.fromarray(PIXELS[key]), "kind": LABELS[key]}

    def to_pandas(self):
        return pd.DataFrame({"a": np.arange(40.0) % 7, "kind": LABELS})


def tensor(pixels):
    return torch.from_numpy(pixels).permute(2, 0, 1)


def test_the_task_of_images_in_python_is_that_of_the_call_or_of_the_model():
    class Known(OutputSpec):
        task, class_names, target_names, label_sep = "regression", (), ("y",), ""

    with hold_data(PIXELS, LABELS) as name:
        assert open_source(name).task == "classification"
        assert open_source(name, roles=ColumnRoles(task="regression")).task == "regression"
        assert open_data(name, known=Known()).task == "regression"
        with pytest.raises(InputError, match="cannot use --weight-column .*: expected a table that names images, got"):
            open_data(name, ColumnRoles(weight_column="w"))


def decoded(data, y=None, **options):
    with hold_data(data, y, **options) as name:
        source = open_source(name)
        return decode_images(source, choose_decode_settings(source, None, "squash", 10**6))


@pytest.mark.parametrize(
    "data, y",
    [
        (PIXELS, LABELS),
        (torch.stack([tensor(p) for p in PIXELS]), torch.tensor(LABELS)),
        (list(PIXELS), LABELS),
        ([tensor(p) for p in PIXELS], LABELS),
        ([Image.fromarray(p) for p in PIXELS], LABELS),
        (tuple(Image.fromarray(p).convert("RGBA") for p in PIXELS), LABELS),
        (Pairs(), None),
        (Pairs(tensor), None),
        (Pairs(Image.fromarray), None),
        ([Pairs()[i] for i in range(40)], None),
        (torch.utils.data.Subset(Pairs(), range(40)), None),
        (Hub(), None),
        (Hub(), LABELS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_images_in_python_are_decoded_to_their_pixels(data, y):
    images = decoded(data, y)
    assert np.array_equal(images.pixels, PIXELS) and images.targets.tolist() == LABELS
    has_names = y is None and not isinstance(data, list | torch.utils.data.Subset)
    assert images.class_names == (("cat", "dog") if has_names else ("0", "1"))


def test_paths_keep_their_names_and_unreadable_ones_are_listed(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(40)]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    images = decoded(paths, LABELS)
    assert images.keys == [str(path) for path in paths] and np.array_equal(images.pixels, PIXELS)
    paths[3].unlink()
    with hold_data([str(path) for path in paths], LABELS) as name:
        source = open_source(name)
        images = decode_images(source, choose_decode_settings(source, 8, "squash", 10**6), 0.1)
    assert [s.key for s in images.skipped] == [str(paths[3])] and "No such file" in images.skipped[0].reason


def test_a_series_of_paths_is_a_list_of_them(tmp_path):
    for i, pixels in enumerate(PIXELS[:4]):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    images = decoded(pd.Series([str(tmp_path / f"{i}.png") for i in range(4)]), [0, 1, 0, 1])
    assert np.array_equal(images.pixels, PIXELS[:4])


def test_validation_and_splits_are_kept_apart():
    images = decoded(PIXELS[:30], LABELS[:30], validation=(PIXELS[30:], LABELS[30:]))
    assert {split: len(rows) for split, rows in images.splits.items()} == {"train": 30, "val": 10}
    assert images.keys[30] == "val image 0"
    images = decoded({"train": Pairs(), "validation": Pairs(tensor)})
    assert list(images.splits) == ["train", "val"]


def test_rows_in_python_are_tables():
    wine = load_wine(as_frame=True)
    for data, y, target in (
        (wine.frame, None, "target"),
        (wine.data, wine.target, None),
        (wine.data, wine.target.to_frame(), None),
    ):
        with hold_data(data, y) as name:
            roles = sw.Recipe(data=name, target=target).roles
            tables = open_table_source(name, roles)
        assert tables.roles.target == ("target",) and len(tables.splits["train"]) == 178
        assert tables.splits["train"].row_name(5) == "row 5"
    with hold_data(wine.data.to_numpy(), torch.tensor(wine.target.to_numpy())) as name:
        tables = open_table_source(name)
    assert list(tables.splits["train"].columns) == [f"x{i}" for i in range(13)] + ["y"]
    with hold_data(Hub({"a": object()}), None) as name:
        assert "kind" in open_table_source(name, sw.Recipe(data=name, target="kind").roles).splits["train"].columns
    with hold_data([[1.0, 2.0], [3.0, 4.0]], ["a", "b"]) as name:
        assert list(open_table_source(name).splits["train"].columns) == ["x0", "x1", "y"]


@pytest.mark.parametrize(
    "data, y, message",
    [
        ("digits", [1], "cannot use y with 'digits': expected it with arrays, got a path or a name. Drop y"),
        (iter([1]), None, "data of the type list_iterator: expected samples with a length and an index, because"),
        (
            torch.utils.data.DataLoader(Pairs()),
            None,
            "cannot use a DataLoader as data: expected a dataset.*Pass its",
        ),
        ([], [], "data of the type list: expected samples, got none. Add samples"),
        (b"abc", [1], "data of the type bytes: expected several images, got the bytes of one object. Pass a list"),
        (PIXELS, None, "cannot use an array or a list as data: expected targets, got none. Pass y"),
        (
            PIXELS,
            LABELS[1:],
            "cannot use y: expected one target per sample, got 39 for 40 samples. Pass X and y of",
        ),
        (PIXELS, iter(LABELS), "cannot use y: expected one target per sample, got list_iterator without a length. Pa"),
        (PIXELS, np.array(1), "cannot use y: expected one target per sample, got ndarray without a length. Pass an"),
        (np.array(1), [1], "data of the type ndarray: expected samples with a length and an index"),
        ([[1, 2], [3]], [0, 1], "cannot use a list of rows: expected as many numbers in each row, got text or rows of"),
        ([["a", 2]], [0], "cannot use a list of rows: expected as many numbers in each row, got text or .*DataFrame"),
        (np.array([["a"]]), [1], "cannot use an array of <U1: expected numbers. Pass a DataFrame for text columns"),
        (np.zeros((2, 0, 3)), [0, 1], r"an array of shape \(2, 0, 3\): expected rows \(N, F\) or images .*Reshape it"),
        (
            {"train": Pairs(), "cats": Pairs()},
            None,
            "a dict as data: expected one dataset for each of train, val",
        ),
        (
            Hub({"picture": Image_(), "a": ClassLabel(), "b": ClassLabel()}),
            None,
            "one column of images and one Cla",
        ),
    ],
)
def test_what_is_no_dataset_is_refused(data, y, message):
    with pytest.raises(InputError, match=message), hold_data(data, y):
        pass


def test_other_objects_are_refused_with_a_reason():
    with pytest.raises(InputError, match=r"cannot use validation: expected \(X, y\), got ndarray. Pass images or row"):
        decoded(PIXELS, LABELS, validation=PIXELS)
    with pytest.raises(InputError, match="cannot use sample 0 of the Single: expected .image, target., got ndarray"):
        decoded(type("Single", (Pairs,), {"__getitem__": lambda self, i: PIXELS[i]})())
    frame = pd.DataFrame({"a": [1.0, 2.0]})
    with hold_data(frame) as name, pytest.raises(InputError, match="cannot use the DataFrame: expected its target, go"):
        open_table_source(name)
    with (
        hold_data(frame, [0, 1]) as name,
        pytest.raises(InputError, match="y or in the column 'a', got both"),
    ):
        open_table_source(name, sw.Recipe(data=name, target="a").roles)
    with hold_data(frame, [[0, 1], [1, 0]]) as name, pytest.raises(InputError, match="1 columns for the targets t, go"):
        open_table_source(name, sw.Recipe(data=name, target="t").roles)
    with pytest.raises(
        InputError, match="cannot open <40 images in Python>: expected the same objects as in the first"
    ):
        open_source("<40 images in Python>")
    with pytest.raises(InputError, match="cannot use the Dataset: expected one column of images, got 0 .columns a"):
        dataset_images(Hub({"a": object()}))


@pytest.mark.parametrize("item", [3, np.zeros(3), np.zeros((1, 2, 3, 4))])
def test_what_is_no_image_has_a_reason(item):
    assert "expected a path, a PIL image, or an array" in str(image_item(item))


def test_a_pil_image_is_decoded_as_its_file_would_be(tmp_path):
    gray = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    exif = gray.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    gray.save(tmp_path / "turned.png", exif=exif)
    turned = Image.open(tmp_path / "turned.png")
    content = read_content(image_item(turned))
    images = decoded([turned, *(Image.fromarray(p) for p in PIXELS[:9])], [0, 1] * 5)
    assert isinstance(content, bytes)
    assert np.array_equal(images.pixels[0][:, :, 0], np.rot90(np.asarray(gray), -1))
    gray.resize((64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-100])
    with Image.open(tmp_path / "cut.jpg") as image:
        assert "broken: image file is truncated" in str(read_content(image_item(image)))


def test_a_run_on_arrays_is_resumed_evaluated_and_used_with_arrays(tmp_path):
    digits = load_digits()
    x, y = (digits.images * 15).astype(np.uint8)[:200], digits.target[:200]
    run = sw.train(x, y, model="resnet9", epochs=1, output=tmp_path)
    assert run.path.name.startswith("images-resnet9")
    with pytest.raises(InputError, match="Pass them again in Python, as in skipway.train"):
        sw.train(resume=run.path, epochs=2)
    run = sw.train(x, y, resume=run.path, epochs=2)
    assert run.metrics["epochs"] == 2
    predictions = [sw.predict(run.path, inputs) for inputs in (x[:2], [Image.fromarray(i) for i in x[:2]])]
    assert [p.top for p in predictions[0]] == [p.top for p in predictions[1]]
    tensors = sw.predict(run.path, torch.from_numpy(x[:2])[:, None])
    assert [p.top for p in tensors] == [p.top for p in predictions[0]]
    assert sw.evaluate(run.path, x, y).count == 200
    assert sw.evaluate(run.path, x[:5], np.zeros(5, int) + y[0]).count == 5
    assert sw.check(x, y=y).as_dict()["counts"] == {"train": 200}
    assert find_lr(x, y, model="resnet9").suggestion > 0
    with pytest.raises(InputError, match="cannot train: expected one model, got 'a' and 'resnet9'. Pass targets as y"):
        sw.train(x, "a", model="resnet9")


def test_a_run_on_rows_predicts_a_matrix(tmp_path):
    wine = load_wine()
    run = sw.train(wine.data, wine.target, epochs=1, output=tmp_path)
    assert len(sw.predict(run.path, wine.data[:3])) == 3
    assert sw.evaluate(run.path, wine.data, wine.target).count == 178


class Faulty(Pairs):
    """A dataset whose sample 7 cannot be read from access `first` on."""

    def __init__(self, first):
        super().__init__()
        self.first, self.count = first, 0

    def __getitem__(self, i):
        self.count += i == 7
        if i == 7 and self.count >= self.first:
            raise KeyError("no\nfile")
        return super().__getitem__(i)


def test_a_sample_that_raises_is_named_and_left_out():
    with pytest.raises(InputError, match=r"sample 7 of the Faulty: not readable: KeyError: 'no.*Correct its __getitem"):
        decoded(Faulty(1))
    with hold_data(Faulty(2)) as name:
        contents = [read_content(item) for item in open_source(name).contents("train")]
    assert [i for i, content in enumerate(contents) if isinstance(content, InputError)] == [7]
    assert "\n" not in str(contents[7]) and str(contents[7]).startswith("not readable: KeyError: 'no")
    assert isinstance(read_content(dataset_images(Faulty(1))[7]), InputError)


def test_a_dataset_that_is_shuffled_at_each_access_is_refused():
    class Shuffled(Pairs):
        def __getitem__(self, i):
            self.count = getattr(self, "count", -1) + 1
            return super().__getitem__(self.count * 7 % 39)

    with pytest.raises(InputError, match="sample 0 of the Shuffled: expected the target 0 again, got 1. Return the sa"):
        decoded(Shuffled())
