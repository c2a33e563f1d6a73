import sys

import oom_worker
import pytest
import torch
from oom_worker import HOWS
from processes import free_port, outputs_of, rank_environment, start
from safetensors.torch import load_file

from skipway.training.oom_agreement import AgreedOutOfMemory, OomAgreement

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The tensors of both processes, and what they print."""
    folder, port = tmp_path_factory.mktemp("oom"), free_port()
    env = [rank_environment(rank, 2, port) for rank in range(2)]
    workers = [start(sys.executable, oom_worker.__file__, folder, env=values) for values in env]
    outputs = outputs_of(*workers)
    assert all(worker.returncode == 0 for worker in workers), "\n".join(errors for _, errors in outputs)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(2)], [text for text, _ in outputs]


@pytest.mark.parametrize("name", HOWS)
def test_all_processes_retry_a_step_in_which_one_lacks_memory_and_take_the_same_steps(pair, name):
    (first, second), _ = pair
    for key, value in first.items():
        if key.startswith(f"{name}."):
            assert torch.equal(value, second[key]), key
            assert torch.allclose(value, first[key.replace(name, "whole", 1)], atol=1e-6), key
    assert first[f"{name} pieces"] == second[f"{name} pieces"] > 1
    assert first[f"{name} retries"] == second[f"{name} retries"] > 0


def test_the_weights_are_those_of_a_run_that_began_with_these_microbatches(pair):
    (first, _), _ = pair
    names = [key for key in first if key.startswith("norms.")]
    assert names and all(torch.equal(first[key], first[key.replace("norms", "norms in pieces", 1)]) for key in names)


def test_all_processes_end_if_two_samples_each_do_not_fit(pair):
    _, texts = pair
    for text in texts:
        assert "ran out of memory with batch size 8 in 2 microbatches" in text


def test_a_step_that_failed_in_a_process_is_taken_by_none():
    OomAgreement.settle(0)
    with pytest.raises(AgreedOutOfMemory, match="1 of 1 processes ran out of memory in a step"):
        OomAgreement.settle(1)
