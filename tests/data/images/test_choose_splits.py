import numpy as np
import pytest
from image_folders import decoded_noise

from skipway.data.folds import Fold
from skipway.data.images.choose_splits import SplitOptions, split_images
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError


def noise(count=40, **options):
    images = decoded_noise(np.arange(count) % 2, **options)
    images.keys = [f"class{i % 2}/p{i // 4}_x_{i}.png" for i in range(count)]
    return images


def test_a_pattern_groups_the_images_and_without_one_it_is_proposed():
    images = noise()
    split_images(images, SplitOptions(0.2, 0, group_regex=r"(p\d+)_"))
    assert images.groups[:5] == ["p0"] * 4 + ["p1"] and images.warnings == []
    assert not {images.groups[i] for i in images.splits["train"]} & {images.groups[i] for i in images.splits["val"]}
    plain = noise()
    split_images(plain, SplitOptions(0.2, 0))
    assert len(plain.warnings) == 1 and "file names suggest 10 groups, such as p0 (4 images)" in plain.warnings[0]
    images.splits = {"train": np.arange(40)}
    with pytest.raises(InputError, match="cannot use --group-regex: expected no --group-column, got both"):
        split_images(images, SplitOptions(0.2, 0, group_regex="(p)"))


def test_groups_across_given_splits_are_refused_or_allowed():
    splits = {"train": np.arange(30), "val": np.arange(30, 40)}
    with pytest.raises(InputError, match=r"got 1 in more than one, such as p7 \(train, val\)"):
        split_images(noise(splits=splits), SplitOptions(0.2, 0, group_regex=r"(p\d+)_"))
    images = noise(splits=splits)
    split_images(images, SplitOptions(0.2, 0, allow_duplicates=True, group_regex=r"(p\d+)_"))
    assert images.splits is splits or images.splits == splits


def ordered(images, cells):
    images.order = Table("t.csv", {"when": TextColumn.of(cells)}, str)
    return images


def test_the_last_images_validate():
    images = ordered(noise(), [f"2024-01-{1 + (7 * i) % 28:02}" for i in range(40)])
    split_images(images, SplitOptions(0.25, 0))
    days = np.array([(7 * i) % 28 for i in range(40)])
    assert days[images.splits["train"]].max() < days[images.splits["val"]].min()
    (note,) = images.notes
    assert note.startswith("validation images from when 2024-01-") and images.notes[note] == len(images.splits["val"])


def test_a_time_that_splits_groups_or_given_splits_is_refused():
    cells = [f"{i % 4}" for i in range(40)]
    with pytest.raises(InputError, match="expected each group in only one split, got 10 in more than one"):
        split_images(ordered(noise(), cells), SplitOptions(0.25, 0, group_regex=r"(p\d+)_"))
    given = noise(splits={"train": np.arange(30), "val": np.arange(30, 40)})
    with pytest.raises(InputError, match="cannot use --split-by with noise: expected no validation images, got 10"):
        split_images(ordered(given, cells), SplitOptions(0.25, 0))


def test_equal_weights_are_no_weights():
    images = noise()
    images.weights = np.full(40, 3.0)
    split_images(images, SplitOptions(0.2, 0, Fold(1, 2)))
    assert images.weights is None and len(images.splits["val"]) == 20
