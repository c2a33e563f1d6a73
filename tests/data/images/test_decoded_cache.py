import hashlib
import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from image_folders import array_source, class_folders, decoded_noise, fill, image_bytes, split_folders
from PIL import Image

from skipway.data.images import decoded_cache as module
from skipway.data.images.choose_decode_settings import choose_decode_settings
from skipway.data.images.decode_source import decode_source
from skipway.data.images.decoded_cache import (
    decode_images,
    decoding_seconds,
    fingerprint,
    pixels_fingerprint,
    share_decoded,
)
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.split import hold_out
from skipway.data.sources.choose_source import open_source
from skipway.data.sources.decode import BadImage, decode, decode_array
from skipway.errors import InputError, Interrupted
from skipway.utils.stop_signals import StopFlag

PACKING = DecodeSettings(8, 8, 3)


def pixels_of(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


@pytest.fixture
def mixed(tmp_path):
    """Three classes in three splits with bad files in the middle of each."""
    split_folders(tmp_path, count=4, splits=("train", "val", "test"))
    for name in ("train/cow/1.png", "val/cat/2.png", "test/dog/0.png"):
        (tmp_path / name).write_bytes(b"<html>not found</html>")
    return tmp_path


def test_every_image_is_decoded_once_into_its_place(tmp_path):
    source = open_source(str(split_folders(tmp_path, count=3)))
    packed = decode_images(source, PACKING)
    assert packed.pixels.shape == (18, 8, 8, 3) and packed.pixels.dtype == np.uint8
    files = [tmp_path / key for key in packed.keys]
    assert packed.keys == source.keys["train"] + source.keys["val"]
    for i, file in enumerate(files):
        data = file.read_bytes()
        assert np.array_equal(packed.pixels[i], pixels_of(data))
        assert packed.digests[i] == hashlib.sha256(data).hexdigest()
        assert packed.class_names[packed.targets[i]] == file.parent.name
    assert packed.splits["train"].tolist() == list(range(9)) and packed.splits["val"].tolist() == list(range(9, 18))
    assert packed.sizes == "all 8 x 8 pixels" and packed.skipped == [] and not packed.notes and packed.mirrored


def test_a_bad_file_is_left_out_named_and_never_replaced(mixed):
    packed = decode_images(open_source(str(mixed)), PACKING, max_unreadable=0.1)
    left_out = [(s.key, s.split, s.class_name, s.reason) for s in packed.skipped]
    reason = "unsupported format: expected the content of an image file, such as JPEG, PNG or TIFF"
    assert left_out == [
        ("train/cow/1.png", "train", "cow", reason),
        ("val/cat/2.png", "val", "cat", reason),
        ("test/dog/0.png", "test", "dog", reason),
    ]
    assert {split: len(rows) for split, rows in packed.splits.items()} == {"train": 11, "val": 11, "test": 11}
    assert len(packed.pixels) == len(packed.targets) == len(packed.keys) == len(packed.digests) == 33
    for split, rows in packed.splits.items():
        for i in rows:
            data = (mixed / packed.keys[i]).read_bytes()
            assert packed.keys[i].startswith(split) and np.array_equal(packed.pixels[i], pixels_of(data))
            assert packed.class_names[packed.targets[i]] == packed.keys[i].split("/")[1]
    assert len(set(packed.digests)) == 33, "no image stands twice"


def test_too_many_bad_files_are_refused_with_their_list(mixed):
    with pytest.raises(
        InputError, match=r"cannot read 3 of 36 images of .* \(train/cow/1.png, .*: unsupported format"
    ) as error:
        decode_images(open_source(str(mixed)), PACKING, max_unreadable=3 / 36 - 1e-6)
    assert str(error.value).endswith("Repair or remove them, or use --max-unreadable 0.084.")
    assert len(decode_images(open_source(str(mixed)), PACKING, max_unreadable=0.084).skipped) == 3


def test_a_long_list_of_bad_files_is_cut(tmp_path):
    class_folders(tmp_path, ("a", "b"), 4)
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"")
    for file in list((tmp_path / "b").iterdir())[:3]:
        file.write_bytes(b"")
    with pytest.raises(InputError, match="7 of 8 images .*a/0.png, .* and 4 more: empty file") as error:
        decode_images(open_source(str(tmp_path)), PACKING)
    assert "\n" not in str(error.value)


