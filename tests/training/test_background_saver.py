import errno
import os
import shutil
import threading

import pytest
import safetensors.torch
import torch
from faulty_disk import each_fault, each_kill, failing, temporaries

from skipway.errors import NotFiniteError, StorageError
from skipway.training import checkpoint
from skipway.training.background_saver import BackgroundSaver
from skipway.training.tensor_file import _DTYPES, TensorFile
from skipway.training.verified_steps import VerifiedSteps
from skipway.utils import atomic_files


def tensors_of(step):
    image = (torch.arange(36.0) + step).reshape(3, 3, 2, 2).to(memory_format=torch.channels_last)
    return {"conv": image, "count": torch.tensor(step), "head": torch.full((2, 3), step + 0.5, dtype=torch.bfloat16)}


def is_step(loaded, step):
    wanted = tensors_of(step)
    return loaded.step == step == loaded.state["epoch"] and all(
        torch.equal(loaded.tensors[name], tensor) and loaded.tensors[name].stride() == tensor.stride()
        for name, tensor in wanted.items()
    )


def write(folder, step):
    saver = BackgroundSaver()
    saver.save(folder, step, tensors_of(step), {"epoch": step})
    saver.wait()


def two_steps(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for step in (1, 2):
        write(folder, step)


@pytest.fixture
def gate(monkeypatch):
    """Hold back each write until the gate is open."""
    gate, write = threading.Event(), checkpoint.save_checkpoint

    def held(*arguments, **options):
        assert gate.wait(20)
        return write(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save_checkpoint", held)
    return gate


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path, gate):
    saver, tensors, state = BackgroundSaver(), tensors_of(1), {"epoch": 1, "rows": [1]}
    saver.save(tmp_path, 1, tensors, state)
    for tensor in tensors.values():
        tensor.zero_()
    state["rows"].append(2)
    assert os.listdir(tmp_path) == []
    gate.set()
    saver.wait()
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1) and loaded.state == {"epoch": 1, "rows": [1]}


def test_a_save_waits_for_the_one_before_and_uses_its_memory_again(tmp_path):
    saver, memory = BackgroundSaver(), None
    for step in range(4):
        tensors = tensors_of(step) | ({"momentum": torch.ones(step)} if step else {})
        saver.save(tmp_path, step, tensors, {"epoch": step})
        addresses = {name: saver._copies[name].data_ptr() for name in tensors_of(0)}
        assert memory in (None, addresses)
        memory = addresses
    saver.wait()
    assert sorted(os.listdir(tmp_path)) == ["step-00000002", "step-00000003"]
    assert is_step(checkpoint.load_checkpoint(tmp_path), 3)


def test_an_error_is_raised_once_by_the_next_call(tmp_path):
    saver = BackgroundSaver()
    saver.save(tmp_path / "gone" / "last", 1, {}, {})
    with pytest.raises(StorageError, match="cannot save step 1: expected the folder .*gone, got none"):
        saver.wait()
    saver.wait()
    saver.save(tmp_path, 1, {"a": torch.tensor(float("nan"))}, {})
    with pytest.raises(NotFiniteError, match="cannot save weights: expected finite values, got NaN: 'a'"):
        saver.save(tmp_path, 2, {}, {})
    saver.save(tmp_path / "gone" / "last", 3, {}, {})
    saver.join()
    with pytest.raises(StorageError, match="cannot save step 3"):
        saver.raise_failure()


def test_a_failure_at_any_call_of_the_thread_reaches_the_caller_and_the_old_step_loads(tmp_path, monkeypatch):
    def check(when, raised, log):
        assert raised and os.strerror(errno.ENOSPC) in raised
        assert temporaries(tmp_path) == []
        loaded = checkpoint.load_checkpoint(tmp_path / "last")
        assert loaded.refused == () and (is_step(loaded, 2) or is_step(loaded, 3))
        two_steps(tmp_path / "last")

    two_steps(tmp_path / "last")
    assert each_fault(monkeypatch, failing(errno.ENOSPC), lambda _: write(tmp_path / "last", 3), check) > 15


