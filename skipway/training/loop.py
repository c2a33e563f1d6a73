"""The training loop on one screen, followed by its helpers.

Resuming is exact because no random generator state is carried over. Sample order and augmentation are functions of
(seed, epoch, image), and dropout is a function of (seed, step).
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from skipway.distributed import collectives
from skipway.distributed.fsdp import full_state_dict
from skipway.errors import Interrupted, NotFiniteError, printable
from skipway.training.background_saver import BackgroundSaver
from skipway.training.epoch_table import format_header, format_row, format_speed
from skipway.training.metrics import Batches, Scores, score
from skipway.training.oom_agreement import OomAgreement
from skipway.training.step_log import StepLog
from skipway.training.trainer import Settings, State, Trainer
from skipway.utils.atomic_files import make_folder, storing
from skipway.utils.best_epoch import is_best_so_far
from skipway.utils.console import Console
from skipway.utils.devices import seed_random
from skipway.utils.primary_metric import PRIMARY_METRICS, PrimaryMetric
from skipway.utils.stop_signals import StopFlag

__all__ = ["fit", "record_epoch"]

_LATE = 0.02  # share of the run by which steps may lag behind the time limit before the schedule follows the clock
_SUMS = ("loss", "metric_sum", "seen")  # fields of a State that each process sums over its samples


def fit(
    trainer: Trainer,
    train: Batches,
    validation: Batches | None,
    folder: Path | None,
    *,
    on_epoch: Callable[[State, dict[str, Tensor] | None], None],
    facts: dict[str, Any],
    console: Console,
    stop: StopFlag,
) -> State:
    """Train from the current state of `trainer` to epoch `trainer.until`.

    Args:
        trainer: model, optimizer, settings and state.
        train: training batches.
        validation: validation batches; None evaluates and prints no epoch, and keeps the last one.
        folder: folder of the checkpoints; None saves none.
        on_epoch: called after each epoch with the state, and the weights if the run keeps them, else None.
        facts: values that are saved in each checkpoint.
        console: prints the progress bar and the epoch table.
        stop: checked after each optimizer step and each validation batch.

    Returns:
        The state after the last epoch.

    Raises:
        NotFiniteError: the loss or a gradient is NaN or infinite. The weights are not updated with it.
        Interrupted: `stop` was set. The state was saved first.
        StorageError: a checkpoint could not be written.
    """
    log = StepLog(trainer)
    with _CheckpointWriter(trainer, folder, facts=facts, stop=stop, before_save=log.read) as writer:
        _run_epochs(trainer, train, validation, writer, log, on_epoch=on_epoch, console=console)
    return trainer.state


def _run_epochs(
    trainer: Trainer,
    train: Batches,
    validation: Batches | None,
    writer: "_CheckpointWriter",
    log: StepLog,
    *,
    on_epoch: Callable[[State, dict[str, Tensor] | None], None],
    console: Console,
) -> None:
    """Train to epoch `trainer.until`. See `fit`."""
    settings, state, device = trainer.settings, trainer.state, trainer.device
    memory = OomAgreement(trainer)
    writer.save()
    writer.saver.wait()  # a disk that cannot hold a checkpoint ends the run before its first step
    while state.epoch < trainer.until and state.status == "running":
        trainer.to_train()
        bar, asked = console.bar(f"epoch {state.epoch + 1}/{settings.epochs}", train.steps), time.monotonic()
        for x, y, ids in train.epoch(state.epoch, state.batch):
            state.data_seconds += time.monotonic() - asked
            seed_random(_step_seed(settings.seed, state.epoch * train.steps + state.batch), device)
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            weights = train.weights(ids, state.epoch)
            boundary = (state.batch + 1) % settings.grad_accum_steps == 0 or state.batch + 1 == train.steps
            for piece, share in _microbatches(len(y), train.bounds, state, settings.grad_accum_steps):
                is_synced = boundary and piece.stop == len(y)
                with trainer.synced(is_synced), memory.microbatch(is_synced=is_synced):
                    outputs = trainer.compute(x[piece], is_whole=_is_whole(train.bounds, state.batch))
                    part = None if weights is None else weights[piece].to(device, non_blocking=True)
                    loss = trainer.task.loss(outputs, y[piece], part) + trainer.penalty()
                    log.check(loss, "loss", ids)
                    trainer.backward(loss * share)
                    log.add(loss, outputs, y[piece], part)
            if boundary:
                memory.settle(writer.poll(memory.failed))
                log.check(trainer.clip_gradients(), "gradient", ids)
                position = _position(settings, state.epoch, state.batch, train.steps)
                trainer.set_rates(writer.position_in_time(position))
                trainer.step(log.skip)
                trainer.update_average()
                state.step += 1
            state.batch, state.seen = state.batch + 1, state.seen + len(y)
            is_read = log.end_batch(is_last=state.batch == train.steps)
            state.seconds += time.monotonic() - asked
            if is_read:
                bar.at(state.batch, lambda: format_speed(state, trainer.task))
            if boundary and writer.save_if_due():
                state.status = "stopped by the time limit"
                break
            asked = time.monotonic()
        log.read()
        trainer.takes_steps = False
        bar.done()
        collectives.broadcast_buffers(trainer.eval_model)
        scores = None if validation is None else _scores(trainer, validation, writer, console)
        rate = settings.lr * trainer.lr_schedule(_position(settings, state.epoch, state.batch - 1, train.steps))
        _end_epoch(trainer, scores, writer, lr=rate, on_epoch=on_epoch, console=console)


def _scores(trainer: Trainer, validation: Batches, writer: "_CheckpointWriter", console: Console) -> Scores:
    scores: Scores = score(
        trainer.eval_model,
        validation,
        trainer.task,
        autocast=trainer.autocast,
        device=trainer.device,
        poll=writer.save_if_asked,
        report=console.print,
    )
    return scores


def record_epoch(
    trainer: Trainer,
    scores: Scores,
    folder: Path | None,
    *,
    on_epoch: Callable[[State, dict[str, Tensor] | None], None],
    facts: dict[str, Any],
    console: Console,
    stop: StopFlag,
) -> None:
    """Record an epoch without gradient steps, with learning rate 0, and save a checkpoint.

    Args:
        trainer: its state holds the sums of the loss and the metric over the training samples, the number of samples
            and the seconds.
        scores: scores on the validation samples.
        folder, on_epoch, facts, console, stop: see `fit`.
    """
    with _CheckpointWriter(trainer, folder, facts=facts, stop=stop) as writer:
        writer.earlier += trainer.state.seconds
        _end_epoch(trainer, scores, writer, lr=0.0, on_epoch=on_epoch, console=console)


def _end_epoch(
    trainer: Trainer,
    scores: Scores | None,
    writer: "_CheckpointWriter",
    *,
    lr: float,
    on_epoch: Callable[[State, dict[str, Tensor] | None], None],
    console: Console,
) -> None:
    """Record an epoch, hand over the weights to keep, save a checkpoint and print a row if there are scores."""
    settings, state = trainer.settings, trainer.state
    is_kept = _close_epoch(state, scores, lr=lr, settings=settings, metric=PRIMARY_METRICS[trainer.task.primary_metric])
    weights = full_state_dict(trainer.eval_model.state_dict()) if is_kept else None
    writer.saver.wait()  # the best weights are never two epochs newer than the checkpoint
    if collectives.rank() == 0:
        on_epoch(state, weights)
    if state.epoch == settings.epochs and state.status == "running":
        state.status = "finished"
    writer.save()
    if scores is not None:
        console.print_under(format_header(trainer.task), format_row(state, settings, trainer.task))
    writer.save_if_asked()


class _CheckpointWriter:
    """Saves checkpoints at regular intervals and on signals. The context ends when the last one is written."""

    def __init__(
        self,
        trainer: Trainer,
        folder: Path | None,
        *,
        facts: dict[str, Any],
        stop: StopFlag,
        before_save: Callable[[], None] = lambda: None,
    ):
        self.trainer, self.folder, self.facts, self.stop = trainer, folder, facts, stop
        self.before_save = before_save  # completes the sums in the state, or raises an error
        self.saver = BackgroundSaver()
        if folder is not None and collectives.rank() == 0:
            with storing(folder, 0):
                make_folder(folder.parent)
        self.earlier = trainer.state.total_seconds
        self.begun = self.saved = time.monotonic()
        self.asked = self.due = self.over = False  # see `poll`
        self.time_share = 0.0  # elapsed share of the time limit, equal in all processes

    def __enter__(self) -> "_CheckpointWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.saver.join()
        if kind is None:
            self.saver.raise_failure()

    @property
    def total_seconds(self) -> float:
        """Seconds of training, including those before a resume."""
        return self.earlier + time.monotonic() - self.begun

    def position_in_time(self, position: float) -> float:
        """Return the position in the schedule by steps, or by elapsed time if the steps lag behind the time limit.

        A run that becomes slower still reaches the low learning rates at the end of the schedule.
        """
        return self.time_share if self.time_share > position + _LATE else position

    def save(self) -> None:
        """Save a checkpoint with the sums over all processes. Only rank 0 writes, in a thread."""
        self.before_save()
        state = self.trainer.state
        state.total_seconds = self.total_seconds
        sums = dict(zip(_SUMS, collectives.all_reduce_sum(*(getattr(state, name) for name in _SUMS)), strict=True))
        tensors = self.trainer.tensors() if self.folder is not None else {}
        if collectives.rank() == 0 and self.folder is not None:
            saved = {**self.facts, "state": {**asdict(state), **sums, "seen": int(sums["seen"])}}
            self.saver.save(self.folder, state.step, tensors, saved)
        self.saved = time.monotonic()

    def poll(self, failed: bool) -> int:
        """Exchange before each optimizer step what all processes must know, and return in how many the step failed."""
        settings, first = self.trainer.settings, collectives.rank() == 0
        due = first and time.monotonic() - self.saved > settings.save_every
        over = first and settings.time_limit is not None and self.total_seconds > settings.time_limit
        used = self.total_seconds / settings.time_limit if first and settings.time_limit else 0.0
        *flags, self.time_share, failures = collectives.all_reduce_sum(self.stop.requested, due, over, used, failed)
        self.asked, self.due, self.over = map(bool, flags)
        return int(failures)

    def save_if_due(self) -> bool:
        """Save a checkpoint if one is due, and return True in all processes if the time limit is exceeded."""
        self.saver.raise_failure()
        if self.asked:
            self._stop()
        if self.due:
            self.save()
        return self.over

    def save_if_asked(self) -> None:
        if collectives.all_reduce_sum(self.stop.requested)[0]:
            self._stop()

    def _stop(self) -> None:
        if self.trainer.state.status == "running":
            self.save()
            self.saver.wait()
            step = self.trainer.state.step
            if self.folder is None:
                raise Interrupted(
                    f"stopped by {self.stop.name} after step {step}: training was not saved. Run it again."
                )
            raise Interrupted(
                f"stopped by {self.stop.name or 'a signal to another process'} after step {step}: progress is saved. "
                f"Resume with --resume {printable(self.folder.parent.parent)}"  # RUN of RUN/weights/last
            )


def _close_epoch(state: State, scores: Scores | None, *, lr: float, settings: Settings, metric: PrimaryMetric) -> bool:
    """Append the row of the epoch, reset the sums, and return True if the run keeps the weights of this epoch."""
    if scores is not None and not math.isfinite(scores.loss):
        raise NotFiniteError(
            f"cannot continue after epoch {state.epoch + 1}: expected a finite validation loss, got {scores.loss}. "
            "Start a new run with a lower --lr or --clip-grad 1."
        )
    state.epoch += 1
    state.loss, state.metric_sum, state.seen = collectives.all_reduce_sum(state.loss, state.metric_sum, state.seen)  # type: ignore[assignment]
    row = {
        "epoch": state.epoch,
        "seconds": round(state.seconds, 3),
        "lr": lr,
        "train_loss": state.loss / state.seen,
        f"train_{metric.train_name}": state.metric_sum / state.seen,
        **({} if scores is None else {"val_loss": scores.loss, f"val_{metric.name}": scores.primary_metric}),
        "samples_per_second": round(state.seen / max(state.seconds, 1e-9), 2),
        "data_time_fraction": round(state.data_seconds / max(state.seconds, 1e-9), 4),
    }
    state.history.append(row)
    is_kept = (
        scores is None
        or settings.kept_epoch == "last"
        or is_best_so_far(state.history, state.best.get("epoch", 0), metric.name, len(scores.ids))
    )
    if is_kept:
        state.best = dict(row)
    elif settings.patience and state.epoch - state.best["epoch"] >= settings.patience and state.status == "running":
        state.status = "stopped by patience"
    state.batch, state.loss, state.metric_sum, state.seen, state.seconds, state.data_seconds = 0, 0.0, 0.0, 0, 0.0, 0.0
    return is_kept


def _position(settings: Settings, epoch: int, batch: int, batches: int) -> float:
    """Return the position in [0, 1] in the run of the step that contains `batch`."""
    steps = -(-batches // settings.grad_accum_steps)
    return (epoch + batch // settings.grad_accum_steps / steps) / settings.epochs


def _microbatches(
    count: int, bounds: list[tuple[int, int]], state: State, grad_accum_steps: int
) -> Iterator[tuple[slice, float]]:
    """Yield (slice of the `count` samples of this process, weight of its mean loss in the step).

    A step minimizes the mean over its samples for any split, also among processes, whose gradients are averaged.
    """
    first = state.batch // grad_accum_steps * grad_accum_steps
    step = bounds[first : first + grad_accum_steps]
    if state.num_microbatches == 1:
        yield slice(0, count), count * collectives.world_size() / (step[-1][1] - step[0][0])
        return
    for piece in np.array_split(np.arange(count), min(state.num_microbatches, max(1, count // 2))):
        yield (
            slice(int(piece[0]), int(piece[-1]) + 1),
            len(piece) * collectives.world_size() / (step[-1][1] - step[0][0]),
        )


def _is_whole(bounds: list[tuple[int, int]], batch: int) -> bool:
    """Return True if a batch has as many samples as the first one, which only the last of an epoch may not have."""
    return bounds[batch][1] - bounds[batch][0] == bounds[0][1] - bounds[0][0]


def _step_seed(seed: int, step: int) -> int:
    """Return the seed of dropout and stochastic depth in a step. It differs between processes."""
    return seed * 1_000_003 + step + collectives.rank() * 2**40