def test_a_class_of_which_nothing_can_be_read_is_named(tmp_path):
    class_folders(tmp_path, ("a", "b"), 1)
    (tmp_path / "b" / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="got none of 'b'. Repair them, or remove the class"):
        decode_images(open_source(str(tmp_path)), PACKING, max_unreadable=1)
    assert len(decode_images(open_source(str(tmp_path)), PACKING, max_unreadable=1, need_every_class=False).keys) == 1


def test_a_damaged_tiff_prints_nothing_behind_our_back(capfd):
    file = io.BytesIO()
    Image.open(io.BytesIO(image_bytes(0, side=64))).save(file, "TIFF", compression="tiff_lzw")
    damaged = file.getvalue()[:200] + b"\xff" * 200 + file.getvalue()[400:]
    source = array_source({"train": [damaged, image_bytes(1), image_bytes(2)]}, {"train": [0, 0, 1]})
    assert [s.key for s in decode_images(source, PACKING, max_unreadable=1).skipped] == ["train/0.png"]
    assert capfd.readouterr() == ("", "")


def test_conversions_are_counted(tmp_path):
    class_folders(tmp_path, ("a", "b"), 2, channels=1)
    fill(tmp_path / "a", 1)
    assert dict(decode_images(open_source(str(tmp_path)), PACKING).notes) == {"gray repeated to three channels": 3}
    (tmp_path / "a" / "0.jpg").write_bytes(image_bytes(5))
    notes = decode_images(open_source(str(tmp_path)), DecodeSettings(8, 8, 1)).notes
    assert dict(notes) == {"color converted to gray": 2, "extension does not match content": 1}


