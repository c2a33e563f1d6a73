import numpy as np
import pytest
from image_folders import decoded_noise

from skipway.data.folds import (
    Fold,
    describe_pool,
    pool_images,
    pool_tables,
    refuse_too_many_folds,
    split_fold,
    split_rows,
)
from skipway.data.sources.image_source import Source
from skipway.data.sources.table import Table
from skipway.data.stratified_split import fold_numbers
from skipway.errors import InputError


def names(count):
    return [f"content {i}" for i in range(count)]


@pytest.mark.parametrize("counts", [(10, 10), (23, 7, 5), (101, 6, 33, 12)])
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_are_equally_large_and_each_class_has_its_share_in_each(counts, folds):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    numbers = fold_numbers(labels, names(len(labels)), folds, seed=0)
    sizes = np.bincount(numbers, minlength=folds + 1)
    assert sizes[0] == 0 and sizes[1:].max() - sizes[1:].min() <= 1
    for label in range(len(counts)):
        shares = np.bincount(numbers[labels == label], minlength=folds + 1)[1:]
        assert shares.max() - shares.min() <= 1 and shares.min() >= 1


def test_folds_are_a_function_of_the_seed_and_not_of_the_order():
    labels = np.arange(60) % 3
    first = fold_numbers(labels, names(60), 5, seed=4)
    assert first.tolist() == fold_numbers(labels, names(60), 5, seed=4).tolist()
    assert first.tolist() != fold_numbers(labels, names(60), 5, seed=5).tolist()
    assert first.tolist() != sorted(first.tolist())


def test_copies_are_in_one_fold_and_count_once():
    digests = [*names(12), "content 0", "content 0", "content 5"]
    labels = np.array([0, 1] * 6 + [0, 0, 1])
    numbers = fold_numbers(labels, digests, 3, seed=0)
    assert numbers[0] == numbers[12] == numbers[13] and numbers[5] == numbers[14]
    assert np.bincount(numbers[:12]).tolist() == [0, 4, 4, 4]
    images = decoded_noise(labels, digests=digests)
    for number in (1, 2, 3):
        images.splits = {"train": np.arange(15)}
        split_fold(images, Fold(number, 3), seed=0)
        assert images.splits["val"].tolist() == np.flatnonzero(numbers == number).tolist()
        assert images.splits["train"].tolist() == np.flatnonzero(numbers != number).tolist()


def test_a_class_with_fewer_samples_than_folds_is_named():
    labels, arguments = np.array([0, 0, 0, 0, 1, 1, 1]), {"name": "pets", "noun": "images"}
    message = (
        "cannot make 4 folds of pets: expected at least 4 different images of each class, got 2 of 'dog'. "
        "Use --folds 2, or add images."
    )
    digests = [*names(6), "content 5"]
    with pytest.raises(InputError, match=message):
        refuse_too_many_folds(labels, digests, ("cat", "dog"), count=4, **arguments)
    refuse_too_many_folds(labels, digests, ("cat", "dog"), count=2, **arguments)
    with pytest.raises(InputError, match=r"got 1 of 'dog'\. Add images\."):
        refuse_too_many_folds(labels[:5], names(5), ("cat", "dog"), count=2, **arguments)
    with pytest.raises(InputError, match="cannot make 8 folds of prices: expected at least 8 different rows, got 7"):
        split_rows(np.zeros(7, np.int64), names(7), (), fold=Fold(1, 8), seed=0, name="prices")


def test_rows_that_are_mostly_copies_are_dealt_out_one_by_one():
    labels = np.array([0, 1] * 5)
    digests = ["same", "other"] * 5
    vals = [split_rows(labels, digests, ("a", "b"), fold=Fold(k, 5), seed=0, name="t")["val"] for k in range(1, 6)]
    assert sorted(np.concatenate(vals).tolist()) == list(range(10)) and {len(v) for v in vals} == {2}


def test_train_and_val_are_pooled_and_test_is_left_out():
    keys = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    labels = {"train": np.array([0, 1]), "val": np.array([1]), "test": np.array([0])}
    source = Source("s", ("x", "y"), keys, labels, lambda split: iter(keys[split]), lambda: [])
    pooled = pool_images(source)
    assert {split: pooled.count(split) for split in ("train", "val", "test")} == {"train": 3, "val": 0, "test": 0}
    assert pooled.keys["train"] == list(pooled.contents("train")) == ["a", "b", "c"]
    assert pooled.targets["train"].tolist() == [0, 1, 1] and source.count("test") == 1
    assert describe_pool({"train": 2, "val": 1}, "images") == "the 2 train and 1 val images are pooled"
    assert describe_pool({"train": 2, "test": 1}, "rows") == "the 1 test rows are left out"
    assert describe_pool({"train": 2}, "rows") == ""


def test_tables_are_pooled_with_the_names_of_their_rows():
    train = Table("t.csv", {"a": np.array([1.0, 2.0]), "b": np.array(["x", None], object)}, lambda i: f"t:{i}", ["n"])
    val = Table("v.csv", {"b": np.array(["y"], object), "a": np.array(["3"], object)}, lambda i: f"v:{i}")
    pooled = pool_tables({"train": train, "val": val, "test": val}, ())
    assert list(pooled) == ["train"] and len(pooled["train"]) == 3
    assert pooled["train"].columns["a"].tolist() == ["1", "2", "3"]
    assert pooled["train"].columns["b"].tolist() == ["x", None, "y"] and pooled["train"].notes == ["n"]
    assert [pooled["train"].row_name(i) for i in range(3)] == ["t:0", "t:1", "v:0"]
    assert pool_tables({"train": train}, ())["train"] is train
    del val.columns["b"]
    assert list(pool_tables({"train": train, "val": val}, ("b",))["train"].columns) == ["a"]
    with pytest.raises(InputError, match="cannot find the column 'b' in .*v.csv"):
        pool_tables({"train": train, "val": val}, ())
