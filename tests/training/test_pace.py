import time

import pytest
import torch
from tiny_training import Feed, network, settings

from skipway.training.pace import Pace, epochs_within, measure_pace
from skipway.training.trainer import Trainer


def evenly(epochs):
    return [1.0] * epochs


@pytest.mark.parametrize("seconds, wanted", [(0.0, 1), (7.0, 1), (10.6, 1), (12.7, 2), (31.7, 5), (1e9, 60)])
def test_as_many_epochs_as_fit_and_one_at_least(seconds, wanted):
    assert epochs_within(seconds, Pace(first=5.0, full=5.0, validation=1.0), steps=100, growth=evenly) == wanted


def test_small_sets_have_more_epochs():
    pace = Pace(first=0.01, full=0.01, validation=0.01)
    assert epochs_within(1e9, pace, steps=5, growth=evenly) == 1000


def test_epochs_of_smaller_images_are_shorter():
    pace = Pace(first=1.0, full=4.0, validation=0.5)
    assert pace.seconds([0.0, 0.5, 1.0]) == pytest.approx(1.0 + 2.5 + 4.0 + 1.5)

    def growing(epochs):
        return [epoch / max(1, epochs - 1) for epoch in range(epochs)]

    # Epochs of the full size take 4.5 s and there are 6 of them; growing ones take 3 s on average.
    assert epochs_within(30.0, pace, steps=100, growth=evenly) == 6
    assert epochs_within(30.0, pace, steps=100, growth=growing) == 9


def test_measuring_leaves_everything_as_it_was():
    trainer = Trainer(network(drop_path=0.3), settings(optimizer="muon", ema=0.9, freeze_epochs=1))
    before = {k: v.clone() for k, v in trainer.tensors().items()}
    generator, state = torch.get_rng_state(), vars(trainer.state).copy()
    pace = measure_pace(trainer, Feed(), Feed(10, 5))
    assert min(pace.first, pace.full, pace.validation) > 0
    after = trainer.tensors()
    assert set(before) == set(after) and all(torch.equal(v, after[k]) for k, v in before.items())
    assert torch.equal(generator, torch.get_rng_state()) and vars(trainer.state) == state


class Slow(Feed):
    """Batches that take a time of their own: longer in late epochs, as larger images do."""

    def epoch(self, epoch=0, start=0):
        for batch in super().epoch(epoch % 7, start):
            time.sleep(0.02 if epoch < 5 else 0.2)
            yield batch


def test_the_pace_is_that_of_small_and_of_full_images():
    feed = Slow()
    pace = measure_pace(Trainer(network(), settings()), feed, Feed(10, 5))
    assert pace.first >= 0.02 * feed.steps and pace.full >= 0.2 * feed.steps
