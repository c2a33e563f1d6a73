import pytest
import yaml
from small_runs import QUICK, Words, image_folder, quick

from skipway.data.sample_order import batch_bounds
from skipway.report import html
from skipway.runs.small_sets import (
    FEW_STEPS,
    MIN_STEPS,
    epochs_for_steps,
    few_steps_line,
    held_out_count,
    small_batch_size,
)
from skipway.runs.train_run import train


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


@pytest.mark.parametrize("count", [2, 8, 9, 16, 60, 199, 1000, 5000])
@pytest.mark.parametrize("batch_size, accumulate", [(8, 1), (32, 1), (8, 3)])
def test_the_epochs_make_the_steps(count, batch_size, accumulate):
    epochs = epochs_for_steps(1, count, batch_size, accumulate)
    steps = -(-len(batch_bounds(count, batch_size)) // accumulate)
    assert (epochs - 1) * steps < MIN_STEPS <= epochs * steps
    assert epochs_for_steps(10_000, count, batch_size, accumulate) == 10_000


def test_batches_of_small_sets_give_several_steps_per_epoch():
    for count in range(8, 200):
        size = small_batch_size(count)
        assert 8 <= size <= 32 and (size == 8 or len(batch_bounds(count, size)) >= 6)


def test_held_out_images_are_not_trained_on():
    assert held_out_count(100, 0.2, has_validation=False) == 80 and held_out_count(100, 0.2, has_validation=True) == 100


def test_few_steps_are_warned_of():
    assert few_steps_line(FEW_STEPS, 8, 8) == "" and few_steps_line(1, 10_000, 32) == ""
    assert "warning: only 1 optimizer step in the whole run" in few_steps_line(1, 16, 32)
    assert f"warning: only {FEW_STEPS - 1} optimizer steps in the whole run" in few_steps_line(FEW_STEPS - 1, 16, 32)


def test_sixteen_training_images_are_trained_for_the_least_number_of_steps(tmp_path, bare, monkeypatch):
    monkeypatch.setattr("skipway.runs.small_sets.MIN_STEPS", FEW_STEPS + 2)  # fewer, for a quick test
    data = image_folder(tmp_path / "d", 10, kinds=("ant", "bee"))
    words = Words()
    options = {key: QUICK[key] for key in ("model", "threads", "precision")}
    run = train(data, output=tmp_path / "runs", console=words, **options)
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert run.metrics["data"]["counts"] == {"train": 16, "val": 4} and run.metrics["resolved"]["batch_size"] == 8
    assert len(run.history) == config["epochs"] == FEW_STEPS // 2 + 1 and "optimizer step" not in words
    assert run.metrics["best_epoch"] >= 3


def test_epochs_that_are_given_are_done_with_a_warning(tmp_path, bare):
    words = Words()
    run = quick(image_folder(tmp_path / "d", 10), tmp_path / "runs", words, epochs=2)
    assert (
        len(run.history) == 2
        and "warning: only 4 optimizer steps in the whole run, expected at least 50. Increase --epochs" in words
    )
