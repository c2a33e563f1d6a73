"""Foreign files of weights: what is read, and that nothing in them is ever run."""

import os
import pickle
import random
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import msgpack
import numpy as np
import pytest
import safetensors.torch
import torch
from processes import run
from torch import nn

from skipway.errors import InputError, SkipwayError
from skipway.weights import unpickle_worker
from skipway.weights.read_foreign_checkpoint import read_state

TENSORS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.tensor([0.5, -2.0], dtype=torch.float64),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "turned": torch.arange(6.0).view(2, 3).T,
}


def same(found, wanted=TENSORS):
    return set(found) == set(wanted) and all(
        found[k].dtype == v.dtype and torch.equal(found[k], v) for k, v in wanted.items()
    )


def saved(path, content, legacy=False):
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def read_here(path):
    """What the child process does, in this one."""
    if path.read_bytes()[:2] == b"PK" and not unpickle_worker.is_torch_zip(str(path)):
        raise ValueError("a zip file of another tool")
    return {
        name: value for part in unpickle_worker.read(str(path)) for name, value in safetensors.torch.load(part).items()
    }


# What is read


def test_safetensors_of_other_tools_are_read(tmp_path):
    safetensors.torch.save_file({k: v.contiguous() for k, v in TENSORS.items()}, tmp_path / "model.bin")
    assert same(read_state(tmp_path / "model.bin"))


def test_the_order_of_names_is_the_file_s(tmp_path):
    names = [f"layer{i}" for i in (3, 1, 2, 10, 0)]
    state = {name: torch.ones(2) for name in names}
    assert list(read_here(saved(tmp_path / "a.pth", state))) == names
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")  # which sorts them
    assert list(read_state(tmp_path / "a.safetensors")) == sorted(names)


@pytest.mark.parametrize("legacy", [False, True])
def test_torch_s_files_are_read_in_a_process_of_their_own(legacy, tmp_path, monkeypatch):
    saved(tmp_path / "a.pth", {"state_dict": TENSORS, "epoch": 12, "best_prec1": 91.5}, legacy)
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("the file was unpickled in the user's process"))
    (tmp_path / "torch.py").write_text("raise SystemExit('a module of the working folder was imported')")
    monkeypatch.chdir(tmp_path)
    found = read_state("a.pth")
    assert same(found) and list(found) == list(TENSORS)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: {"state_dict": t, "optimizer": {"lr": 0.1}},
        lambda t: {"model": t},
        lambda t: {"epoch": 3, "state_dict_ema": t},
        lambda t: {"state_dict_ema": {"half": torch.zeros(1)}, "state_dict": t},
        lambda t: {"model": {"state_dict": t, "name": "net"}},
        lambda t: {**t, "model": {"name": "resnet"}, 7: torch.ones(1)},
        lambda t: {**t, "epoch": 3},
        lambda t: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in t.items()},
    ],
)
def test_the_tensors_are_found_wherever_training_scripts_put_them(wrap, legacy, tmp_path):
    assert same(read_here(saved(tmp_path / "a.pth", wrap(TENSORS), legacy)))


def test_tensors_that_share_memory_are_read_each(tmp_path):
    shared = torch.arange(4.0)
    found = read_here(saved(tmp_path / "a.pth", {"one": shared, "two": shared, "part": shared[1:]}))
    assert (
        torch.equal(found["one"], shared) and torch.equal(found["two"], shared) and found["part"].tolist() == [1, 2, 3]
    )


def test_conjugated_numbers_are_read_as_they_are(tmp_path):
    value = torch.tensor([1 + 2j]).conj()
    assert read_here(saved(tmp_path / "a.pth", {"a": value}))["a"].tolist() == [1 - 2j]


