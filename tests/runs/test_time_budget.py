import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_runs import Words, image_folder, same_runs

from skipway.data.images.loader import Augmentation
from skipway.runs.time_budget import image_size_for, quick_step_seconds, scratch_epochs, size_growth
from skipway.runs.train_run import train

TINY = {"model": "resnet20", "batch_size": 16, "threads": 1, "pretrained": "none", "augment": "none"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Two kinds of images of 120 px, larger than those that are trained on as they are."""
    root = tmp_path_factory.mktemp("photographs")
    for kind in range(2):
        (root / f"kind{kind}").mkdir()
        for i in range(12):
            noise = np.random.default_rng(100 * kind + i).integers(0, 99, (120, 120, 3))
            Image.fromarray((noise + 100 * kind).astype(np.uint8)).save(root / f"kind{kind}" / f"{i}.png")
    return root


@pytest.mark.parametrize("per_image", [1e-4, 2e-3])  # a GPU, two cores
def test_more_steps_for_each_image_make_larger_images(per_image):
    """The pace of the machine alone makes seconds of steps."""
    seconds = [epochs * 3000 * per_image for epochs in (0, 2, 3, 13, 15, 39, 41)]
    sizes = [image_size_for(3000, limit, per_image) for limit in seconds]
    assert sizes == ["32:48", "32:48", "32:64", "32:64", "48:96", "48:96", "64:128"]


def test_a_set_of_some_thousands_is_trained_at_larger_sizes_for_fewer_epochs():
    by_count = {count: (image_size_for(count, None, 1.0), scratch_epochs(count)) for count in (245, 2567, 10_000)}
    assert by_count == {245: ("32:64", 60), 2567: ("48:96", 14), 10_000: ("32:64", 6)}


def test_fewer_images_are_looked_at_more_often():
    for counts in ((0, 10, 999), (1000, 3000, 4000), (4001, 10_000, 1_000_000)):
        epochs = [scratch_epochs(count) for count in counts]
        assert epochs == sorted(epochs, reverse=True)
    assert (scratch_epochs(0), scratch_epochs(1_000_000)) == (60, 3)


def test_the_pace_of_a_machine_changes_nothing_that_is_drawn():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert quick_step_seconds("cpu", "fp32") > 0
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("epochs", [1, 2, 3, 10])
def test_the_growth_is_that_of_the_images(epochs):
    augmentation = Augmentation(first_size=32, epochs=epochs)
    growth = size_growth(augmentation, 64, epochs)
    areas = [augmentation.size_at(epoch, 64) ** 2 for epoch in range(epochs)]
    assert [32**2 + share * (64**2 - 32**2) for share in growth] == pytest.approx(areas)
    assert size_growth(None, 64, epochs) == size_growth(Augmentation(), 64, epochs) == [1.0] * epochs


def test_photographs_from_scratch_follow_the_clock_and_not_their_size(photographs, tmp_path):
    run = train(photographs, output=tmp_path, pretrained="none", batch_size=16, threads=1, epochs=1)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["img_size"] == "32:64" and run.network().plan["name"] == "resnet9"
    assert run.network().spec.size == 64


def test_what_is_asked_for_is_done(photographs, tmp_path):
    run = train(photographs, model="resnet20", output=tmp_path, pretrained="none", batch_size=16, threads=1, epochs=1)
    assert run.network().spec.size == 128 and run.network().plan["name"] == "resnet20"


def test_a_time_limit_alone_sets_the_epochs_and_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.training.pace._MOST_EPOCHS", 4)  # in place of all that ten minutes leave room for
    monkeypatch.setattr("skipway.training.pace._MOST_STEPS", 1)
    words = Words()
    image_folder(tmp_path / "kinds", count=10)
    run = train(tmp_path / "kinds", output=tmp_path, name="timed", time_limit=600.0, console=words, **TINY)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert "4 epochs within the remaining " in words and config["time_limit"] == 600.0 and config["epochs"] == 4
    assert len(run.history) == 4 and run.metrics["status"] == "finished"
    again = train(tmp_path / "kinds", output=tmp_path, name="untimed", epochs=4, **TINY)
    assert same_runs(run.path, again.path)


def test_epochs_that_are_given_stay(tmp_path):
    image_folder(tmp_path / "kinds", count=10)
    run = train(tmp_path / "kinds", output=tmp_path, epochs=1, time_limit=600.0, **TINY)
    assert len(run.history) == 1 and run.metrics["status"] == "finished"


def test_a_run_that_was_killed_before_the_time_set_its_epochs_still_lets_it(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.training.pace._MOST_EPOCHS", 2)
    monkeypatch.setattr("skipway.training.pace._MOST_STEPS", 1)
    image_folder(tmp_path / "kinds", count=10)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("skipway.runs.prepared_run.scheduled_epochs", killed)
        train(tmp_path / "kinds", output=tmp_path, name="killed", time_limit=600.0, **TINY)
    assert "epochs" not in yaml.safe_load((tmp_path / "killed" / "config.yaml").read_text())
    run = train(resume=tmp_path / "killed")
    assert len(run.history) == 2
    assert yaml.safe_load((tmp_path / "killed" / "config.yaml").read_text())["epochs"] == 2
