import copy
import sys

import pytest
import rank_worker
import torch
from processes import free_port, outputs_of, rank_environment, start
from rank_worker import HOWS, SHARDED, Feed
from safetensors.torch import load_file
from tiny_training import network, plain_network

from skipway.distributed import collectives, process_group
from skipway.errors import InputError
from skipway.training import loop
from skipway.training.losses import Classification
from skipway.training.metrics import score
from skipway.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
needs_processes = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def together(count, folder, *words):
    """What every one of `count` processes found."""
    port = free_port()
    workers = [
        start(sys.executable, rank_worker.__file__, folder, *words, env=rank_environment(k, count, port))
        for k in range(count)
    ]
    outputs = outputs_of(*workers)
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors for _, errors in outputs)
    return [load_file(folder / f"{k}.safetensors") for k in range(count)]


def halves(how, count):
    """The same training in one process, which runs the parts of each batch one after the other."""
    how = dict(how)
    weighted = how.pop("weighted", False)
    trainer = Trainer(network(), rank_worker.settings(how))
    settings, state = trainer.settings, trainer.state
    feed, others = Feed(weighted=weighted), [copy.deepcopy(trainer.network) for _ in range(count - 1)]
    for state.epoch in range(settings.epochs):
        trainer.to_train()
        replicas = [trainer.network, *others]
        for other in others:
            for mine, theirs in zip(other.modules(), trainer.network.modules(), strict=True):
                mine.training = theirs.training
        for batch, (x, y, ids) in enumerate(feed.epoch(state.epoch)):
            state.batch = batch
            if state.batch % settings.grad_accum_steps == 0:
                learning = [p for p in trainer.network.parameters() if p.requires_grad]
                sums = [[torch.zeros_like(p) for p in learning] for _ in range(count)]
            buffers = {n: b.clone() for n, b in trainer.network.named_buffers()}
            for k, replica in enumerate(replicas):
                replica.load_state_dict({**trainer.network.state_dict(), **buffers})
                for p, q in zip(replica.parameters(), trainer.network.parameters(), strict=True):
                    p.requires_grad_(q.requires_grad)
                mine = y[k::count]
                ((_, share),) = loop._microbatches(len(mine), feed.bounds, state, settings.grad_accum_steps)
                share *= count  # as every process has it, whose gradients are averaged then
                weights = [p for p in replica.parameters() if p.dim() > 1]
                penalty = settings.l2 * sum(p.square().sum() for p in weights) if settings.l2 else 0.0
                of_samples = feed.weights(ids[k::count])
                loss = trainer.task.loss(replica(x[k::count]), mine, of_samples) + penalty
                learnt = [p for p in replica.parameters() if p.requires_grad]
                for sum_, gradient in zip(sums[k], torch.autograd.grad(loss * share, learnt), strict=True):
                    sum_ += gradient
            first = [p for p in trainer.network.parameters() if p.requires_grad]
            for p, *gradients in zip(first, *sums, strict=True):
                p.grad = sum(g / count for g in gradients)
            if (state.batch + 1) % settings.grad_accum_steps == 0 or state.batch + 1 == feed.steps:
                torch.nn.utils.clip_grad_norm_(trainer.network.parameters(), settings.clip_grad or float("inf"))
                trainer.set_rates(loop._position(settings, state.epoch, state.batch, feed.steps))
                trainer.optimizer.step()
                trainer.optimizer.zero_grad(set_to_none=True)
                trainer.update_average()
    return trainer.network.state_dict()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return together(2, tmp_path_factory.mktemp("pair"))


@needs_processes
@pytest.mark.parametrize("name", HOWS)
def test_two_processes_are_one_that_runs_the_two_halves(pair, name):
    wanted = halves(HOWS[name], 2)
    for k, value in wanted.items():
        if "running" not in k and "num_batches" not in k:
            assert torch.equal(pair[0][f"{name}.{k}"], pair[1][f"{name}.{k}"]), k
        assert torch.equal(pair[0][f"{name}.{k}"], value), k
    assert torch.equal(pair[0][f"{name}.losses"], pair[1][f"{name}.losses"])