def test_torch_is_found_where_this_process_has_found_it(tmp_path, monkeypatch):
    """As where it is installed for one user, whose folder an isolated interpreter leaves out."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} -S "$@"\n')
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    assert same(read_state(saved(tmp_path / "a.pth", TENSORS)))


def ndarray(array, dtype=None):
    content = msgpack.packb((array.shape, dtype or array.dtype.name, array.tobytes()))
    return msgpack.ExtType(1, content)


def test_flax_trees_are_read_with_their_names_joined(tmp_path):
    kernel = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    halves = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
    tree = {
        "step": msgpack.ExtType(3, msgpack.packb(((), "int32", np.int32(7).tobytes()))),
        "params": {"conv": {"kernel": ndarray(kernel)}, "empty": ndarray(np.zeros((0, 3), np.float32))},
        "batch_stats": {"bn": {"mean": ndarray(halves.view(torch.int16).numpy(), "bfloat16")}},
        "opt_state": {"0": {"trace": ndarray(kernel)}},
    }
    (tmp_path / "checkpoint_1").write_bytes(msgpack.packb(tree))
    found = read_state(tmp_path / "checkpoint_1")
    assert set(found) == {"params/conv/kernel", "params/empty", "batch_stats/bn/mean"}
    assert torch.equal(found["params/conv/kernel"], torch.from_numpy(kernel)) and found["params/empty"].shape == (0, 3)
    assert torch.equal(found["batch_stats/bn/mean"], halves)


def test_flax_s_older_training_states_are_read(tmp_path):
    mean = ndarray(np.zeros(2, np.float32))
    tree = {"optimizer": {"m": mean}, "params": {"w": mean}, "model_state": {"batch_stats": {"bn": {"mean": mean}}}}
    (tmp_path / "c").write_bytes(msgpack.packb(tree))
    assert set(read_state(tmp_path / "c")) == {"params/w", "batch_stats/bn/mean"}
    (tmp_path / "c").write_bytes(msgpack.packb({"Dense_0": {"kernel": mean}, "step": 3}))
    assert set(read_state(tmp_path / "c")) == {"Dense_0/kernel"}


def test_flax_arrays_in_pieces_are_put_together(tmp_path):
    whole = np.arange(10, dtype=np.float32).reshape(2, 5)
    flat = whole.reshape(-1)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 5},
        "chunks": {"0": ndarray(flat[:7]), "1": ndarray(flat[7:])},
    }
    (tmp_path / "big").write_bytes(msgpack.packb({"params": {"kernel": chunked}}))
    assert torch.equal(read_state(tmp_path / "big")["params/kernel"], torch.from_numpy(whole))


# What is refused


@pytest.mark.parametrize(
    "content, text",
    [
        (
            b"\x89HDF\r\n\x1a\n" + bytes(100),
            r"but it is an HDF5 file, as Keras writes it \(.h5\). Convert",
        ),
        (b"\x08\x07\x12\x07pytorch" + bytes(50), "but it looks like an ONNX model. Convert it"),
        (b"", "is an empty file"),
        (b"<html>", "is a web page or XML"),
        (b"\x93NUMPY\x01\x00", "is a NumPy array"),
        (pickle.dumps({"a": 1}), "is a pickle, as old versions of PyTorch write it. Convert"),
        (struct.pack("<Q", 2**40) + b"{" + bytes(50), r"cannot use the header: .* got 1099511627776 bytes"),
        (struct.pack("<Q", 20) + b"{" + bytes(50), "damaged"),
        (struct.pack("<Q", 2) + b"{}", "damaged: it has no tensors. Copy or download it again"),
        (b"\x00\x00\x1bnothing", "but it has an unknown format. Convert it to safetensors"),
        (b"\x81\xa1a\xc7", "as a Flax checkpoint of plain arrays"),
        (b"\xdf\xff\xff\xff\xff", "as a Flax checkpoint of plain arrays"),
        (b"\x81\xa1a\x01", "as a Flax checkpoint of plain arrays: it has no arrays. Write it with"),
        (b"\x82\xa1a\x01\xa1a\x01", "it has two values of one name"),
        (b"\x81\xda\x04\x00" + b"a" * 1024 + b"\x01", "expected names of at most 1000 characters"),
        (b"\x81\xc4\x01a\x01", "expected names of at most"),
        (b"\x81\xa1a\xdd" + struct.pack(">I", 10**6) + b"\x90" * 10**6, "1000000 exceeds max_array_len"),
        (b"\x81\xa1a\xc8\xff\xff\x01\xdc\xff\xfc" + b"\x90" * 65532, "65532 exceeds max_array_len"),
        (
            msgpack.packb({"a": {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {"0": 1}}}),
            "as a Flax checkpoi",
        ),
        (b"\x81" * 5000, "as a Flax checkpoint of plain arrays"),
    ],
)
def test_other_files_are_refused_by_their_content(content, text, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(InputError, match=text) as refused:
        read_state(tmp_path / "w.pth")
    assert str(tmp_path / "w.pth") in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "members, text",
    [
        ({"m/code/__torch__.py": "", "m/data.pkl": "", "m/constants.pkl": ""}, "is a TorchScript file"),
        ({"config.json": "{}", "model.weights.h5": ""}, r"is a Keras file \(.keras\)"),
        ({"m/archive_format": "pt2", "m/models/model.json": ""}, r"is an exported PyTorch program \(.pt2\)"),
        ({"x.npy": ""}, "is a zip file"),
    ],
)
def test_archives_of_programs_are_refused(members, text, tmp_path, monkeypatch):
    def from_child(path, size, where):  # only the first needs the process, which takes its time to start
        assert not unpickle_worker.is_torch_zip(str(path))

    if "TorchScript" not in text:
        monkeypatch.setattr("skipway.weights.read_foreign_checkpoint._read_in_process", from_child)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=text):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "shape, dtype, content, text",
    [
        ([2, 2], "float32", bytes(8), r"an array of shape \(2, 2\): expected 16 bytes, got 8"),
        ([2**40], "float32", bytes(8), "bytes, got 8"),
        ([-1], "float32", bytes(4), r"it has an array of the invalid shape \[-1\]"),
        ([1], "object", bytes(8), "it has values of the unsupported dtype object"),
    ],
)
def test_lying_arrays_are_refused(shape, dtype, content, text, tmp_path):
    lie = msgpack.ExtType(1, msgpack.packb((shape, dtype, content)))
    (tmp_path / "c").write_bytes(msgpack.packb({"params": {"a": lie}}))
    with pytest.raises(InputError, match=text):
        read_state(tmp_path / "c")


def test_floods_of_small_values_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("skipway.weights.read_foreign_checkpoint._MAX_VALUES", 1000)
    for tree in ({"a": [[[]] * 20] * 50}, {str(i): {"a": 1} for i in range(400)}):
        (tmp_path / "c").write_bytes(msgpack.packb(tree))
        with pytest.raises(InputError, match="it has more than 1000 values"):
            read_state(tmp_path / "c")
    inner = msgpack.ExtType(1, msgpack.packb(([[[[0] * 60] * 60] * 60], "float32", b"")))
    (tmp_path / "c").write_bytes(msgpack.packb({"a": inner}))
    with pytest.raises(InputError, match="it has more than 1000 values"):
        read_state(tmp_path / "c")


def test_sizes_are_looked_at_before_anything_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({"a": torch.ones(4)}, path)
    size = path.stat().st_size
    os.truncate(path, 4 * 2**30)  # holes, which would take their size in memory
    tracemalloc.start()
    with pytest.raises(InputError, match=f"damaged: expected {size} bytes from its header, got {4 * 2**30}"):
        read_state(path)
    os.truncate(path, 9 * 2**30)
    with pytest.raises(InputError, match="expected at most 8589934592 bytes, got 9663676416. Save the weights without"):
        read_state(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_too_little_memory_is_one_line(tmp_path, monkeypatch):
    def unpackb(*_, **__):
        raise MemoryError

    monkeypatch.setattr(msgpack, "unpackb", unpackb)
    (tmp_path / "c").write_bytes(b"\x81\xa1a\x01")
    with pytest.raises(InputError, match="cannot read .*: out of memory. Close other programs"):
        read_state(tmp_path / "c")


def test_other_kinds_of_msgpack_values_are_refused(tmp_path):
    (tmp_path / "c").write_bytes(msgpack.packb({"params": {"a": msgpack.ExtType(2, b"x")}}))
    with pytest.raises(InputError, match="it has values of the unknown type 2"):
        read_state(tmp_path / "c")
    (tmp_path / "c").write_bytes(b"\x81\x01")
    with pytest.raises(InputError, match="as a Flax checkpoint of plain arrays"):
        read_state(tmp_path / "c")


def test_a_disk_error_is_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    (tmp_path / "c").write_bytes(b"\x81\xa1a\x01")
    monkeypatch.setattr("skipway.weights.read_foreign_checkpoint.open", fail, raising=False)
    with pytest.raises(InputError, match="cannot read .*: Input/output error. Check the disk and the file permissions"):
        read_state(tmp_path / "c")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, text in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no", "no such file"),
        (tmp_path / "pipe", "is not a reg"),
    ):
        with pytest.raises(InputError, match=text + ".*Pass a file of weights"):
            read_state(path)


@pytest.mark.parametrize(
    "content, text",
    [
        ([1, 2], "expected tensors by name or a state_dict, got a list"),
        ({"epoch": 3, "parts": {"a": torch.ones(1)}}, "expected tensors by name .*, got a dict with 'epoch', 'parts'"),
        ({"a": torch.eye(2).to_sparse()}, "its a is not a plain tensor, but sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, "its a is not a plain tensor, but meta"),
        ({"a": torch.zeros(1).expand(2**33)}, "its tensors take 34359738368 bytes, too many for a file of"),
        ({str(i): torch.zeros(1).expand(2**20) for i in range(5)}, "its tensors take 20971520 bytes"),
    ],
)
def test_a_file_without_plain_named_tensors_is_refused(content, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        read_here(saved(tmp_path / "a.pth", content))


def test_a_mapping_that_holds_itself_is_refused(tmp_path):
    content = {"epoch": 3}
    content["model"] = content["state_dict"] = content
    with pytest.raises(ValueError, match="expected tensors by name or a state_dict, got"):
        read_here(saved(tmp_path / "a.pth", content))


def test_a_zip_file_that_would_grow_is_refused(tmp_path):
    with zipfile.ZipFile(saved(tmp_path / "a.pth", TENSORS)) as whole:
        with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in whole.namelist():
                packed.writestr(name, whole.read(name))
    with pytest.raises(ValueError, match="it is compressed, which torch.save never does"):
        read_here(tmp_path / "b.pth")


def test_a_member_marked_as_a_folder_is_refused(tmp_path):
    """torch would give whatever was in memory for its numbers."""
    path = saved(tmp_path / "a.pth", TENSORS)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as marked:
        for member in whole.infolist():
            content = whole.read(member)
            member.external_attr = 0x10 if member.filename.endswith("/0") else 0
            marked.writestr(member, content)
    with pytest.raises(ValueError, match="its member a/data/0 is marked as a folder, so the file is damaged"):
        read_here(tmp_path / "b.pth")


def test_files_saved_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "a.pth", TENSORS)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is not None, "this torch has written checksums all the same"
    assert same(read_here(path))


# The process that reads


def test_what_the_child_refuses_is_one_line_that_says_how_to_mend_it(tmp_path):
    with pytest.raises(InputError, match=" as plain tensors: .*. Save the weights again with") as refused:
        read_state(saved(tmp_path / "whole.pth", nn.Linear(2, 2)))
    assert "torch.nn.modules.linear.Linear" in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_a_pickle_that_would_compute_for_ever_is_stopped(tmp_path, monkeypatch):
    """Pairs of pairs of pairs as a key: hashing it takes two to the fortieth steps."""
    program = Path(unpickle_worker.__file__).read_text()
    assert program.count("_SECONDS = 5  # ") == 1
    (tmp_path / "hasty.py").write_text(program.replace("_SECONDS = 5  # ", "_SECONDS = 1  # "))
    monkeypatch.setattr(unpickle_worker, "__file__", str(tmp_path / "hasty.py"))
    pairs = b"".join(bytes([*b"K", i, *b"h", i, *b"h", i, 0x86, *b"q", i + 1]) for i in range(1, 40))
    path = pickled(tmp_path / "a.pth", b"\x80\x02}q\x00(K\x00K\x01q\x01" + pairs + b"h\x28K\x02u.")
    began = os.times()
    with pytest.raises(InputError, match="it needs too much CPU time for its size"):
        read_state(path)
    assert sum(os.times()[2:4]) - sum(began[2:4]) < 11


def child(tmp_path, monkeypatch, text):
    """A file to read, and `text` in place of the program that would read it."""
    (tmp_path / "child.py").write_text("import os, sys\nout = sys.stdout.buffer\n" + text)
    monkeypatch.setattr(unpickle_worker, "__file__", str(tmp_path / "child.py"))
    return saved(tmp_path / "a.pth", TENSORS)


@pytest.mark.parametrize(
    "text, told",
    [
        ("os.kill(os.getpid(), 11)", "the reading process ended with SIGSEGV"),
        ("os.kill(os.getpid(), 24)", "it needs too much CPU time for its size"),
        ("pass", "the reading process ended with 0"),
        ("sys.exit(7)", "the reading process ended with 7"),
        ("sys.exit('nothing\\x1b[2J')", r"nothing\\x1b\[2J"),
        (
            "out.write(b'\\x05' + bytes(7) + b'short')",
            "the output of the reading process is damaged: Error while deserializing",
        ),
        ("out.write(b'\\x05' + bytes(7) + b'cut')", "the output of the reading process is damaged: it is cut short"),
        ("out.write(b'\\xff' * 8 + b'a')", "the output of the reading process is damaged: it is too long"),
        ("while True: out.write(bytes(8))", "the output of the reading process is damaged: Error while deserializing"),
    ],
)
def test_however_the_child_ends_it_is_one_line(text, told, tmp_path, monkeypatch):
    path = child(tmp_path, monkeypatch, text)
    with pytest.raises(InputError, match=f" as plain tensors: {told}") as refused:
        read_state(path)
    assert len(str(refused.value).splitlines()) == 1


def test_a_child_that_never_ends_is_stopped(tmp_path, monkeypatch):
    path = child(tmp_path, monkeypatch, "import time; time.sleep(100_000)")
    monkeypatch.setattr("skipway.weights.read_foreign_checkpoint._SECONDS", 0.2)
    with pytest.raises(InputError, match="cannot read .* within 0.2 seconds. Save the weights as safetensors"):
        read_state(path)


def test_the_child_is_told_nothing_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    monkeypatch.setenv("PYTHONSTARTUP", str(tmp_path))
    path = child(tmp_path, monkeypatch, "sys.exit(f'{sorted(os.environ)} in {os.getcwd()}')")
    with pytest.raises(InputError, match=r"\[('LC_CTYPE', )?('LD_LIBRARY_PATH', )?'OMP_NUM_THREADS'\] in /\."):
        read_state(path)


def limited(tmp_path, text):
    """What `text` prints in a process with the limits for a file of no bytes."""
    begin = f"import sys; sys.path.append({os.path.dirname(unpickle_worker.__file__)!r}); import unpickle_worker\n"
    command = [sys.executable, "-I", "-c", begin + "unpickle_worker.limit(0)\n" + text]
    done = run(*command, cwd=tmp_path)
    return done.stdout + done.stderr


def test_the_child_s_limits_hold(tmp_path):
    assert "read" in limited(tmp_path, "bytearray(2**28); print('read')")
    assert "MemoryError" in limited(tmp_path, "bytearray(2**30)")
    assert "File too large" in limited(tmp_path, "open('a', 'wb', 0).write(b'a')")
    assert (tmp_path / "a").stat().st_size == 0
    again = limited(
        tmp_path, "unpickle_worker.limit(2**40); import resource; print(resource.getrlimit(resource.RLIMIT_AS))"
    )
    assert 2**28 < int(again.split(",")[1].strip(" )\n")) < 2**31, "what stands already was raised"


def test_where_there_are_no_limits_it_is_said(tmp_path, monkeypatch):
    path = child(tmp_path, monkeypatch, "sys.exit(3)")
    monkeypatch.setattr(unpickle_worker, "resource", None)
    unpickle_worker.limit(0)
    with pytest.warns(UserWarning, match="this platform cannot limit the memory and CPU time of the process"):
        with pytest.raises(InputError, match="is a PyTorch file"):
            read_state(path)


@pytest.mark.parametrize(
    "error, told",
    [
        (MemoryError(), "it needs too much memory for its size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "it needs too much memory"),
        (
            RuntimeError("Weights only load failed with weights_only\nGLOBAL os.system was"),
            "it refers to os.system, wh",
        ),
        (RuntimeError("torch.load failed\n\n  invalid header  \nmore"), "invalid header"),
        (KeyError(), "KeyError"),
    ],
)
def test_torch_s_reasons_are_one_line(error, told):
    assert unpickle_worker.reason(error).startswith(told)


# Nothing is run

GADGETS = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("os", "popen"),
    ("os", "execv"),
    ("os", "remove"),
    ("os", "spawnlp"),
    ("posix", "fork"),
    ("subprocess", "Popen"),
    ("subprocess", "run"),
    ("subprocess", "call"),
    ("subprocess", "check_output"),
    ("subprocess", "getoutput"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "compile"),
    ("builtins", "open"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "setattr"),
    ("builtins", "map"),
    ("builtins", "apply"),
    ("__builtin__", "eval"),
    ("importlib", "import_module"),
    ("importlib", "__import__"),
    ("pkgutil", "resolve_name"),
    ("runpy", "run_path"),
    ("runpy", "_run_code"),
    ("code", "InteractiveInterpreter.runcode"),
    ("codeop", "compile_command"),
    ("pickle", "loads"),
    ("_pickle", "loads"),
    ("cloudpickle", "loads"),
    ("dill", "loads"),
    ("joblib", "load"),
    ("marshal", "loads"),
    ("types", "FunctionType"),
    ("types", "CodeType"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("operator", "methodcaller"),
    ("operator", "itemgetter"),
    ("shutil", "rmtree"),
    ("shutil", "copyfile"),
    ("socket", "create_connection"),
    ("asyncio", "create_subprocess_shell"),
    ("asyncio.unix_events", "_UnixSubprocessTransport._start"),
    ("urllib.request", "urlopen"),
    ("webbrowser", "open"),
    ("ctypes", "CDLL"),
    ("ctypes.util", "find_library"),
    ("pty", "spawn"),
    ("pdb", "run"),
    ("bdb", "Bdb.run"),
    ("cProfile", "run"),
    ("profile", "run"),
    ("timeit", "timeit"),
    ("trace", "Trace.run"),
    ("doctest", "debug_script"),
    ("idlelib.run", "Executive.runcode"),
    ("ensurepip", "_run_pip"),
    ("pip", "main"),
    ("venv", "create"),
    ("distutils.spawn", "spawn"),
    ("numpy.testing._private.utils", "runstring"),
    ("numpy", "load"),
    ("numpy", "memmap"),
    ("numpy.f2py.capi_maps", "getinit"),
    ("pandas", "read_pickle"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.jit", "load"),
    ("torch.utils.model_zoo", "load_url"),
    ("torch._dynamo.guards", "GuardBuilder.get"),
    ("torch.utils.collect_env", "run"),
    ("torch.serialization", "load"),
    ("torch.utils.bottleneck.__main__", "run_cprofile"),
    ("logging.config", "dictConfig"),
    ("yaml", "unsafe_load"),
    ("multiprocessing.util", "spawnv_passfds"),
    ("site", "addpackage"),
    ("sys", "settrace"),
    ("signal", "signal"),
]


def pickled(path, payload, legacy=False):
    """A file of torch's with `payload` as its pickle."""
    if legacy:
        head = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + payload)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", payload)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
    return path