def test_a_kill_at_any_call_of_the_thread_leaves_the_old_step_or_the_new_one(tmp_path):
    outcomes = set()

    def check(when):
        loaded = checkpoint.load_checkpoint(tmp_path / "last")
        assert loaded.refused == () and (is_step(loaded, 2) or is_step(loaded, 3))
        outcomes.add(loaded.step)
        two_steps(tmp_path / "last")

    two_steps(tmp_path / "last")
    assert each_kill(lambda _: write(tmp_path / "last", 3), check) > 15
    assert outcomes == {2, 3}


def test_a_run_folder_that_is_moved_while_a_step_is_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    make = atomic_files.make_new_folder

    def then_moved(folder):
        make(folder)
        (tmp_path / "run").rename(tmp_path / "moved")

    monkeypatch.setattr(atomic_files, "make_new_folder", then_moved)
    with pytest.raises(StorageError, match="cannot save step 1: expected the folder .*run, got none: it was removed"):
        write(tmp_path / "run" / "last", 1)


# Older steps are verified once.


def save_verified(folder, step, verified):
    checkpoint.save_checkpoint(folder, step, {"a": torch.full((4,), float(step))}, {}, verified=verified)


def aged(verified, folder):
    """Verify all steps again, as if their files had been written long ago."""
    for path in folder.iterdir():
        verified.add(path, -1e9)


def test_an_unchanged_step_is_not_read_again(tmp_path, monkeypatch):
    verified = VerifiedSteps()
    save_verified(tmp_path, 1, verified)
    aged(verified, tmp_path)
    reads = []
    find = checkpoint.find_flaw
    monkeypatch.setattr(checkpoint, "find_flaw", lambda path, step: reads.append(step) or find(path, step))
    save_verified(tmp_path, 2, verified)
    assert reads == []
    save_verified(tmp_path, 3, VerifiedSteps())
    assert reads == [2], "another process has not verified it"


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "MANIFEST.json"])
def test_a_verified_step_that_changes_no_longer_counts(tmp_path, name):
    verified = VerifiedSteps()
    for step in (1, 2):
        save_verified(tmp_path, step, verified)
        aged(verified, tmp_path)
    path = tmp_path / "step-00000002" / name
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"~~")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    save_verified(tmp_path, 3, verified)
    assert sorted(os.listdir(tmp_path)) == ["step-00000001", "step-00000002", "step-00000003"]


def test_a_step_written_a_moment_ago_is_verified_again(tmp_path):
    verified = VerifiedSteps()
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").write_text("{}")
    for written, expected in ((1e18, False), (-1e18, True)):
        verified.add(tmp_path / "step", written)
        assert (tmp_path / "step" in verified) is expected
    shutil.rmtree(tmp_path / "step")
    assert tmp_path / "step" not in verified


# The file of the tensors.


def test_files_of_any_size_are_read_by_safetensors_and_written_in_blocks(tmp_path):
    tensors = {
        "large": torch.randn(3 * 2**20 + 5),
        "channels_last": torch.randn(4, 3, 5, 6).to(memory_format=torch.channels_last),
        "odd": torch.arange(3, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
        "double": torch.randn(3).double(),
        "many": torch.randn(2**21),
    }
    file = TensorFile(tensors, {"b": "é", "a": "x"})
    blocks = list(file.blocks())
    assert max(map(len, blocks)) <= 8 * 2**20 and len(blocks) <= 6
    data = b"".join(blocks)
    assert len(data) == file.size and data.startswith(file.header)
    loaded = safetensors.torch.load(data)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items()) and len(loaded) == 6
    assert len(file.header) % 8 == 0


def test_every_name_of_a_dtype_is_that_of_safetensors():
    for dtype, name in _DTYPES.items():
        header = safetensors.torch.save({"a": torch.zeros(2).to(dtype)})[8:].split(b"}")[0].decode()
        assert f'"dtype":"{name}"' in header


def test_the_header_names_what_it_cannot_hold():
    with pytest.raises(TypeError, match="expected strings as names, got 1"):
        TensorFile({1: torch.ones(1)})
    with pytest.raises(ValueError, match="'a' is torch.float32, torch.strided, on meta"):
        TensorFile({"a": torch.ones(1, device="meta")})
    with pytest.raises(ValueError, match="the name '__metadata__' is reserved"):
        TensorFile({"__metadata__": torch.ones(1)})


def test_blocks_are_written_in_order(tmp_path):
    atomic_files.write_new(tmp_path / "a", iter([b"ab", memoryview(b"cd"), b""]))
    assert (tmp_path / "a").read_bytes() == b"abcd"
