import numpy as np
import pytest
from image_folders import decoded_noise

from skipway.data.folds import Fold, split_fold
from skipway.data.groups import groups_by_regex, groups_of_column, hint_at_columns, hint_at_names
from skipway.data.images.split import hold_out, refuse_leaks
from skipway.data.sources.table import Table
from skipway.data.sources.text_column import TextColumn
from skipway.errors import InputError


def grouped_images(labels, groups, **options):
    images = decoded_noise(labels, **options)
    images.groups = groups
    return images


def groups_of(images, split):
    return {images.groups[i] for i in images.splits[split]}


def test_images_of_a_group_stay_in_one_split():
    images = grouped_images(np.arange(60) % 3, [f"p{i // 5}" for i in range(60)])
    hold_out(images, 0.25, 0)
    assert len(images.splits["val"]) == 15 and not groups_of(images, "train") & groups_of(images, "val")
    validated = []
    for number in range(1, 5):
        images.splits = {"train": np.arange(60)}
        split_fold(images, Fold(number, 4), seed=0)
        assert not groups_of(images, "train") & groups_of(images, "val")
        validated += images.splits["val"].tolist()
    assert sorted(validated) == list(range(60))


def test_groups_across_given_splits_are_refused_like_leaks():
    splits = {"train": np.arange(4), "val": np.arange(4, 6)}
    images = grouped_images([0, 1, 0, 1, 0, 1], ["p", "p", "q", "", "q", ""], splits=splits)
    message = (
        r"cannot use noise: expected each group in only one split, got 1 in more than one, such as q \(train, val\)\. "
        "Move each group into one split, or use --allow-duplicates"
    )
    with pytest.raises(InputError, match=message):
        refuse_leaks(images, allow=False)
    refuse_leaks(images, allow=True)
    assert images.warnings == [
        "1 group in more than one split, such as q (train, val). Validation and test metrics are inflated."
    ]


def test_too_few_groups_are_one_line():
    labels = np.arange(12) % 2
    with pytest.raises(InputError, match=r"cannot split noise: expected at least 2 groups, got 1\. Add groups, or use"):
        hold_out(grouped_images(labels, ["p"] * 12), 0.2, 0)
    images = grouped_images(labels, ["p", "q", "r"] * 4)
    with pytest.raises(InputError, match="cannot make 5 folds of noise: expected at least 5 groups, got 3. Use --fo"):
        split_fold(images, Fold(1, 5), 0)
    lone = grouped_images(labels, ["p" if label else f"q{i % 3}" for i, label in enumerate(labels)])
    message = "cannot make 3 folds of noise: expected images of each class in at least 2 groups, got 1 group of"
    with pytest.raises(InputError, match=message):
        split_fold(lone, Fold(1, 3), 0)
    hold_out(lone, 0.2, 0)
    assert set(lone.targets[lone.splits["val"]]) == {0}, "the only group of a class is trained on"
    with pytest.raises(InputError, match="cannot split noise: expected images of each class in at least 2 groups"):
        hold_out(grouped_images(labels, ["p" if label else "q" for label in labels]), 0.2, 0)


def test_a_pattern_names_the_groups():
    assert groups_by_regex(["cat/p1_2.jpg", "dog/p12.jpg"], r"(p\d+)") == ["p1", "p12"]
    for pattern, problem in ((r"p\d", "one without a group in parentheses"), ("(p", "an invalid one")):
        with pytest.raises(InputError, match=f"expected a regular expression with a group, got {problem}"):
            groups_by_regex(["p1"], pattern)
    with pytest.raises(InputError, match=r"expected a group in every file name, got none in 1 of 2, such as x\.png"):
        groups_by_regex(["p1.png", "x.png"], r"(p\d+)")


def test_cells_of_a_column_name_groups_and_empty_ones_do_not():
    assert groups_of_column(np.array([1.0, np.nan, 1.0])) == ["1", "", "1"]
    assert groups_of_column(TextColumn.of(["a", "", "NA", "a"])) == ["a", "", "", "a"]


@pytest.mark.parametrize(
    "names, group, pattern",
    [
        ([f"{c}/patient_{i // 4}_{i}.jpg" for c in "ab" for i in range(40)], "patient_0", "Za-z"),
        ([f"{c}/P00{10 + i // 3}_left{i}.png" for c in "ab" for i in range(30)], "P0010", "Za-z"),
        ([f"{c}/cam 3 roll {i // 4} ({i % 4}).png" for c in "ab" for i in range(40)], "cam 3 roll 0", "d{1,4}"),
        ([f"{c}/sub{i // 4}/{i}.png" for c in "ab" for i in range(40)], "sub0", r"\(\[\^/\]\+\)/"),
    ],
)
def test_names_that_suggest_groups_are_reported_with_a_pattern_that_works(names, group, pattern):
    classes = [name[0] for name in names]
    (warning,) = hint_at_names(names, classes, [np.arange(len(names))], "images")
    assert f"suggest 10 groups, such as {group} (" in warning and "use --group-regex '" in warning
    groups = groups_by_regex(names, warning.split("'")[1])
    assert len(set(groups)) == 10 and group in groups
    halves = [np.arange(len(names) // 2), np.arange(len(names) // 2, len(names))]
    assert "10 groups in both training and validation set" in hint_at_names(names, classes, halves, "images")[0]


@pytest.mark.parametrize(
    "names",
    [
        [f"{c}/{i}.png" for c in "ab" for i in range(20)],
        [f"{c}/IMG_{i:04}.jpg" for c in "ab" for i in range(20)],
        [f"{c}/{c}_{i}.jpg" for c in "ab" for i in range(20)],
        [f"{c}/n0{k}208562_{i}.JPEG" for k, c in enumerate("ab") for i in range(20)],
        [f"{c}/ISIC_00{24306 + i}.jpg" for c in "ab" for i in range(20)],
        [f"digits:{i}" for i in range(20)],
        [f"{c}/2024-03-{1 + i:02} 10.00.jpg" for c in "ab" for i in range(20)],
    ],
)
def test_usual_names_suggest_no_groups(names):
    assert hint_at_names(names, [name[0] for name in names], [np.arange(len(names))], "images") == []


def test_names_that_spell_the_target_suggest_no_groups():
    ages = [str(20 + i % 30) for i in range(300)]
    names = [f"faces/{age}_{i}.jpg" for i, age in enumerate(ages)]
    assert hint_at_names(names, ages, [np.arange(300)], "images") == []
    patients = [f"faces/p{i % 40}_{i}.jpg" for i in range(300)]
    (warning,) = hint_at_names(patients, ages, [np.arange(300)], "images")
    assert "file names suggest 40 groups" in warning
    heights = [f"{i / 7:.4f}" for i in range(300)]  # as many numbers as images
    assert "40 groups" in hint_at_names(patients, heights, [np.arange(300)], "images")[0]


def test_columns_named_like_groups_are_reported():
    columns = {"lesion_id": np.arange(12.0) // 3, "site": np.arange(12.0), "age": np.arange(12.0) // 3}
    table = Table("t.csv", columns, str)
    assert hint_at_columns(table, ["age"]) == [
        "column 'lesion_id' suggests 4 groups: use --group-column to keep each in one split"
    ]
    assert hint_at_columns(table, ["lesion_id"]) == []