def gadget(path, module, name, canary, legacy):
    """A file whose unpickling would call module.name with a command that makes `canary`."""
    call = f"c{module}\n{name}\n".encode() + b"(X" + struct.pack("<I", len(canary)) + canary.encode() + b"tR"
    return pickled(path, b"\x80\x02}X\x01\x00\x00\x00a" + call + b"s.", legacy)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_gadget_of_a_pickle_runs(legacy, tmp_path):
    assert len(GADGETS) == len(set(GADGETS)) >= 80
    for module, name in GADGETS:
        path = gadget(tmp_path / "bad.pth", module, name, f"touch {tmp_path}/canary", legacy)
        with pytest.raises(pickle.UnpicklingError):
            read_here(path)
        assert not (tmp_path / "canary").exists(), (module, name)


def test_the_canary_would_sing(tmp_path):
    path = gadget(tmp_path / "bad.pth", "os", "system", f"touch {tmp_path}/canary", legacy=False)
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read("archive/data.pkl"))
    assert (tmp_path / "canary").exists()


def test_a_gadget_is_refused_by_name_through_the_child(tmp_path):
    path = gadget(tmp_path / "bad.pth", "posix", "system", f"touch {tmp_path}/canary", legacy=True)
    with pytest.raises(InputError, match=" as plain tensors: it refers to posix.system, which is code. Save"):
        read_state(path)
    assert not (tmp_path / "canary").exists()


