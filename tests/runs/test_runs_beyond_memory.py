"""Runs whose pixels are on the disk or decoded for each batch: the same bits, also when they are resumed."""

import pytest
import torch
from small_runs import StopAt, Words, best, image_folder, quick, table

from skipway.commands.evaluate import evaluate
from skipway.data.images import decode_source
from skipway.data.images.stored_pixels import StoredPixels
from skipway.errors import Interrupted
from skipway.utils.cache_folder import cached_files

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"augment": "light", "mixup": 0.2, "epochs": 2}


def assert_same_run(run, other):
    weights, others = best(run.path), best(other.path)
    assert weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
    for name in ("splits.csv", "skipped.csv", "predictions.csv", "per_class.csv"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name


@pytest.mark.parametrize("cache_size, words", [(None, ""), (0.0, "images: decoded for each batch, because 0.0 GB exc")])
def test_a_run_beyond_memory_equals_one_in_memory_and_resumes_exactly(tmp_path, monkeypatch, cache_size, words):
    monkeypatch.setenv("SKIPWAY_CACHE", str(tmp_path / "cache"))
    data = image_folder(tmp_path / "kinds", side=12)
    (data / "bee" / "03.png").write_bytes(b"broken")
    options = {**OPTIONS, "max_unreadable": 0.1}
    plain = quick(data, tmp_path / "runs", name="plain", **options)
    monkeypatch.setattr(decode_source, "RAM_LIMIT", 0)
    console = Words()
    stored = quick(data, tmp_path / "runs", name="stored", console=console, cache_size=cache_size, **options)
    assert words in console and bool(cached_files()) == (cache_size is None)
    assert_same_run(stored, plain)
    with pytest.raises(Interrupted):
        quick(data, tmp_path / "runs", name="half", stop=StopAt(60 + 6), cache_size=cache_size, **options)
    other_size = 0.0 if cache_size is None else None
    resumed = quick(data, tmp_path / "runs", resume=tmp_path / "runs" / "half", cache_size=other_size)
    assert_same_run(resumed, plain)
    assert evaluate(plain.path, data, cache_size=cache_size).accuracy == evaluate(stored.path, data).accuracy
    assert len(table(plain.path / "skipped.csv")) == 1


def test_analyses_read_few_pixels(tmp_path, monkeypatch):
    from skipway.commands.probe import probe_run

    run = quick(image_folder(tmp_path / "kinds"), tmp_path / "runs", epochs=1)
    taken = []
    take = StoredPixels._take
    monkeypatch.setattr(StoredPixels, "_take", lambda pixels, ids: taken.append(len(ids)) or take(pixels, ids))
    probe_run(run.path, only=("lesion",), samples=4)
    assert taken == [4]
