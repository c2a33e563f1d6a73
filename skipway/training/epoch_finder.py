"""Number of epochs for a table: train on a part of the training rows, and find where the rest is predicted best.

The network of this test is thrown away. A run with the best number of epochs, whose learning rate falls to zero by
then, trains on all rows. Its validation rows take no part.
Source: early stopping, Prechelt 1998, "Early Stopping - But When?".
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from skipway.distributed import collectives
from skipway.training.lr_finder import train_step
from skipway.training.metrics import Batches, score
from skipway.training.trainer import Trainer

__all__ = ["ANNEALED", "FoundEpochs", "find_epochs"]

_PEAK_SHARE = 0.25  # constant rate of the test, as a share of the peak rate of the run
_FIRST = 8  # epochs that are all evaluated
_EVALUATIONS = 24  # at most after these, because each takes about a third of the time of an epoch
_PATIENCE = 0.5  # share of the best number of epochs without a better one, after which the test ends
_LEAST_PATIENCE = 4  # evaluations
_STILL_FALLS = 0.8  # share of the test after which the lowest loss means that more epochs are better
# A test ends after a share of its epochs if the loss falls clearly, because the run takes all epochs then. The share is
# smaller for many held-out rows, whose loss is less noisy.
_CLEAR_SHARES = {500: 0.3, 150: 0.5}  # fewest held-out rows: share
_CLEAR_FALL = 0.05  # of the loss, within a third of the epochs so far
_LEAST_FALL = 0.02  # of the loss at the end of the test, from which more epochs are better
_FEWEST_LOSSES = 6  # that show a clear fall
_FEW_EPOCHS = 7  # of a whole test, of tens of thousands of rows: fewer epochs are better only if the loss rises clearly
_CLEAR_RISE = 0.05  # of every loss in the last third of the test above the lowest before
ANNEALED = 0.8  # epochs with a falling rate that reach the loss of 1 epoch at a constant rate


@dataclass(frozen=True)
class FoundEpochs:
    """Result of the test.

    Attributes:
        best: number of epochs of the run: 0.8 of those with the lowest loss on the held-out rows, because the learning
            rate of the run falls; or the most if the loss still fell, or did not clearly rise in few epochs.
        tried: number of epochs of the test.
        losses: {epochs: loss on the held-out rows}.
    """

    best: int
    tried: int
    losses: dict[int, float]


def find_epochs(
    trainer: Trainer,
    train: Batches,
    held_out: Batches,
    most: int,
    *,
    seconds: float = math.inf,
    poll: Callable[[], None] = lambda: None,
) -> FoundEpochs:
    """Train for up to half of `most` epochs at a constant rate, and return the best number of them.

    If the loss still falls at the end of the test, or clearly before, the best number is `most`, or what takes about as
    long as the test if the time ended it.

    Args:
        trainer: trainer of a network that nothing else uses.
        train: batches of the rows to train on.
        held_out: batches of the other rows.
        most: most epochs.
        seconds: time after which the test ends.
        poll: called before each batch, to raise an error if a stop was requested.

    Returns:
        The best number of epochs; a test that ends with a loss that is not finite has the best before that.
    """
    losses: dict[int, float] = {}
    begin = time.monotonic()
    last = -(-most // 2)
    clear_share = next((share for rows, share in _CLEAR_SHARES.items() if held_out.bounds[-1][1] >= rows), math.inf)
    every, best, step = -(-last // _EVALUATIONS), 1, 0
    for epoch in range(last):
        trainer.to_train()
        for x, y, ids in train.epoch(epoch):
            poll()
            weights = train.weights(ids, epoch)
            rate = trainer.settings.lr * _PEAK_SHARE * min(1.0, (step + 1) / (2 * train.steps))
            parts = (x.to(trainer.device), y.to(trainer.device))
            train_step(trainer, *parts, step, rate, weights if weights is None else weights.to(trainer.device))
            step += 1
        if epoch >= _FIRST and (epoch + 1) % every:
            continue
        scores = score(trainer.network, held_out, trainer.task, autocast=trainer.autocast, device=trainer.device)
        if not math.isfinite(scores.loss):
            break
        losses[epoch + 1] = float(scores.loss)
        best = _lowest(losses)
        is_over = collectives.all_reduce_sum(time.monotonic() - begin)[0] / collectives.world_size() > seconds
        if is_over:
            most = min(most, 2 * (epoch + 1))
        if epoch + 1 >= clear_share * last and _falls_clearly(losses):
            return FoundEpochs(most, epoch + 1, losses)
        if is_over or epoch + 1 - best >= max(_LEAST_PATIENCE * every, _PATIENCE * best):
            break
    tried = max(losses, default=1)
    if losses and tried == last <= _FEW_EPOCHS and not _rises_clearly(losses):
        return FoundEpochs(most, tried, losses)
    if best > _STILL_FALLS * most / 2 and _falls(losses, _LEAST_FALL):
        return FoundEpochs(most, tried, losses)
    return FoundEpochs(max(1, round(ANNEALED * best)), tried, losses)


def _parts(losses: dict[int, float]) -> tuple[list[float], list[float]]:
    """Return the losses in the last sixth of the epochs so far, and those in the fourth sixth."""
    last = max(losses, default=0)
    recent = [loss for epoch, loss in losses.items() if epoch > 5 / 6 * last]
    return recent, [loss for epoch, loss in losses.items() if last / 2 < epoch <= 2 / 3 * last]


def _falls(losses: dict[int, float], least: float) -> bool:
    """Return True if the mean loss fell by the share `least` within a third of the epochs, or if there are few."""
    recent, earlier = _parts(losses)
    if len(losses) < _FEWEST_LOSSES or not earlier:
        return True
    return sum(recent) / len(recent) < (1 - least) * sum(earlier) / len(earlier)


def _falls_clearly(losses: dict[int, float]) -> bool:
    """Return True if the loss falls by more than its noise: every recent loss is below every earlier one."""
    recent, earlier = _parts(losses)
    has_all = len(losses) >= _FEWEST_LOSSES and bool(earlier)
    return has_all and max(recent) < min(earlier) and _falls(losses, _CLEAR_FALL)


def _rises_clearly(losses: dict[int, float]) -> bool:
    """Return True if every loss in the last third of the epochs is clearly above the lowest one before."""
    begin = 2 / 3 * max(losses)
    earlier = [loss for epoch, loss in losses.items() if epoch <= begin]
    recent = [loss for epoch, loss in losses.items() if epoch > begin]
    return bool(earlier) and min(recent) > (1 + _CLEAR_RISE) * min(earlier)


def _lowest(losses: dict[int, float]) -> int:
    """Return the key of the lowest loss, averaged with its neighbors because few held-out rows are noisy."""
    keys, values = list(losses), list(losses.values())
    smooth = [sum(part) / len(part) for part in (values[max(0, i - 1) : i + 2] for i in range(len(values)))]
    return keys[smooth.index(min(smooth))]
