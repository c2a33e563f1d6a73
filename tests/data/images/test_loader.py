import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_folders import decoded_noise
from PIL import Image

from skipway.data.image_spec import Spec
from skipway.data.images.decode_pass import channel_sums
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.loader import Augmentation, ImageBatches, mean_and_std
from skipway.data.sample_order import Shard, batch_bounds
from skipway.data.tables.loader import RowBatches
from skipway.errors import InputError


def normalization(mean, std):
    return Spec(channels=len(mean), size=1, presize=1, mean=mean, std=std, class_names=("a",))


PLAIN = {"spec": normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}
GREY = {"spec": normalization((0.0,), (1.0,))}


def training(packed, batch_size=4, level="shift+flip", seed=0):
    return ImageBatches(packed, packed.splits["train"], batch_size, **PLAIN, augmentation=Augmentation(level, seed))


@given(count=st.integers(0, 500), batch_size=st.integers(2, 600))
def test_batches_cover_everything_and_none_is_of_one(count, batch_size):
    bounds = batch_bounds(count, batch_size)
    assert [i for begin, end in bounds for i in range(begin, end)] == list(range(count))
    sizes = [end - begin for begin, end in bounds]
    assert all(1 < size <= batch_size + 1 for size in sizes) or count == 1
    assert all(size == batch_size for size in sizes[:-1])


@pytest.mark.parametrize("count, size, sizes", [(9, 4, [4, 5]), (8, 4, [4, 4]), (3, 4, [3]), (2, 64, [2]), (5, 4, [5])])
def test_a_last_image_joins_the_batch_before_it(count, size, sizes):
    packed = decoded_noise([i % 2 for i in range(count)])
    feed = training(packed, size)
    assert feed.steps == len(sizes) and feed.count == count
    batches = list(feed.epoch())
    assert [len(x) for x, _, _ in batches] == sizes
    assert sorted(i for _, _, ids in batches for i in ids) == list(range(count))


def test_training_on_one_image_is_refused_but_judging_it_is_not():
    packed = decoded_noise([0])
    with pytest.raises(InputError, match="expected at least 2 training images, got 1. Add more images"):
        training(packed)
    assert [len(x) for x, _, _ in ImageBatches(packed, np.arange(1), 4, **PLAIN).epoch()] == [1]


@pytest.mark.parametrize("batch_size, processes", [(2, 2), (3, 2), (2, 8), (15, 8)])
def test_batches_too_small_for_the_processes_are_refused(batch_size, processes):
    packed, shard = decoded_noise([i % 2 for i in range(40)]), Shard(processes - 1, processes)
    text = f"batches of {batch_size}: expected --batch-size >= {2 * processes} .2 {{}} in each of {processes} processes"
    with pytest.raises(InputError, match=text.format("images") + f".*got {batch_size}. Use a larger"):
        ImageBatches(packed, np.arange(40), batch_size, **PLAIN, augmentation=Augmentation("none"), shard=shard)
    with pytest.raises(InputError, match=text.format("rows")):
        RowBatches(np.zeros((40, 2), np.float32), packed.targets, np.arange(40), batch_size, seed=0, shard=shard)
    feed = ImageBatches(packed, np.arange(40), 2 * processes, **PLAIN, augmentation=Augmentation("none"), shard=shard)
    assert min(len(ids) for _, _, ids in feed.epoch()) >= 2
    ImageBatches(packed, np.arange(40), batch_size, **PLAIN, shard=shard)  # evaluation takes what there is