@needs_processes
@pytest.mark.parametrize("name", SHARDED)
def test_a_network_that_is_split_learns_what_a_whole_one_learns(pair, name):
    """Also as its checkpoint gives it back."""
    wanted = {k.partition(".")[2]: v for k, v in pair[0].items() if k.startswith(f"{name} False.")}
    found = {k.partition(".")[2]: v for k, v in pair[0].items() if k.startswith(f"{name} True.")}
    assert found.keys() == wanted.keys() and any(k.startswith("optimizer.") for k in found)
    start = network().state_dict()
    learnt = [k for k, _ in network().named_parameters()]
    moved, apart = (
        torch.cat([(a[f"network.{k}"] - b(k)).flatten() for k in learnt]).norm()
        for a, b in ((wanted, start.get), (found, lambda k: wanted[f"network.{k}"]))
    )
    assert apart < (0.1 if name == "muon" else 1e-5) * moved  # which computes in bfloat16
    whole = int(pair[0][f"held {name} whole"])
    for process in pair:
        before, resumed = process[f"held {name}"].tolist()
        assert before == resumed < 0.6 * whole


@needs_processes
def test_a_network_in_channels_last_is_sharded_and_stays_in_it_in_bf16(pair):
    assert all(len(process["channels_last"]) == 7 and process["channels_last"].all() for process in pair)


@needs_processes
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_resuming_is_exact(pair):
    assert pair[0]["stopped"] == pair[1]["stopped"] > 0
    for k, value in pair[0].items():
        if k.startswith("resumed."):
            assert torch.equal(value, pair[0][k.replace("resumed", "plain")]), k


@needs_processes
@pytest.mark.parametrize("count", [2, 3])
def test_every_sample_is_judged_once_by_however_many_processes(count, pair, tmp_path):
    found = pair if count == 2 else together(count, tmp_path, "only-scores")
    torch.manual_seed(0)
    feed, cpu = Feed(shuffle=False, count=17), torch.device("cpu")
    alone = score(plain_network(), feed, Classification(), autocast=torch.no_grad, device=cpu)
    for process in found:
        order = process["ids"].argsort()
        assert process["ids"][order].tolist() == alone.ids.tolist()
        assert torch.allclose(process["seen"][order], torch.from_numpy(alone.probabilities), atol=1e-6)


def test_one_process_has_nothing_to_tell():
    assert collectives.rank() == 0 and collectives.world_size() == 1
    assert (
        collectives.all_reduce_sum(1.5, True) == [1.5, True]
        and collectives.all_gather("x") == ["x"]
        and collectives.run_on_rank0(lambda: 7) == 7
    )
    collectives.broadcast_buffers(network())
    process_group.join_group("cpu")
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(
    "message, lost, silent",
    [
        (
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:5",
            True,
            False,
        ),
        ("[gloo/transport/tcp/pair.cc:412] writev [127.0.0.1]:5: Broken pipe", True, False),
        ("failed to recv, got 0 bytes. Connection was likely closed. Did the remote server crash?", True, False),
        (
            "NCCL error: ncclRemoteError: A call failed possibly due to a remote process exiting prematurely",
            True,
            False,
        ),
        ("[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation", False, True),
        ("[enforce fail at gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 40 vs 20", False, False),
        ("NCCL error: ncclInvalidUsage: invalid usage", False, False),
        ("peer access is not supported between these two devices", False, False),
        (
            "NCCL error in: ProcessGroupNCCL.cpp:94, invalid usage\nncclInvalidUsage: invalid usage of NCCL library.\n"
            "Last error:\nDuplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000\n"
            "Exception raised from create at NCCLUtils.cpp:94\nframe #1: c10d::Store::wait(timeout), connection closed",
            False,
            False,
        ),
        ("the server of the transform: connection refused after a timeout", False, False),
        ("the transform has no connection to its server", False, False),
        ("the connection layer takes 3 channels, not 1: a socket of size 4", False, False),
    ],
)
def test_a_process_is_gone_only_if_the_connection_to_it_broke(monkeypatch, message, lost, silent):
    assert not collectives.is_peer_lost(RuntimeError(message)) and not collectives.is_peer_silent(RuntimeError(message))
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    error = RuntimeError(message)
    assert (collectives.is_peer_lost(error), collectives.is_peer_silent(error)) == (lost, silent)


def test_other_errors_are_not_about_a_process(monkeypatch):
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    for error in (ConnectionRefusedError("connection refused by a store"), TimeoutError("recv timed out")):
        assert not collectives.is_peer_lost(error) and not collectives.is_peer_silent(error)
    error = torch.distributed.DistNetworkError("connection closed by process 1")
    assert collectives.is_peer_lost(error) and not collectives.is_peer_silent(error)


def test_each_process_joins_with_its_own_device(monkeypatch):
    places, joined = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", places.append)
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(None, 1, 2)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: joined.append(backend))
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    process_group.join_group("cuda")
    process_group.join_group("cpu")
    assert places == [1] and joined == ["cpu:gloo,cuda:nccl", "gloo"]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(InputError, match="cannot train in 3 processes on cuda: expected at most as many as devices"):
        process_group.join_group("cuda")
    process_group.leave_group()
