"""The cache of decoded images: the same bits with and without it, in each place, after damage, kills and full disks."""

import io
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from image_folders import array_source, class_folders, fill, image_bytes, parquet, split_folders
from PIL import Image
from small_runs import Words

from skipway.data.image_spec import Spec
from skipway.data.images import content_stamps, decode_pass, image_cache
from skipway.data.images.decode_source import Storage
from skipway.data.images.decoded_cache import decode_images, fingerprint
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.images.loader import Augmentation, ImageBatches, mean_and_std
from skipway.data.images.stored_pixels import StoredPixels
from skipway.data.sources.choose_source import open_source
from skipway.errors import InputError, Interrupted, StorageError
from skipway.utils.cache_folder import cached_files, clear_cache, trim_cache
from skipway.utils.stop_signals import StopFlag

SETTINGS = DecodeSettings(8, 9, 3, resize_mode="crop")
SPEC = Spec(channels=3, size=8, presize=9, mean=(0.5,) * 3, std=(0.25,) * 3, class_names=("a", "b"))
PLACES = {
    "memory": Storage(),
    "disk": Storage(ram_limit=0),
    "each batch": Storage(ram_limit=0, cache_size=2e-7),
    "no cache": Storage(cache_size=0),
    "each batch, no cache": Storage(ram_limit=0, cache_size=0),
    "few": Storage(keep_pixels=False),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of this test, which also stores sets that are decoded at once and files that are new."""
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "_WORTH_SECONDS", 0)
    monkeypatch.setattr(content_stamps, "_RACY_NS", -(10**12))
    return tmp_path / "cache"


@pytest.fixture
def mixed(tmp_path):
    """Three classes in three splits, with bad files, a copy under another extension, and conversions."""
    root = split_folders(tmp_path / "set", count=4, splits=("train", "val", "test"), side=12)
    for name in ("train/cow/1.png", "val/cat/2.png", "test/dog/0.png"):
        (root / name).write_bytes(b"<html>not found</html>")
    (root / "train/cow/copy.jpg").write_bytes((root / "train/cow/0.png").read_bytes())
    fill(root / "val/dog", 1, side=20, channels=1)
    return root


def decoded(root, storage=PLACES["memory"], settings=SETTINGS, console=None):
    return decode_images(open_source(str(root)), settings, 1, console, storage=storage)


def assert_same(images, other):
    assert np.array_equal(np.asarray(images.pixels), np.asarray(other.pixels))
    for name in ("targets", "sums"):
        assert np.array_equal(getattr(images, name), getattr(other, name))
    for name in ("keys", "digests", "skipped", "notes", "sizes", "class_names", "settings", "warnings"):
        assert getattr(images, name) == getattr(other, name), name
    assert list(images.notes.items()) == list(other.notes.items())
    assert {split: rows.tolist() for split, rows in images.splits.items()} == {
        split: rows.tolist() for split, rows in other.splits.items()
    }
    assert fingerprint(images) == fingerprint(other)
    assert mean_and_std(images, images.splits["train"]) == mean_and_std(other, other.splits["train"])


def damage(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    with open(path, "r+b") as file:  # in place: the file stays the one that is open
        file.write(data)


@pytest.mark.parametrize("place", PLACES)
def test_pixels_and_facts_are_the_same_wherever_they_are_and_in_each_run(mixed, place):
    plain = decoded(mixed, PLACES["no cache"])
    for _ in range(2):
        images = decoded(mixed, PLACES[place])
        assert_same(images, plain)
        assert isinstance(images.pixels, np.ndarray) == (place in ("memory", "no cache"))
    for other in PLACES.values():
        assert_same(decoded(mixed, other), plain)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_the_second_run_neither_reads_nor_decodes(mixed, place, monkeypatch):
    plain = decoded(mixed, PLACES[place])
    decodings = []
    decode = decode_pass.decode_content
    monkeypatch.setattr(decode_pass, "decode_content", lambda *args: decodings.append(args[1]) or decode(*args))
    bad = {"train/cow/1.png", "val/cat/2.png", "test/dog/0.png"}
    assert_same(decoded(mixed, PLACES[place]), plain)
    assert set(decodings) == bad, "only what cannot be decoded is tried again"
    (mixed / "train/cat/0.png").write_bytes(image_bytes(77, 12))
    decodings.clear()
    changed = decoded(mixed, PLACES[place])
    assert set(decodings) == {"train/cat/0.png", *bad} and fingerprint(changed) != fingerprint(plain)
    assert_same(changed, decoded(mixed, PLACES["no cache"]))


def test_contents_are_found_under_other_names_and_by_other_commands(mixed, tmp_path, monkeypatch):
    decoded(mixed)
    os.rename(mixed, tmp_path / "moved")
    monkeypatch.setattr(decode_pass, "decode_content", lambda raw, name, settings: InputError(f"decoded {name}"))
    moved = decoded(tmp_path / "moved", replace(PLACES["disk"]))
    assert len(moved.skipped) == 3
    with pytest.raises(InputError, match="cannot read 37 of 37 images"):
        decode_images(open_source(str(tmp_path / "moved")), replace(SETTINGS, resize_mode="pad"), 0.5)


def test_another_preparation_or_decoder_shares_nothing(mixed, monkeypatch):
    decoded(mixed)
    wider = decoded(mixed, settings=replace(SETTINGS, stored_size=11))
    assert wider.pixels.shape[1] == 11
    monkeypatch.setattr(image_cache, "decoder_version", lambda: "other")
    assert_same(decoded(mixed), decoded(mixed, PLACES["no cache"]))
    assert len({file.path.parent for file in cached_files() if file.kind == "decoded"}) == 3


def test_a_lower_limit_of_pixels_counts_for_stored_images_too(tmp_path):
    class_folders(tmp_path / "set", ("a", "b"), 2, side=12)
    fill(tmp_path / "set" / "a", 1, side=30)
    decoded(tmp_path / "set")
    lower = replace(SETTINGS, max_pixels=500)
    images = decoded(tmp_path / "set", settings=lower)
    assert [skipped.reason for skipped in images.skipped] == [
        "too many pixels: expected at most 500 (--max-pixels), got 900"
    ]
    assert_same(images, decoded(tmp_path / "set", PLACES["no cache"], lower))


def test_a_file_that_was_just_changed_is_read_again(tmp_path, monkeypatch):
    class_folders(tmp_path / "set", ("a", "b"), 2)
    monkeypatch.setattr(content_stamps, "_RACY_NS", 2 * 10**9)
    decoded(tmp_path / "set")
    path = tmp_path / "set" / "a" / "0.png"
    before = os.stat(path)
    other = image_bytes(55)
    pixels = np.asarray(Image.open(io.BytesIO(other)).convert("RGB"))
    path.write_bytes(other.ljust(before.st_size, b"\0")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not [file for file in cached_files() if file.kind == "stamps"]
    if len(other) == before.st_size:
        assert np.array_equal(decoded(tmp_path / "set", settings=DecodeSettings(8, 8, 3)).pixels[0], pixels)
    assert_same(decoded(tmp_path / "set"), decoded(tmp_path / "set", PLACES["no cache"]))


@pytest.mark.parametrize("place", ["memory", "disk", "each batch"])
def test_damage_of_pixels_is_repaired_by_decoding_again(mixed, place):
    plain = decoded(mixed, PLACES["no cache"])
    decoded(mixed, PLACES["disk"])
    (file,) = [file.path for file in cached_files() if file.kind == "decoded"]
    data = bytearray(file.read_bytes())
    data[300] ^= 0xFF
    data[20 * 243 + 5] ^= 0xFF
    file.write_bytes(data)
    console = Words()
    images = decoded(mixed, PLACES[place], console=console)
    assert_same(images, plain)
    repaired = [line for line in console.lines if "damaged" in line]
    assert len(repaired) == (0 if place == "each batch" else 1) and "\n" not in "".join(repaired)
    console = Words()
    if place != "each batch":
        assert_same(decoded(mixed, PLACES[place], console=console), plain)
        assert not console.lines, "it was repaired in the file"


@pytest.mark.parametrize("kind", ["decoded", "stamps"])
@pytest.mark.parametrize("cut", ["end", "middle", "empty", "text"])
def test_a_damaged_file_of_the_cache_is_replaced(mixed, kind, cut):
    plain = decoded(mixed)
    (path,) = [file.path for file in cached_files() if file.kind == kind]
    data = path.read_bytes()
    last = data[:-1] + bytes([data[-1] ^ 0xFF])
    path.write_bytes({"end": last, "middle": data[: len(data) // 2], "empty": b"", "text": b"{}\n" * 99}[cut])
    console = Words()
    assert_same(decoded(mixed, console=console), plain)
    assert len(console.lines) == (kind == "decoded")
    console = Words()
    assert_same(decoded(mixed, console=console), plain)
    assert not console.lines and {file.kind for file in cached_files()} == {"decoded", "stamps"}


def test_a_folder_in_the_place_of_the_cache_is_no_obstacle(mixed, cache):
    plain = decoded(mixed, PLACES["no cache"])
    cache.write_bytes(b"a file")
    console = Words()
    assert_same(decoded(mixed, console=console), plain)
    assert len(console.lines) == 1 and "the images stay in memory" in console.lines[0]
    assert_same(decoded(mixed, PLACES["disk"], console=Words()), plain)


def test_a_full_disk_is_no_failure(mixed, tiny_disk, monkeypatch):
    settings = replace(SETTINGS, size=128, stored_size=128)
    plain = decoded(mixed, PLACES["no cache"], settings)
    monkeypatch.setenv("SKIPWAY_CACHE", str(tiny_disk))
    for place in ("memory", "disk"):
        console = Words()
        assert_same(decoded(mixed, PLACES[place], settings, console=console), plain)
        (line,) = console.lines
        assert "too little free space" in line and str(tiny_disk) in line
    monkeypatch.setattr(image_cache.ImageCache, "has_room", lambda self, needed: True)
    for place, end in (("memory", "the images stay in memory"), ("disk", "the images are decoded for each batch")):
        console = Words()
        assert_same(decoded(mixed, PLACES[place], settings, console=console), plain)
        (line,) = console.lines
        assert "No space left on device" in line and line.endswith(end)
    assert not [path for path in tiny_disk.rglob("*") if path.name.startswith(".tmp-")]


def test_what_can_be_read_once_needs_a_place(mixed, tiny_disk, monkeypatch):
    files = sorted((mixed / "train").rglob("*.png"))[:4]
    source = array_source({"train": [file.read_bytes() for file in files]}, {"train": [0, 1, 0, 1]})
    for storage in (PLACES["each batch"], PLACES["each batch, no cache"]):
        with pytest.raises(StorageError, match="cannot keep the decoded images of arrays: expected 972 bytes"):
            decode_images(source, SETTINGS, storage=storage)
    stored = decode_images(source, SETTINGS, storage=PLACES["disk"])
    assert np.array_equal(np.asarray(stored.pixels), decode_images(source, SETTINGS).pixels)
    (file,) = [file.path for file in cached_files() if file.kind == "decoded"]
    damage(file, 10)
    with pytest.raises(StorageError, match="cannot read train/0.png from the cache: expected an undamaged file"):
        stored.pixels[0]
    again = decode_images(source, SETTINGS, storage=PLACES["disk"])
    assert np.array_equal(np.asarray(again.pixels), decode_images(source, SETTINGS).pixels), "found in time"
    monkeypatch.setenv("SKIPWAY_CACHE", str(tiny_disk))
    monkeypatch.setattr(image_cache.ImageCache, "has_room", lambda self, needed: True)
    with pytest.raises(StorageError, match="raise --cache-size, or use a smaller --img-size"):
        decode_images(source, replace(SETTINGS, stored_size=1000), storage=PLACES["disk"])


@pytest.mark.skipif(os.name == "nt" or not hasattr(os, "geteuid") or not os.geteuid(), reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_read(mixed, cache):
    plain = decoded(mixed)
    for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    try:
        assert_same(decoded(mixed), plain)
    finally:
        for folder in (cache, *(path for path in cache.rglob("*") if path.is_dir())):
            folder.chmod(0o755)


def test_a_file_that_changes_during_a_run_is_an_error(tmp_path):
    class_folders(tmp_path / "set", ("a", "b"), 2)
    images = decoded(tmp_path / "set", PLACES["each batch"])
    (tmp_path / "set" / "a" / "0.png").write_bytes(image_bytes(99))
    with pytest.raises(InputError, match="cannot use a/0.png: expected the content that it had at the start, got anot"):
        images.pixels[0]
    (tmp_path / "set" / "a" / "0.png").unlink()
    with pytest.raises(InputError, match="cannot read a/0.png again: not readable: No such file.*Restore it"):
        images.pixels[0]


def test_no_cache_means_no_files(mixed, cache):
    decoded(mixed, PLACES["no cache"])
    decoded(mixed, PLACES["each batch, no cache"])
    assert not cache.exists()


def test_quick_sets_are_not_stored(mixed, monkeypatch):
    monkeypatch.setattr(image_cache, "_WORTH_SECONDS", 60)
    decoded(mixed)
    assert not cached_files()
    decoded(mixed, PLACES["disk"])
    assert cached_files()


@pytest.mark.parametrize("place", ["disk", "each batch"])
@pytest.mark.parametrize("parts", [None, "shift+flip", "zoom+flip"])
def test_batches_are_the_same_bits_in_the_same_order_from_any_start(tmp_path, place, parts):
    class_folders(tmp_path / "set", ("a", "b"), 9, side=12)
    plain, stored = decoded(tmp_path / "set"), decoded(tmp_path / "set", PLACES[place])
    assert isinstance(stored.pixels, StoredPixels)
    epochs = []
    for images in (plain, stored):
        augmentation = None if parts is None else Augmentation(parts, seed=3, mixup=0.2)
        rows = images.splits["train"]
        batches = ImageBatches(images, rows, 4, spec=SPEC, augmentation=augmentation)
        epochs.append(
            [list(batches.epoch(1)), list(batches.epoch(1, start=2)), batches.some(5), [batches.inputs(rows)]]
        )
    for first, second in zip(*epochs, strict=True):
        for batch, other in zip(first, second, strict=True):
            for value, same in zip(batch, other, strict=True):
                assert np.array_equal(np.asarray(value), np.asarray(same))
    full, rest = epochs[1][:2]
    assert all(np.array_equal(np.asarray(a[0]), np.asarray(b[0])) for a, b in zip(full[2:], rest, strict=True))


def test_an_epoch_that_is_left_early_leaves_no_threads(tmp_path):
    import threading

    images = decoded(class_folders(tmp_path / "set", ("a", "b"), 9), PLACES["disk"])
    batches = ImageBatches(images, images.splits["train"], 2, spec=SPEC)
    before = threading.active_count()
    for _ in batches.epoch():
        break
    assert threading.active_count() == before


def test_the_least_recently_used_files_go_first_and_never_one_in_use(tmp_path):
    for number in range(3):
        root = class_folders(tmp_path / f"set{number}", ("a", "b"), 4, seed=number)
        decoded(root)
    paths = [file.path for file in cached_files() if file.kind == "decoded"]
    for age, path in enumerate(paths):
        os.utime(path, (time.time() - 100 * age,) * 2)
    for file in cached_files():
        if file.kind == "stamps":
            os.utime(file.path, (time.time() + 100,) * 2)
    held = decoded(tmp_path / "set0", PLACES["disk"])
    in_use = [held.pixels.files[number].path for number in set(held.pixels.places[:, 0].tolist())]
    for path in in_use:
        os.utime(path, (1, 1))
    total = sum(file.size for file in cached_files())
    oldest = [file.path for file in cached_files() if file.path not in in_use][-1]
    trim_cache(total - 1)
    left = [file.path for file in cached_files() if file.kind == "decoded"]
    assert len(left) == 2 and set(in_use) <= set(left) and oldest not in left
    trim_cache(0)
    assert {file.path for file in cached_files()} == set(in_use)
    assert held.pixels[np.arange(8)].any()
    assert not clear_cache()
    held.pixels = None
    assert {file.path for file in clear_cache()} == set(in_use) and not cached_files()


WRITER = """
import sys
from pathlib import Path
from skipway.data.images import decode_pass, image_cache
from skipway.data.images.decoded_cache import *
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.choose_source import open_source
from skipway.utils.console import Console
import time
image_cache._WORTH_SECONDS = 0
decode = decode_pass.decode_content
count = 0
def slow(*args):
    global count
    count += 1
    time.sleep(float(sys.argv[2]))
    return decode(*args)
decode_pass.decode_content = slow
print("ready", flush=True)
sys.stdin.readline()
images = decode_images(open_source(sys.argv[1]), DecodeSettings(8, 9, 3, resize_mode="crop"), 1, Console())
print("decoded", count, fingerprint(images), flush=True)
"""


def writer(root, seconds):
    words = [sys.executable, "-c", WRITER, str(root), str(seconds)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_of_two_processes_one_decodes_and_the_other_waits(tmp_path):
    root = class_folders(tmp_path / "set", ("a", "b"), 15)
    both = [writer(root, 0.02) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0] for process in both]
    lines = [output.splitlines()[-1].split() for output in outputs]
    assert sorted(int(line[1]) for line in lines) == [0, 30] and lines[0][2] == lines[1][2]
    waited = outputs[[int(line[1]) for line in lines].index(0)]
    assert "waiting for another process that decodes the same images" in waited
    assert_same(decoded(root), decoded(root, PLACES["no cache"]))


def test_a_killed_writer_is_no_obstacle(tmp_path, cache):
    root = class_folders(tmp_path / "set", ("a", "b"), 15)
    process = writer(root, 0.05)
    process.stdin.write("\n")
    process.stdin.flush()
    end = time.monotonic() + 30
    while not list(cache.rglob(".tmp-*")) and time.monotonic() < end:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert list(cache.rglob(".tmp-*")) and list(cache.rglob(".lock-*"))
    assert_same(decoded(root), decoded(root, PLACES["no cache"]))
    assert not list(cache.rglob(".tmp-*")) and not list(cache.rglob(".lock-*"))


def test_a_stop_ends_the_wait_and_keeps_what_is_decoded(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "set", ("a", "b"), 300)  # more than is decoded ahead
    stop, names = StopFlag(), []
    monkeypatch.setattr(decode_pass, "_MAX_THREADS", 1)
    decode = decode_pass.decode_content

    def stopping(*args):
        names.append(args[1])
        if len(names) == 40:
            stop.request("SIGTERM")
        return decode(*args)

    monkeypatch.setattr(decode_pass, "decode_content", stopping)
    with pytest.raises(Interrupted, match="stopped by SIGTERM while decoding"):
        decode_images(open_source(str(root)), SETTINGS, stop=stop)
    first = len(names)
    assert first < 600
    assert_same(decoded(root), decoded(root, PLACES["no cache"]))
    assert len(names) < first + 2 * 600, "those before the stop were found in the cache"


def test_a_damaged_disk_during_a_run_is_repaired(mixed):
    images = decoded(mixed, PLACES["disk"], console=(console := Words()))
    wanted = np.asarray(images.pixels).copy()
    (file,) = [file.path for file in cached_files() if file.kind == "decoded"]
    damage(file, 0)
    assert np.array_equal(np.asarray(images.pixels), wanted) and len(console.lines) == 1
    assert "repaired damaged images in" in console.lines[0]
    assert np.array_equal(np.asarray(images.pixels), wanted) and len(console.lines) == 1
    assert np.array_equal(np.asarray(decoded(mixed, PLACES["disk"]).pixels), wanted)


def test_reads_are_in_the_threads_of_the_decoding(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "set", ("a", "b"), 100)
    source = open_source(str(root))
    monkeypatch.setattr(image_cache, "decoder_version", lambda: "slow disk")

    class Slow:
        def __init__(self, content):
            self.content = content

        def __call__(self):
            time.sleep(0.005)
            return self.content()

    contents = source.contents
    source.contents = lambda split: (Slow(content) for content in contents(split))
    begin = time.perf_counter()
    images = decode_images(source, SETTINGS)
    assert time.perf_counter() - begin < 0.8 * 200 * 0.005
    assert_same(images, decoded(Path(root), PLACES["no cache"]))


@pytest.mark.parametrize("place", ["disk", "each batch", "few"])
def test_parquet_rows_are_read_in_any_order(tmp_path, place):
    pytest.importorskip("pyarrow")
    for name, seed in (("train-00000-of-00002", 0), ("train-00001-of-00002", 1)):
        rows = [image_bytes(100 * seed + i) for i in range(11)]
        rows[3], labels = b"", [i % 2 for i in range(11)]
        labels[5] = None
        parquet(tmp_path / "set" / f"{name}.parquet", labels, ["a", "b"], rows=rows, row_group_size=3)
    plain, stored = decoded(tmp_path / "set", PLACES["no cache"]), decoded(tmp_path / "set", PLACES[place])
    assert_same(stored, plain)
    order = np.random.default_rng(0).permutation(len(plain.keys))
    assert len(order) == 18 and np.array_equal(stored.pixels[order], plain.pixels[order])
    contents = open_source(str(tmp_path / "set")).contents("train")
    assert [contents[i] for i in (0, 19)] == [contents[:1][0], list(contents)[19]] and len(contents) == 20