# Damage


def files_of(folder):
    safetensors.torch.save_file({k: v.contiguous() for k, v in TENSORS.items()}, folder / "a.safetensors")
    tree = {"params": {"conv": {"kernel": ndarray(np.ones((2, 3), np.float32))}}}
    (folder / "a.msgpack").write_bytes(msgpack.packb(tree))
    return folder / "a.safetensors", folder / "a.msgpack"


def mutated(data, chance):
    data = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.choice([0, 255, 127, 128])
        elif kind == 2:
            del data[place : place + chance.randrange(1, 9)]
        else:
            data[place:place] = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9)))
        if not data:
            return b"\x00"
    return bytes(data)


@pytest.mark.parametrize("which", [0, 1])
def test_damaged_files_are_refused_or_read_and_never_crash(which, tmp_path):
    path, chance = files_of(tmp_path)[which], random.Random(which)
    whole = path.read_bytes()
    refused = 0
    for _ in range(1500):
        path.write_bytes(mutated(whole, chance))
        if path.read_bytes()[:2] == b"PK":
            continue
        try:
            read_state(path)
        except SkipwayError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
    assert refused > 200


@pytest.mark.parametrize("legacy", [False, True])
def test_damaged_pickles_are_refused_or_read_and_never_crash(legacy, tmp_path):
    path, chance = saved(tmp_path / "a.pth", TENSORS, legacy), random.Random(legacy)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        path.write_bytes(mutated(whole, chance))
        try:
            read_here(path)
        except Exception:
            refused += 1
    assert refused > 50


def test_one_changed_bit_of_a_zip_file_is_never_read_as_other_numbers(tmp_path):
    path, chance = saved(tmp_path / "a.pth", TENSORS), random.Random(0)
    whole, refused = path.read_bytes(), 0
    for _ in range(400):
        data = bytearray(whole)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            assert same(read_here(path))
        except AssertionError:
            raise
        except Exception:
            refused += 1
    assert refused > 100


def test_a_damaged_pickle_is_one_line(tmp_path):
    path = saved(tmp_path / "a.pth", TENSORS)
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match=" as plain tensors: ") as refused:
        read_state(path)
    assert len(str(refused.value).splitlines()) == 1
