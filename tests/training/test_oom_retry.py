import pytest
import torch
from tiny_training import Feed, network, run, same, settings

from skipway.errors import StorageError
from skipway.training.loop import fit
from skipway.training.losses import Classification
from skipway.training.oom_retry import retry_with_microbatches
from skipway.training.trainer import Trainer
from skipway.utils.console import Console
from skipway.utils.stop_signals import StopFlag


class Small(Classification):
    """A task whose memory holds so many samples."""

    room = 3

    def loss(self, outputs, y, weights=None):
        if len(y) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return super().loss(outputs, y, weights)


class Crowded(torch.nn.Module):
    """A network with memory for `room` samples in evaluation."""

    def __init__(self, inner, room):
        super().__init__()
        self.inner, self.room, self.batches = inner, room, []

    def forward(self, x):
        if not self.training:
            self.batches.append(len(x))
            if len(x) > self.room:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return self.inner(x)


def validated(folder, room, lines):
    """Train with `room` in evaluation, and return the trainer."""
    trainer = Trainer(Crowded(network(), room), settings(epochs=1))

    class Words(Console):
        def print(self, line):
            lines.append(line)

    def training():
        words, feeds = Words(quiet=True), (Feed(), Feed(10, 5, shuffle=False))
        return fit(trainer, *feeds, folder, on_epoch=lambda *_: None, facts={}, console=words, stop=StopFlag())

    retry_with_microbatches(training, trainer, folder=folder, batch_size=8, console=Words(quiet=True))
    return trainer


def test_an_evaluation_that_does_not_fit_is_split_and_trains_as_before(tmp_path):
    lines = []
    split, whole = validated(tmp_path / "a", 2, lines), validated(tmp_path / "b", 99, [])
    assert split.network.batches == [5, 3, 2, 1, 1, 1, 2, 1, 1, 1] and split.state.num_microbatches == 1
    assert lines[0] == "  ran out of memory with 5 samples in evaluation: split into 4 parts"
    assert same(split.tensors(), whole.tensors())
    assert split.state.history[0]["val_loss"] == pytest.approx(whole.state.history[0]["val_loss"], rel=1e-6)


def test_an_evaluation_without_memory_for_one_sample_ends_the_run(tmp_path):
    with pytest.raises(StorageError, match="ran out of memory in evaluation: expected memory for 1 sample, got none"):
        validated(tmp_path, 0, [])


def test_what_runs_out_of_memory_after_the_steps_is_not_trained_again(tmp_path):
    trainer, calls = Trainer(network(), settings(epochs=1)), []

    def on_epoch(state, weights):
        calls.append(state.epoch)
        raise MemoryError

    def training():
        quiet, stop = Console(quiet=True), StopFlag()
        return fit(trainer, Feed(), Feed(10, 5), tmp_path, on_epoch=on_epoch, facts={}, console=quiet, stop=stop)

    with pytest.raises(MemoryError):
        retry_with_microbatches(training, trainer, folder=tmp_path, batch_size=8, console=Console(quiet=True))
    assert calls == [1]


def halved(folder, room, said=None, **values):
    trainer = Trainer(network(), settings(**values))
    trainer.task = Small()
    trainer.task.__class__.room = room

    class Words(Console):
        def print(self, line):
            (said if said is not None else []).append(line)

    def training():
        return fit(
            trainer,
            Feed(),
            Feed(10, 5),
            folder,
            on_epoch=lambda *_: None,
            facts={},
            console=Words(quiet=True),
            stop=StopFlag(),
        )

    retry_with_microbatches(training, trainer, folder=folder, batch_size=8, console=Words(quiet=True))
    return trainer


def test_batches_that_do_not_fit_are_computed_in_pieces_and_the_run_ends(tmp_path):
    said = []
    trainer = halved(tmp_path, 3, said)
    assert trainer.state.num_microbatches == 4 and trainer.state.status == "finished" and trainer.state.epoch == 2
    assert sum("ran out of memory with batch size 8: from step 0 on, each batch is split" in line for line in said) == 2


def test_a_step_in_pieces_is_the_step_of_the_whole_batch_where_no_norm_looks(tmp_path):
    from tiny_training import plain_network

    found = []
    for pieces in (1, 3):
        trainer = Trainer(plain_network(), settings(epochs=1))
        trainer.state.num_microbatches = pieces
        fit(
            trainer,
            Feed(),
            Feed(10, 5),
            tmp_path / str(pieces),
            on_epoch=lambda *_: None,
            facts={},
            console=Console(quiet=True),
            stop=StopFlag(),
        )
        found.append((torch.cat([p.detach().flatten() for p in trainer.network.parameters()]), trainer.state.history))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-6)
    assert found[0][1][0]["train_loss"] == pytest.approx(found[1][1][0]["train_loss"], abs=1e-6)


def test_pieces_of_less_than_two_samples_are_refused(tmp_path):
    with pytest.raises(
        StorageError, match="ran out of memory with batch size 8 in 4 microbatches. Use a smaller --img-size"
    ):
        halved(tmp_path, 1)


def test_another_error_is_not_taken_for_one_of_memory(tmp_path):
    with pytest.raises(RuntimeError, match="size mismatch"):
        retry_with_microbatches(
            lambda: (_ for _ in ()).throw(RuntimeError("size mismatch")),
            Trainer(network(), settings(epochs=1)),
            folder=tmp_path,
            batch_size=8,
            console=Console(quiet=True),
        )


def test_a_run_without_lack_is_as_without_the_net(tmp_path):
    wanted, _ = run(tmp_path / "a", {"label_smoothing": 0.0})
    assert same(wanted.tensors(), halved(tmp_path / "b", 99).tensors())
