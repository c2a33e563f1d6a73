"""The command that lists and clears the cache."""

import json

import pytest
from image_folders import class_folders

from skipway.commands.cache import cache
from skipway.data.images import content_stamps, image_cache
from skipway.data.images.decode_source import Storage
from skipway.data.images.decoded_cache import decode_images
from skipway.data.images.decoded_images import DecodeSettings
from skipway.data.sources.choose_source import open_source
from skipway.errors import InputError
from skipway.utils.cache_folder import cache_folder


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A cache of two datasets, one of which is in use."""
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(image_cache, "_WORTH_SECONDS", 0)
    monkeypatch.setattr(content_stamps, "_RACY_NS", -(10**12))
    for number, name in enumerate(("birds", "bees")):
        root = class_folders(tmp_path / name, ("a", "b"), 3 + number, seed=number)
        images = decode_images(open_source(str(root)), DecodeSettings(8, 9, 3), storage=Storage(ram_limit=0))
    (tmp_path / "cache" / "features").mkdir()
    (tmp_path / "cache" / "features" / "x.features").write_bytes(b"x" * 100)
    (tmp_path / "cache" / "decoded" / "notes.txt").write_text("mine")
    return images


def test_the_cache_is_listed_by_dataset(filled):
    report = cache()
    facts = json.loads(json.dumps(report.as_dict()))
    entries = {(entry["kind"], entry["name"]): entry for entry in facts["entries"]}
    assert set(entries) == {("decoded", "birds"), ("decoded", "bees"), ("features", ""), ("stamps", "")}
    assert entries["decoded", "bees"]["images"] == 8 and entries["decoded", "birds"]["size"] == 8
    assert facts["bytes"] == sum(entry["bytes"] for entry in facts["entries"]) and facts["limit_bytes"] == 20e9
    text = str(report)
    assert "decoded images of birds, 6 images at 8 px" in text and "features of frozen layers" in text


def test_clearing_keeps_what_is_in_use_and_files_of_others(filled):
    report = cache(clear=True)
    assert "removed 4 files" in str(report) and "kept 1 file that other processes use" in str(report)
    assert [entry["name"] for entry in report.as_dict()["entries"]] == ["bees"]
    assert report.as_dict()["removed_bytes"] > 100 and filled.pixels[0].any()
    assert (cache_folder() / "decoded" / "notes.txt").read_text() == "mine"
    filled.pixels = None
    cache(clear=True)
    assert cache().as_dict()["entries"] == []


def test_damaged_files_are_listed_too(filled, tmp_path):
    for path in (tmp_path / "cache" / "decoded").rglob("*.decoded"):
        path.write_bytes(b"odd")
    (entry,) = [entry for entry in cache().as_dict()["entries"] if entry["kind"] == "decoded"]
    assert entry["files"] == 2 and entry["images"] == 0


def test_the_place_and_limit_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("SKIPWAY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("features") == tmp_path / ".cache" / "skipway" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "skipway"
    monkeypatch.setenv("SKIPWAY_CACHE_SIZE", "0.5")
    assert cache().as_dict()["limit_bytes"] == 500_000_000
    for value in ("-1", "many", "inf"):
        monkeypatch.setenv("SKIPWAY_CACHE_SIZE", value)
        with pytest.raises(InputError, match="cannot use SKIPWAY_CACHE_SIZE: expected a number of GB of at least 0"):
            cache()