def test_every_epoch_has_an_order_of_its_own():
    packed = decoded_noise(np.arange(100) % 3, size=1, channels=1, splits={"train": np.arange(10, 90)})
    feed = ImageBatches(packed, packed.splits["train"], 7, **GREY, augmentation=Augmentation("none", 5))
    orders = [np.concatenate([ids for _, _, ids in feed.epoch(epoch)]) for epoch in range(4)]
    assert all(sorted(order) == list(range(10, 90)) for order in orders)
    assert len({order.tobytes() for order in orders}) == 4
    again = ImageBatches(packed, packed.splits["train"], 11, **GREY, augmentation=Augmentation("none", 5))
    assert np.array_equal(np.concatenate([ids for _, _, ids in again.epoch(2)]), orders[2]), "whatever the batch size"
    other = ImageBatches(packed, packed.splits["train"], 7, **GREY, augmentation=Augmentation("none", 6))
    assert not np.array_equal(np.concatenate([ids for _, _, ids in other.epoch(2)]), orders[2])


@pytest.mark.parametrize("level", ["shift+flip", "zoom+flip"])
def test_going_on_within_an_epoch_gives_the_same_batches(level):
    feed = training(decoded_noise(np.arange(30) % 2, room=2), 4, level)
    whole = list(feed.epoch(3))
    for start in (0, 1, 5, feed.steps - 1, feed.steps):
        rest = list(feed.epoch(3, start))
        assert len(rest) == len(whole) - start
        for (x, y, ids), (x2, y2, ids2) in zip(whole[start:], rest, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2) and np.array_equal(ids, ids2)


@pytest.mark.parametrize("level", ["shift+flip", "zoom+flip"])
def test_the_batch_size_cannot_change_a_image(level):
    packed = decoded_noise(np.arange(30) % 2, room=2)
    seen = []
    for size in (2, 7, 64):
        feed = training(packed, size, level)
        seen.append({int(i): x[j] for x, _, ids in feed.epoch(1) for j, i in enumerate(ids)})
    for i in range(30):
        assert torch.equal(seen[0][i], seen[1][i]) and torch.equal(seen[0][i], seen[2][i])
    later = {int(i): x[j] for x, _, ids in training(packed, 7, level).epoch(2) for j, i in enumerate(ids)}
    assert sum(torch.equal(seen[0][i], later[i]) for i in range(30)) < 10, "another epoch changes them otherwise"


def test_labels_belong_to_their_images():
    packed = decoded_noise(np.arange(20) % 5)
    for x, y, ids in training(packed, 6, "none").epoch():
        assert y.dtype == torch.int64 and y.tolist() == (ids % 5).tolist()
        assert np.array_equal((x * 255).round().permute(0, 2, 3, 1).numpy(), packed.pixels[ids])


def test_validation_is_the_plain_centre_in_the_order_of_the_set():
    packed = decoded_noise(np.arange(9) % 2, size=6, room=3, splits={"train": np.arange(3), "val": np.arange(3, 9)})
    for epoch in (0, 5):
        batches = list(ImageBatches(packed, packed.splits["val"], 4, **PLAIN).epoch(epoch))
        assert [ids.tolist() for _, _, ids in batches] == [[3, 4, 5, 6], [7, 8]]
        x = torch.cat([x for x, _, _ in batches]) * 255
        assert np.array_equal(x.round().permute(0, 2, 3, 1).numpy(), packed.pixels[3:, 2:8, 2:8])


def test_images_are_normalised_per_channel():
    packed = decoded_noise([0, 1] * 4)
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    feed = ImageBatches(packed, packed.splits["train"], 8, spec=normalization(mean, std))
    wanted = (packed.pixels / 255 - np.array(mean)) / np.array(std)
    x = feed.inputs(np.arange(8))
    assert np.allclose(x.permute(0, 2, 3, 1).numpy(), wanted, atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.dtype == torch.float32
    grey = decoded_noise([0, 1], channels=1)
    assert ImageBatches(grey, grey.splits["train"], 8, **GREY).inputs(np.arange(2)).shape == (
        2,
        1,
        8,
        8,
    )


def test_a_few_images_are_shown_as_they_are():
    packed = decoded_noise(np.arange(20) % 2, room=2)
    feed = training(packed, 4, "zoom+flip")
    x, y = feed.some(5)
    few = (x * 255).round().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(few, packed.pixels[::4, 1:9, 1:9]) and y.tolist() == packed.targets[::4].tolist()
    assert len(feed.some(100)[0]) == 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 255, 700])
