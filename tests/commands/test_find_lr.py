import pytest
import torch
from image_folders import class_folders

import skipway as sw
from skipway.errors import InputError, Interrupted
from skipway.utils.stop_signals import StopFlag

SMALL = {"model": "resnet20", "batch_size": 8, "threads": 1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    class_folders(root, count=12)
    return root


@pytest.mark.rendered
def test_rates_are_found_drawn_and_the_same_again_and_nothing_else_is_left(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads, generator = torch.get_num_threads(), torch.get_rng_state()
    found, again = (sw.find_lr(photos, output=tmp_path / "rates.png", **SMALL) for _ in range(2))
    assert found == again and min(found.steepest, found.valley) <= found.suggestion <= max(found.steepest, found.valley)
    assert [p.name for p in tmp_path.iterdir()] == ["rates.png"] and (tmp_path / "rates.png").stat().st_size > 5000
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), generator)


def test_lr_auto_trains_with_what_the_test_suggests_and_keeps_it_on_resuming(photos, tmp_path):
    found = sw.find_lr(photos, **SMALL)
    run = sw.train(photos, lr="auto", epochs=1, output=tmp_path, **SMALL)
    assert run.metrics["resolved"]["lr"] == pytest.approx(found.suggestion)
    assert (run.path / "plots" / "find_lr.png").is_file() and (run.path / "find_lr.json").is_file()
    more = sw.train(resume=run.path, epochs=2)
    assert more.metrics["resolved"]["lr"] == pytest.approx(found.suggestion)


def test_a_stop_and_a_wrong_option_are_one_line(photos):
    with pytest.raises(InputError, match="unknown option 'batchsize'"):
        sw.find_lr(photos, batchsize=3)
    with pytest.raises(InputError, match=r"cannot use folds and patience with find_lr: .* Leave it out\."):
        sw.find_lr(photos, patience=3, folds=2)
    stop = StopFlag()
    with pytest.raises(Interrupted, match="stopped by SIGTERM before the LR range test ended. Run it again."):
        sw.find_lr(photos, stop=Late(stop), **SMALL)


class Late(StopFlag):
    """Asks for a stop once the images are decoded."""

    def __init__(self, _):
        super().__init__()
        self.polls = 0

    @property
    def requested(self):
        self.polls += 1
        self.name = "SIGTERM"
        return self.polls > 40