def test_sizes_are_told_in_words(tmp_path):
    class_folders(tmp_path, ("a", "b"), 2, side=9)
    fill(tmp_path / "a", 1, side=4)
    fill(tmp_path / "b", 1, side=20)
    sizes = decode_images(open_source(str(tmp_path)), PACKING).sizes
    assert sizes == "4 x 4 to 20 x 20 pixels, median 9 x 9"
    (tmp_path / "a" / "0.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    nothing = array_source({"train": [BadImage("no")] * 2}, {"train": [0, 1]})
    assert decode_images(nothing, PACKING, max_unreadable=1, need_every_class=False).sizes == "no images"


def test_a_stop_ends_decoding_soon(tmp_path):
    stop, given = StopFlag(), []

    def contents(split):
        for i in range(1000):
            if i == 40:
                stop.request("SIGTERM")
            given.append(i)
            yield np.full((8, 8), i % 256, np.uint8)

    source = array_source({"train": [np.zeros((8, 8), np.uint8)] * 1000}, {"train": [0, 1] * 500})
    source.contents = contents
    with pytest.raises(Interrupted, match="stopped by SIGTERM while decoding, before training. Run it again"):
        decode_images(source, PACKING, stop=stop)
    assert len(given) < 100


def test_pixels_that_are_given_are_packed_as_they_are_or_resized(tmp_path):
    grey = [np.full((6, 6), i, np.uint8) for i in range(4)]
    source = array_source({"train": grey}, {"train": [0, 1, 0, 1]})
    packed = decode_images(source, DecodeSettings(6, 6, 1))
    assert packed.pixels.shape == (4, 6, 6, 1) and packed.pixels[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert len(set(packed.digests)) == 4 and packed.sizes == "all 6 x 6 pixels"
    larger = decode_images(source, DecodeSettings(9, 9, 3))
    assert larger.pixels.shape == (4, 9, 9, 3) and (larger.pixels == np.arange(4)[:, None, None, None]).all()
    assert larger.digests == packed.digests
    assert open_source("digits").count("train") == len(
        decode_images(open_source("digits"), DecodeSettings(8, 8, 1)).keys
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_fitted_pixels_equal_those_of_a_lossless_file(channels):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    wanted = decode(file.getvalue(), size=7, channels=channels, resize_mode="crop").pixels
    assert np.array_equal(decode_array(pixels, size=7, channels=channels, resize_mode="crop").pixels, wanted)


def test_the_pace_of_decoding_is_that_of_a_few_images_on_all_cores(monkeypatch):
    source = noise_source(40, count=5)
    clock = iter(range(100))  # a second between two looks
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(module, "available_cores", lambda: SimpleNamespace(count=4))
    assert decoding_seconds(source, choose_decode_settings(source, None, "auto", 10**6)) == 0.25
    monkeypatch.setattr(source, "peek", list)
    assert decoding_seconds(source, choose_decode_settings(source, None, "auto", 10**6)) == 0


def noise_source(side, mode="RGB", count=4):
    form, image = "PNG", Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((side, side), 40000, np.uint16))
    file = io.BytesIO()
    (image if mode in ("RGB", "I;16") else image.convert(mode)).save(file, form)
    return array_source({"train": [file.getvalue()] * count}, {"train": [0, 1] * (count // 2)})


@pytest.mark.parametrize(
    "side, given, size, packed",
    [
        (8, None, 8, 8),
        (96, None, 96, 96),
        (97, None, 128, 128),
        (150, None, 128, 147),
        (400, None, 128, 147),
        (400, 224, 224, 258),
        (8, 32, 32, 32),
        (33, 32, 32, 33),
        (130, None, 128, 130),
    ],
)
def test_small_images_keep_their_size_and_photographs_get_room_to_crop(side, given, size, packed):
    found = choose_decode_settings(noise_source(side), given, "squash", 10**6)
    assert (found.size, found.stored_size, found.channels) == (size, packed, 3)


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1), ("1", 1), ("I;16", 1), ("LA", 1), ("P", 3)])
def test_grey_images_need_one_channel(mode, channels):
    settings = choose_decode_settings(noise_source(8, mode), None, "pad", 10**6)
    assert replace(settings, value_range=()) == DecodeSettings(8, 8, channels, "pad", 10**6)
    assert bool(settings.value_range) == (mode == "I;16")


def test_one_image_in_color_makes_all_of_three_channels():
    source = array_source(
        {"train": [image_bytes(0), image_bytes(1, channels=1), np.zeros((8, 8), np.uint8)]}, {"train": [0] * 3}
    )
    assert choose_decode_settings(source, None, "squash", 10**6).channels == 3
    source.peek = lambda: [BadImage("no"), b"no image", np.zeros((8, 8), np.uint8)]
    assert choose_decode_settings(source, None, "squash", 10**6) == DecodeSettings(8, 8, 1, "squash", 10**6)
    source.peek = list
    assert choose_decode_settings(source, None, "squash", 10**6) == DecodeSettings(128, 128, 3, "squash", 10**6)


def test_the_fingerprint_changes_with_whatever_matters_and_nothing_else():
    def variants():
        yield decoded_noise([0, 1, 0, 1])
        other = decoded_noise([0, 1, 0, 1])
        other.keys[1] = "\udcff.png"
        yield other
        other = decoded_noise([0, 1, 0, 1])
        other.keys[1] = "\udcfe.png"
        yield other
        yield decoded_noise([0, 1, 1, 1])
        yield decoded_noise([0, 1, 0, 1], names=("class0", "klass1"))
        yield decoded_noise([0, 1, 0, 1], digests=["x", "1", "2", "3"])
        yield decoded_noise([0, 1, 0, 1], splits={"train": np.arange(3), "val": np.arange(3, 4)})
        yield decoded_noise([0, 1, 0, 1], room=1)
        other = decoded_noise([0, 1, 0, 1])
        other.settings = replace(other.settings, resize_mode="pad")
        yield other

    assert len({fingerprint(v) for v in variants()}) == 9
    same = decoded_noise([0, 1, 0, 1], seed=5)
    same.settings = replace(same.settings, max_pixels=1000)
    same.name, same.notes["x"], same.mirrored = "elsewhere", 3, False
    assert fingerprint(same) == fingerprint(decoded_noise([0, 1, 0, 1]))


def test_a_copy_of_the_folder_elsewhere_has_the_same_fingerprint(tmp_path):
    marks = set()
    for name in ("here", "there"):
        packed = decode_images(open_source(str(class_folders(tmp_path / name, count=5))), PACKING)
        hold_out(packed, 0.2, 0)
        marks.add(fingerprint(packed))
    assert len(marks) == 1


def test_a_source_is_decoded_once_where_that_is_shared(tmp_path, monkeypatch):
    source = open_source(str(class_folders(tmp_path / "set", count=5)))
    passes = []

    def counted(*args, **options):
        passes.append(args[1].stored_size)
        return decode_source(*args, **options)

    monkeypatch.setattr(module, "decode_source", counted)
    with share_decoded():
        first = decode_images(source, PACKING)
        hold_out(first, 0.2, 0)
        first.warnings.append("odd")
        second = decode_images(open_source(str(tmp_path / "set")), PACKING)
        assert list(second.splits) == ["train"] and not second.warnings and second.pixels is first.pixels
        assert pixels_fingerprint(first) == pixels_fingerprint(second) and fingerprint(first) != fingerprint(second)
        assert passes == [8]
        decode_images(source, replace(PACKING, stored_size=9))
        assert len(passes) == 2
    decode_images(source, PACKING)
    assert len(passes) == 3