def test_mean_and_deviation_are_those_of_all_pixels(channels, count):
    pixels = np.random.default_rng(0).integers(0, 256, (count + 5, 5, 5, channels), dtype=np.uint8)
    pixels[..., 0] //= 3
    rows = np.random.default_rng(1).permutation(count + 5)[:count]
    packed = decoded_noise(np.zeros(count + 5), channels=channels)
    packed.pixels, packed.settings = pixels, DecodeSettings(5, 5, channels)
    mean, std = mean_and_std(packed, rows)
    packed.sums = np.stack([channel_sums(image) for image in pixels])
    assert mean_and_std(packed, rows) == (mean, std)
    values = pixels[rows].reshape(-1, channels) / 255
    assert np.allclose(mean, values.mean(axis=0), rtol=0, atol=1e-12)
    assert np.allclose(std, values.std(axis=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 5])
def test_statistics_of_deep_images_are_those_of_all_values(channels):
    images = decoded_noise(np.zeros(40), channels=channels)
    images.pixels = np.random.default_rng(0).integers(0, 65536, (40, 6, 6, channels), dtype=np.uint16)
    mean, std = mean_and_std(images, np.arange(40))
    np.testing.assert_allclose(mean, (images.pixels / 65535).mean((0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(std, (images.pixels / 65535).std((0, 1, 2)), rtol=1e-6)
    images.sums = np.stack([channel_sums(image) for image in images.pixels])
    assert mean_and_std(images, np.arange(40)) == (mean, std)
    images.pixels, images.sums = np.zeros((2, 3, 3, channels), np.uint16), None
    assert mean_and_std(images, np.arange(2)) == ((0.0,) * channels, (1 / 65535,) * channels)


def test_a_channel_of_one_value_has_a_deviation_to_divide_by():
    packed = decoded_noise([0, 1, 0], channels=1)
    packed.pixels = np.full((3, 2, 2, 1), 51, np.uint8)
    assert mean_and_std(packed, np.arange(3)) == ((0.2,), (1 / 255,))


@pytest.mark.parametrize("level", [None, "shift+flip", "zoom+flip"])
def test_a_memory_map_gives_the_same_batches(tmp_path, level):
    packed = decoded_noise(np.arange(10) % 2, room=2)
    feed = ImageBatches(packed, np.arange(10), 4, **PLAIN, augmentation=None if level is None else Augmentation(level))
    plain = list(feed.epoch())
    packed.pixels.tofile(tmp_path / "pixels")
    shape, packed.pixels = packed.pixels.shape, None
    packed.pixels = np.memmap(tmp_path / "pixels", np.uint8, "r", shape=shape)
    for (x, y, ids), (x2, y2, ids2) in zip(plain, feed.epoch(), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2) and np.array_equal(ids, ids2)
    assert mean_and_std(packed, np.arange(10))


# What training images go through beyond shifts, zooms and flips


def noise(count=24, room=0):
    return decoded_noise(np.arange(count) % 3, room=room)


def feed_of(packed, batch_size=8, **values):
    return ImageBatches(packed, packed.splits["train"], batch_size, **PLAIN, augmentation=Augmentation(**values))


@pytest.mark.parametrize("part", ["affine", "color", "trivial", "erase"])
def test_a_distortion_is_a_function_of_seed_epoch_and_image(part):
    packed = noise()
    ids = packed.splits["train"]
    feed = feed_of(packed, parts=f"shift+{part}", seed=4)
    first = feed.inputs(ids, 2)
    assert torch.equal(first, feed_of(packed, parts=f"shift+{part}", seed=4).inputs(ids, 2))
    assert torch.allclose(first[5:7], feed.inputs(ids[5:7], 2), atol=1e-5)
    assert not torch.equal(first, feed.inputs(ids, 3))
    assert not torch.equal(first, feed_of(packed, parts=f"shift+{part}", seed=5).inputs(ids, 2))


def test_a_distortion_draws_the_same_beside_others():
    packed = noise(60)
    plain, flipped, alone, beside = (
        feed_of(packed, parts=p).inputs(packed.splits["train"]) for p in ("none", "flip", "erase", "flip+erase")
    )
    same = (plain == flipped).all(dim=(1, 2, 3))
    assert 10 < same.sum() < 50 and torch.equal(alone[same], beside[same]) and not torch.equal(alone[same], plain[same])


def test_mixing_gives_shares_of_classes_and_the_same_ones_again():
    packed = noise()
    batches = [list(feed_of(packed, parts="none", mixup=0.4, cutmix=1.0).epoch(1)) for _ in range(2)]
    for (x, y, ids), (x2, y2, _) in zip(*batches, strict=True):
        assert y.shape == (len(ids), 3) and torch.allclose(y.sum(1), torch.ones(len(ids)))
        assert torch.equal(x, x2) and torch.equal(y, y2)
    assert feed_of(packed, mixup=0.4).inputs(packed.splits["train"]).shape == (len(packed.splits["train"]), 3, 8, 8)


@pytest.mark.parametrize("parts, room", [("shift", 0), ("zoom", 2)])
def test_images_grow_over_two_thirds_of_the_epochs(parts, room):
    packed = decoded_noise(np.arange(24) % 3, size=32, room=room)
    feed = feed_of(packed, parts=parts, first_size=16, epochs=6)
    sizes = [next(feed.epoch(e))[0].shape[-1] for e in range(6)]
    assert sizes == [16, 20, 24, 28, 32, 32]
    plain = ImageBatches(packed, packed.splits["train"], 8, **PLAIN)
    assert next(plain.epoch())[0].shape[-1] == 32


def test_a_smaller_image_is_the_antialiased_one():
    packed = decoded_noise(np.arange(4) % 2, size=32)
    ids = packed.splits["train"][:2]
    small = feed_of(packed, parts="none", first_size=16, epochs=6).inputs(ids)
    image = Image.fromarray(packed.pixels[ids[0]]).resize((16, 16), Image.Resampling.BILINEAR)
    assert (small[0].permute(1, 2, 0) * 255 - torch.from_numpy(np.asarray(image).copy())).abs().max() < 2


def test_balanced_sampling_shows_every_class_as_often_and_all_of_the_small_ones():
    packed = decoded_noise(np.array([0] * 40 + [1] * 5 + [2] * 3))
    feed = feed_of(packed, batch_size=7, parts="none", balanced=True)
    rows = packed.splits["train"]
    seen = []
    for epoch in range(2):
        _, ys, ids = zip(*feed.epoch(epoch), strict=True)
        ids, counts = np.concatenate(ids), np.bincount(torch.cat(ys), minlength=3)
        assert len(ids) == len(rows) and counts.max() - counts.min() <= 1
        assert {i for i in rows if packed.targets[i] == 2} <= set(ids)
        seen.append(ids)
    assert not np.array_equal(*seen)
    assert np.array_equal(np.concatenate([i for _, _, i in feed.epoch(1)]), seen[1])


def test_a_transform_of_the_user_is_seeded_by_the_batch_and_leaves_the_generator_alone():
    class Noise(torch.nn.Module):
        def forward(self, x):
            assert 0 <= x.min() and x.max() <= 1
            return x + torch.randn_like(x)

    packed = noise()
    before = torch.get_rng_state()
    first, again = (next(feed_of(packed, parts="none", transform=Noise()).epoch(1))[0] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, next(feed_of(packed, parts="none").epoch(1))[0])


@pytest.mark.parametrize("wrong", [lambda x: x[:1], lambda x: x.mean(1, keepdim=True), lambda x: 7])
def test_a_transform_that_gives_something_else_is_refused(wrong):
    with pytest.raises(
        InputError,
        match=r"expected a tensor \(B, C, H, W\) with the batch size and channels of its input .*, got .*\. Return",
    ):
        next(feed_of(noise(), parts="none", transform=wrong).epoch())
