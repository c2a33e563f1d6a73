import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import struct
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from faulty_disk import FaultyOs, each_fault, each_kill, failing, failing_after, forked, killing, temporaries

from skipway.errors import InputError, NotFiniteError, StorageError
from skipway.training import checkpoint
from skipway.utils import atomic_files
from skipway.utils.run_schema import SCHEMA, NewerSchema

FILES = ("tensors.safetensors", "state.json", "MANIFEST.json")


@pytest.fixture
def tmp_path(tmp_path):
    """In memory where there is room: these tests flush thousands of times, and no power is cut in them."""
    if not os.path.isdir("/dev/shm") or atomic_files.free_bytes(Path("/dev/shm")) < 2**28:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def tensors_of(step):
    return {
        "stage1.conv.weight": (torch.arange(36.0) + step).reshape(3, 3, 2, 2).to(memory_format=torch.channels_last),
        "stage1.norm.weight": torch.arange(6.0) * step,
        "stage1.norm.count": torch.tensor(step),
        "head.weight": torch.full((2, 3), step + 0.5, dtype=torch.bfloat16),
    }


def state_of(step):
    history = [{"epoch": i, "loss": 1 / (i + step)} for i in range(3)]
    return {"epoch": step, "best": 0.1 + step, "name": "é", "nested": {"list": [1, None, True]}, "history": history}


def save(folder, step, **options):
    return checkpoint.save_checkpoint(folder, step, tensors_of(step), state_of(step), **options)


def same(found, wanted):
    return list(found) == list(wanted) and all(
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a, b)
        for a, b in zip(found.values(), wanted.values(), strict=True)
    )


def is_step(loaded, step):
    return loaded.step == step and same(loaded.tensors, tensors_of(step)) and loaded.state == state_of(step)


def steps(folder):
    return sorted(name for name in os.listdir(folder))


def forge(path, **changes):
    """Rewrite a step's manifest with `changes`, under a checksum that is right again."""
    values = json.loads((path / "MANIFEST.json").read_text())
    del values["sha256"]
    values.update(changes)
    seal = hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()
    (path / "MANIFEST.json").write_text(json.dumps({"sha256": seal, **values}))


def put(path, name, data):
    """Put `data` into a file of a step, with a manifest that vouches for it."""
    (path / name).write_bytes(data)
    files = json.loads((path / "MANIFEST.json").read_text())["files"]
    files[name] = {"bytes": len(data), "sha256": atomic_files.sha256(data)}
    forge(path, files=files)


# What goes in comes out.


def test_a_step_comes_back_as_it_was_saved(tmp_path):
    (tmp_path / "weights").mkdir()
    path = save(tmp_path / "weights" / "last", 123)
    assert path == tmp_path / "weights" / "last" / "step-00000123" and sorted(os.listdir(path)) == sorted(FILES)
    loaded = checkpoint.load_checkpoint(tmp_path / "weights" / "last")
    assert is_step(loaded, 123) and loaded.path == path and loaded.refused == ()
    manifest = json.loads((path / "MANIFEST.json").read_text())
    assert manifest["schema"] == SCHEMA and manifest["step"] == 123
    assert manifest["torch"] == torch.__version__ and isinstance(manifest["skipway"], str)
    assert manifest["files"]["state.json"]["sha256"] == atomic_files.sha256((path / "state.json").read_bytes())


def layouts():
    image = torch.randn(4, 3, 5, 6)
    shared = torch.randn(8)
    return {
        "plain": image,
        "channels_last": image.to(memory_format=torch.channels_last),
        "channels_last of one channel": torch.randn(4, 1, 3, 3).to(memory_format=torch.channels_last),
        "channels_last_3d": torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d),
        "turned": torch.randn(3, 4).t(),
        "holes": torch.randn(6, 6)[::2, ::3],
        "expanded": torch.randn(3, 1).expand(3, 4),
        "overlapping": torch.arange(5.0).as_strided((3, 3), (1, 1)),
        "shared": shared,
        "shared again": shared,
        "part of shared": shared[2:5],
        "rest of shared": shared[5:],
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "empty channels_last": torch.empty(0, 3, 2, 2).to(memory_format=torch.channels_last),
        "bool": torch.tensor([True, False]),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.arange(3, dtype=torch.uint8),
        "bfloat16": torch.randn(3).bfloat16(),
        "half": torch.randn(3).half(),
        "double": torch.randn(3).double(),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "float8": torch.ones(3).to(torch.float8_e4m3fn),
        'a name/with "quotes" and é': torch.ones(1),
    }


def test_every_layout_and_dtype_comes_back_with_its_values_and_strides(tmp_path):
    tensors = layouts()
    checkpoint.save_checkpoint(tmp_path, 1, tensors, {})
    loaded = checkpoint.load_checkpoint(tmp_path).tensors
    assert list(loaded) == list(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape, name
        assert tensor.is_complex() or torch.equal(loaded[name].float(), tensor.detach().float()), name
        if name not in ("holes", "expanded", "overlapping", "rest of shared"):
            assert loaded[name].stride() == tensor.stride(), name
    assert torch.equal(loaded["complex"], tensors["complex"].resolve_conj())
    loaded["shared"].zero_()
    assert loaded["shared again"].any(), "each loaded tensor has memory of its own"


def test_no_tensors_and_no_state_are_a_step_too(tmp_path):
    checkpoint.save_checkpoint(tmp_path, 0, {}, {})
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert (loaded.step, loaded.tensors, loaded.state) == (0, {}, {})


def test_weights_come_back_with_their_header(tmp_path):
    tensors, header = layouts(), {"plan": {"depths": [2, 2]}, "spec": {"class_names": ["é", "\udcff", "<b>"]}, "x": 0.1}
    checkpoint.save_weights(tmp_path / "best.safetensors", tensors, header)
    loaded, found = checkpoint.load_weights(tmp_path / "best.safetensors")
    assert found == header and list(found) == list(header) and set(loaded) == set(tensors)
    assert all(torch.equal(loaded[n].float(), t.detach().float()) for n, t in tensors.items() if not t.is_complex())
    with safetensors.safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert json.loads(file.metadata()["skipway"]) == header


@pytest.mark.parametrize("move", ["symlink", "moved", "elsewhere"])
def test_a_run_folder_may_be_linked_moved_or_seen_from_elsewhere(tmp_path, monkeypatch, move):
    real = tmp_path / "real"
    real.mkdir()
    if move == "symlink":
        (tmp_path / "link").symlink_to(real)
        save(tmp_path / "link" / "last", 1)
        found = tmp_path / "link" / "last"
    elif move == "moved":
        save(real / "last", 1)
        found = (real / "last").rename(tmp_path / "moved")
    else:
        monkeypatch.chdir(real)
        save(Path("last"), 1)
        monkeypatch.chdir(tmp_path)
        found = Path("real/last")
    assert is_step(checkpoint.load_checkpoint(found), 1)
    save(found, 2)
    assert is_step(checkpoint.load_checkpoint(found), 2)
    assert not any(str(tmp_path).encode() in (p.read_bytes()) for p in tmp_path.rglob("*.json"))


# Nothing that is not finite, and nothing that does not fit.


@pytest.mark.parametrize("bad, kind", [(float("nan"), "NaN"), (float("inf"), "infinity"), (-float("inf"), "infinity")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_weights_that_are_not_finite_are_never_written(tmp_path, bad, kind, dtype):
    tensors = {f"stage{i}.weight": torch.tensor([1.0, bad]).to(dtype) for i in range(5)} | {"fine": torch.ones(2)}
    names = "'stage0.weight', 'stage1.weight', 'stage2.weight' and 2 more"
    message = f"cannot save weights: expected finite values, got {kind}: {names}. Start again with a lower --lr."
    with pytest.raises(NotFiniteError, match=message):
        checkpoint.save_checkpoint(tmp_path / "last", 1, tensors, {})
    with pytest.raises(NotFiniteError, match=message):
        checkpoint.save_weights(tmp_path / "best.safetensors", tensors, {})
    assert os.listdir(tmp_path) == []


def test_a_float8_nan_is_found():
    tensor = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    assert checkpoint._describe_nonfinite({"a": tensor}) == "NaN: 'a'"


def test_a_nan_in_a_checkpoint_is_refused_by_its_name_and_the_step_before_is_used(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    bad = tensors_of(2) | {"stage1.norm.weight": torch.full((6,), float("nan"))}
    put(path, "tensors.safetensors", safetensors.torch.save({n: t.contiguous() for n, t in bad.items()}))
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1)
    assert loaded.refused == (
        "step-00000002/tensors.safetensors: expected finite tensors, got NaN: 'stage1.norm.weight'",
    )


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": torch.ones(2, dtype=torch.complex128)},
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {"__metadata__": torch.ones(2)},
        {"\udcff": torch.ones(2)},
        {1: torch.ones(2)},
    ],
)
def test_tensors_that_safetensors_cannot_hold_are_refused(tmp_path, tensors):
    with pytest.raises(InputError, match="cannot write tensors as safetensors: .*Pass dense tensors"):
        checkpoint.save_checkpoint(tmp_path / "last", 1, tensors, {})
    with pytest.raises(InputError, match="cannot write tensors as safetensors"):
        checkpoint.save_weights(tmp_path / "best.safetensors", tensors, {})
    assert os.listdir(tmp_path) == []


def test_a_tensor_cannot_have_the_name_of_the_metadata(tmp_path):
    with pytest.raises(InputError, match="the name '__metadata__' is reserved"):
        checkpoint.save_checkpoint(tmp_path, 1, {"__metadata__": torch.ones(2)}, {})


def test_a_state_that_does_not_fit_into_json_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot encode the state at step 7 as JSON"):
        checkpoint.save_checkpoint(tmp_path / "last", 7, {}, {"a": object()})
    with pytest.raises(NotFiniteError, match="cannot encode the state at step 7 as strict JSON"):
        checkpoint.save_checkpoint(tmp_path / "last", 7, {}, {"a": float("nan")})
    with pytest.raises(NotFiniteError, match="cannot encode the header of .*best.safetensors as strict JSON"):
        checkpoint.save_weights(tmp_path / "best.safetensors", {}, {"a": float("nan")})
    with pytest.raises(InputError, match="expected keep >= 1 and step >= 0, got keep 0 and step -1"):
        checkpoint.save_checkpoint(tmp_path / "last", -1, {}, {}, keep=0)
    assert os.listdir(tmp_path) == []


# Damage.


def test_a_step_truncated_at_any_byte_of_any_file_is_refused_and_the_one_before_it_used(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    lengths = 0
    for name in FILES:
        whole = (path / name).read_bytes()
        for length in reversed(range(len(whole))):
            os.truncate(path / name, length)
            loaded = checkpoint.load_checkpoint(tmp_path)
            assert loaded.step == 1 and loaded.refused[0].startswith(f"step-00000002/{name}: "), (name, length)
            if name != "MANIFEST.json":
                assert loaded.refused[0].endswith(f"expected {len(whole)} bytes, got {length}")
            lengths += 1
        (path / name).write_bytes(whole)
    assert is_step(checkpoint.load_checkpoint(tmp_path), 2)
    assert lengths > 1000
    print(f"{lengths} lengths")


def test_weights_truncated_at_any_byte_are_refused(tmp_path):
    path = tmp_path / "best.safetensors"
    checkpoint.save_weights(path, tensors_of(1), state_of(1))
    whole = path.read_bytes()
    for length in reversed(range(len(whole))):
        os.truncate(path, length)
        message = r"its header is truncated after|expected \d+ bytes, got \d+. Copy|is an empty file"
        with pytest.raises(InputError, match=message):
            checkpoint.load_weights(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match=f"expected {len(whole)} bytes, got {len(whole) + 1}. Copy the file again"):
        checkpoint.load_weights(path)
    print(f"{len(whole)} lengths")


def each_flip(path):
    """Flip every bit of a file, one at a time; the file is whole again afterwards."""
    whole = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for bit in range(len(whole) * 8):
            place = bit // 8
            file.seek(place)
            file.write(bytes([whole[place] ^ 1 << bit % 8]))
            yield bit
            file.seek(place)
            file.write(whole[place : place + 1])
    assert path.read_bytes() == whole


def test_no_flipped_bit_in_a_step_is_loaded_in_silence(tmp_path):
    path = save(tmp_path, 2)
    tried = harmless = 0
    for name in FILES:
        for bit in each_flip(path / name):
            tried += 1
            try:
                loaded = checkpoint.load_checkpoint(tmp_path)
            except InputError as error:
                assert f"step-00000002/{name}" in str(error), (name, bit)
                assert not isinstance(error, NewerSchema), "damage passes for a newer schema"
            else:
                assert is_step(loaded, 2), (name, bit)
                harmless += 1
    print(f"{tried} flips, {harmless} harmless")
    assert tried > 10_000


def test_no_flipped_bit_in_weights_is_loaded_in_silence(tmp_path):
    path = tmp_path / "best.safetensors"
    checkpoint.save_weights(path, tensors_of(1), state_of(1))
    tried = harmless = 0
    for bit in each_flip(path):
        tried += 1
        try:
            tensors, header = checkpoint.load_weights(path)
        except InputError:
            continue
        assert set(tensors) == set(tensors_of(1)) and header == state_of(1), bit
        assert all(torch.equal(tensors[n], t) for n, t in tensors_of(1).items()), bit
        harmless += 1
    print(f"{tried} flips, {harmless} harmless")
    assert tried > 5000


def test_no_zeroed_block_is_loaded_in_silence(tmp_path):
    tensors = {"weight": torch.randn(1000), "bias": torch.randn(300)}
    path = checkpoint.save_checkpoint(tmp_path / "last", 1, tensors, {"rows": list(range(500))})
    checkpoint.save_weights(tmp_path / "best.safetensors", tensors, {"rows": list(range(500))})
    for name in (*(path / name for name in FILES), tmp_path / "best.safetensors"):
        whole = name.read_bytes()
        for start in range(0, len(whole), 512):
            name.write_bytes(whole[:start] + bytes(len(whole[start : start + 512])) + whole[start + 512 :])
            with pytest.raises(InputError):
                checkpoint.load_weights(name) if name.parent == tmp_path else checkpoint.load_checkpoint(
                    tmp_path / "last"
                )
        name.write_bytes(whole)


def test_a_missing_file_or_folder_is_refused_and_the_step_before_it_used(tmp_path):
    save(tmp_path, 1)
    for name in FILES:
        path = save(tmp_path, 2)
        (path / name).unlink()
        loaded = checkpoint.load_checkpoint(tmp_path)
        assert is_step(loaded, 1)
        assert loaded.refused == (f"step-00000002/{name}: cannot be read: No such file or directory",)
    shutil.rmtree(path)
    path.write_text("a file")
    (tmp_path / "step-00000003").mkdir()
    (tmp_path / "step-00000004").symlink_to("nowhere")
    (tmp_path / "step-junk").mkdir()
    (tmp_path / "latest").symlink_to("step-00000099")
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1) and [line[:13] for line in loaded.refused] == [f"step-0000000{i}" for i in (4, 3, 2)]
    assert all("cannot be read" in line for line in loaded.refused)


@pytest.mark.parametrize("is_renamed_back", [False, True])
def test_a_step_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch, is_renamed_back):
    """As a process writes it: the new one next to the old one, which is removed; then the new one gets its name."""
    for step in (8, 9):
        checkpoint.save_checkpoint(tmp_path, step, {"w": torch.full((2,), float(step))}, {"n": step})
    newest, rewritten = tmp_path / "step-00000009", tmp_path / "step-00000009.1"
    read, calls = checkpoint.read_step, []

    def replaced(path, step):
        calls.append(path.name)
        if len(calls) == 1:
            shutil.copytree(newest, rewritten)
            shutil.rmtree(newest)
        try:
            return read(path, step)
        finally:
            if len(calls) == 1 and is_renamed_back:
                rewritten.rename(newest)

    monkeypatch.setattr(checkpoint, "read_step", replaced)
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert loaded.step == 9 and loaded.tensors["w"].tolist() == [9, 9] and not loaded.refused
    last = newest.name if is_renamed_back else rewritten.name
    assert calls == [newest.name, "step-00000008", last]


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\0\xff garbage", "damaged: "),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"step": 1e999}', "is not finite"),
        (b'{"step": ' + b"9" * 10_000 + b"}", "damaged: "),
        (b"[1, 2]", "damaged: the checksum of the manifest does not match"),
        (b"{}", "the checksum of the manifest does not match"),
        (b" " * (16 * 2**20 + 1), "the checksum of the manifest does not match"),
    ],
)
def test_a_manifest_of_garbage_is_refused_and_the_step_before_it_used(tmp_path, data, reason):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "MANIFEST.json").write_bytes(data)
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1) and reason in loaded.refused[0]


@pytest.mark.parametrize(
    "data", [b"garbage", b"[" * 100_000, b'{"a": 1e999}', b'{"a": NaN}', b'{"a": 1, "a": 2}', b"1" * 10_000, b"[]"]
)
def test_a_state_of_garbage_under_a_right_checksum_is_refused(tmp_path, data):
    save(tmp_path, 1)
    put(save(tmp_path, 2), "state.json", data)
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1)
    assert "cannot be parsed although its checksums match" in loaded.refused[0] or "do not match" in loaded.refused[0]


def test_tensors_of_garbage_under_a_right_checksum_are_refused(tmp_path):
    save(tmp_path, 1)
    put(save(tmp_path, 2), "tensors.safetensors", b"\x05\0\0\0\0\0\0\0garbage")
    assert "cannot be parsed although its checksums match" in checkpoint.load_checkpoint(tmp_path).refused[0]
    put(save(tmp_path, 2), "tensors.safetensors", safetensors.torch.save({"other": torch.ones(1)}))
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1)
    assert "the manifest, the state and the tensors do not match" in loaded.refused[0]


@pytest.mark.parametrize(
    "strides",
    [
        [3],
        [3, 0],
        [2, 1],
        [6, 1],
        [3, -1],
        [3, True],
        [2**62, 1],
        [3, 10**30],
        "31",
        None,
        [3, 1, 1],
        [3.0, 1],
        {"a": 1},
    ],
)
def test_strides_that_do_not_fit_are_refused(tmp_path, strides):
    path = save(tmp_path, 2)
    checkpoint.save_checkpoint(tmp_path, 2, {"stage1.weight": torch.ones(2, 3)}, {})
    forge(path, strides={"stage1.weight": strides})
    with pytest.raises(InputError, match="'stage1.weight': expected strides in the manifest that fit the shape"):
        checkpoint.load_checkpoint(tmp_path)
    checkpoint.save_checkpoint(tmp_path, 2, {"empty": torch.empty(0, 3)}, {})
    forge(path, strides={"empty": [2**62, 1]})
    with pytest.raises(InputError, match="expected strides in the manifest that fit the shape"):
        checkpoint.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"files": {}}, "expected an entry in the manifest, got none"),
        ({"files": None}, "expected an entry in the manifest, got none"),
        ({"files": {"tensors.safetensors": [1], "state.json": 2}}, "expected an entry in the manifest, got none"),
        ({"strides": None}, "the tensors do not match"),
        ({"strides": {}}, "the tensors do not match"),
        ({"step": 3}, "expected step 2 as in the folder name, got 3"),
        ({"schema": 0}, "expected schema 1, got 0"),
        ({"schema": "2"}, "expected schema 1, got '2'"),
        ({"schema": None}, "expected schema 1, got none"),
    ],
)
def test_a_manifest_that_says_what_we_never_write_is_refused(tmp_path, changes, reason):
    save(tmp_path, 1)
    forge(save(tmp_path, 2), **changes)
    loaded = checkpoint.load_checkpoint(tmp_path)
    assert is_step(loaded, 1) and reason in loaded.refused[0]


def test_a_flipped_tensor_is_reported_with_both_checksums(tmp_path):
    path = save(tmp_path, 2)
    data = bytearray((path / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "tensors.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"tensors.safetensors: expected checksum \w{12}, got \w{12}"):
        checkpoint.load_checkpoint(tmp_path)


def test_a_folder_without_a_usable_step_is_refused_with_each_reason(tmp_path):
    with pytest.raises(InputError, match="cannot list steps in .*missing: No such file or directory. Pass a run"):
        checkpoint.load_checkpoint(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot load a checkpoint from .*: the folder has no steps. Start a new run"):
        checkpoint.load_checkpoint(tmp_path)
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").unlink()
    with pytest.raises(
        InputError, match="cannot load a checkpoint from .*: step-00000002/state.json: .*; step-00000001/state.json: "
    ) as caught:
        checkpoint.load_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_newer_format_asks_for_an_upgrade_and_nothing_older_stands_in(tmp_path):
    save(tmp_path, 1)
    forge(save(tmp_path, 2), schema=9, skipway="7.8.9")
    (save(tmp_path, 3) / "state.json").unlink()
    message = r"step-00000002/MANIFEST.json: expected schema 1, got 9. Use a newer skipway \(7\.8\.9 wrote it\)"
    with pytest.raises(InputError, match=message):
        checkpoint.load_checkpoint(tmp_path)
    for step in (4, 5, 6):
        save(tmp_path, step)
    assert is_step(checkpoint.load_checkpoint(tmp_path), 6)
    assert "step-00000002" in steps(tmp_path), "what a newer skipway wrote is not ours to remove"


def test_without_an_installed_package_the_version_is_0(monkeypatch):
    def missing(name):
        raise checkpoint.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(checkpoint.metadata, "version", missing)
    assert checkpoint._version() == "0"


# Foreign and hostile weights.


def container(header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def zipped(*names):
    def write(path):
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, "x")

    return write


@pytest.mark.parametrize(
    "content, looks",
    [
        (lambda path: torch.save({"a": torch.ones(2)}, path), "is a PyTorch file that holds a pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is a pickle"),
        (zipped("net/code/__torch__.py", "net/data.pkl"), "is a TorchScript file"),
        (
            zipped("net/archive_format", "net/models/model.json", "net/data/weights/w.pkl"),
            "is an exported PyTorch program",
        ),
        (zipped("metadata.json", "config.json", "model.weights.h5"), "is a Keras file"),
        (zipped("readme.txt"), "is a zip file"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "is an HDF5 file, as Keras writes it"),
        (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch" + bytes(100)), "looks like an ONNX model"),
        (lambda path: path.write_bytes(b"GGUF" + bytes(100)), "is a GGUF file"),
        (lambda path: path.write_bytes(b"\x93NUMPY" + bytes(100)), "is a NumPy array"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html><title>404"), "is a web page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
        (lambda path: path.write_bytes(b"something else"), "is not a safetensors file"),
        (lambda path: path.write_bytes(b""), "is an empty file"),
    ],
)
def test_other_formats_are_refused_by_what_is_in_them(tmp_path, content, looks):
    path = tmp_path / "best.safetensors"
    content(path)
    with pytest.raises(InputError, match=f"expected a .safetensors file of skipway, but it {looks}"):
        checkpoint.load_weights(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, kind in ((".", "a folder"), ("pipe", "a special file"), ("missing", "nothing")):
        with pytest.raises(
            InputError, match=f"expected a file, got {kind}. Pass the weights/best.safetensors of a run"
        ):
            checkpoint.load_weights(tmp_path / name)


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    checkpoint.save_weights(tmp_path / "a", {}, {})

    def broken(file, where):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_read_notes", broken)
    message = "cannot read .*: Input/output error. Check the disk and the file permissions"
    with pytest.raises(InputError, match=message):
        checkpoint.load_weights(tmp_path / "a")


def test_another_tools_safetensors_and_a_newer_format_are_told_apart_from_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    for metadata in (None, {"format": "pt"}):
        safetensors.torch.save_file({"a": torch.ones(2)}, path, metadata)
        with pytest.raises(InputError, match="expected weights of skipway, got plain safetensors. Use create_model"):
            checkpoint.load_weights(path)
    notes = {"skipway": "{}", "written_by": '{"schema": 5, "version": "3.2"}', "sha256": "?"}
    safetensors.torch.save_file({"a": torch.ones(2)}, path, notes)
    with pytest.raises(InputError, match=r"expected schema 1, got 5\. Use a newer skipway \(3\.2 wrote it\)"):
        checkpoint.load_weights(path)


def test_weights_with_a_right_checksum_and_a_nan_are_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_describe_nonfinite", lambda tensors: "")
        checkpoint.save_weights(tmp_path / "a", {"head.bias": torch.tensor([float("nan")])}, {})
    with pytest.raises(InputError, match="expected finite weights, got NaN: 'head.bias'. Train the model again"):
        checkpoint.load_weights(tmp_path / "a")


def test_another_files_checksum_does_not_fit(tmp_path):
    checkpoint.save_weights(tmp_path / "a", {"a": torch.zeros(2)}, {})
    data = bytearray((tmp_path / "a").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match="its checksum does not match. Copy the file again"):
        checkpoint.load_weights(tmp_path / "a")


NOTES = {"skipway": "{}", "written_by": '{"schema": 1, "version": "0"}', "sha256": "?"}
U8 = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "data",
    [
        container(
            {"__metadata__": NOTES} | {f"t{i}": U8 | {"shape": [0], "data_offsets": [0, 0]} for i in range(30_000)}
        ),
        container({"__metadata__": NOTES, "a": U8 | {"shape": [2**63]}}, b"12"),
        container({"__metadata__": NOTES, "a": U8 | {"shape": [2**62, 4]}}, b"12"),
        container({"__metadata__": NOTES, "a": U8, "b": U8 | {"data_offsets": [1, 3]}}, b"123"),
        container({"__metadata__": NOTES, "a": U8 | {"data_offsets": [0, 2**63]}}, b"12"),
        container({"__metadata__": NOTES, "a": U8 | {"data_offsets": [2, 0]}}, b""),
        container({"__metadata__": NOTES, "a": U8 | {"data_offsets": []}}, b""),
        container({"__metadata__": NOTES, "a": U8 | {"data_offsets": ["x", "y"]}}, b""),
        container({"__metadata__": NOTES, "a": U8 | {"dtype": "F4", "data_offsets": [0, 1]}}, b"1"),
        container({"__metadata__": NOTES, "a": 7}, b""),
        container({"__metadata__": NOTES | {"skipway": 1}}),
        container({"__metadata__": NOTES | {"written_by": 1}}),
        container({"__metadata__": NOTES | {"written_by": "[]"}}),
        container({"__metadata__": NOTES | {"written_by": "[" * 100_000}}),
        container({"__metadata__": NOTES | {"written_by": '{"schema": 0, "version": 0}'}}),
        container({"__metadata__": NOTES | {"skipway": "[" * 1_000_000}}),
        container({"__metadata__": None}),
        container(b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"a":{"dtype":"U8","shape":[2]}}', b"12"),
        container(b'{"a":' * 1_000_000),
        container(b'{"a":[' + b"{}," * 5_000_000 + b"{}]}"),
        container(b'{"a":[' + b"1e1," * 4_000_000 + b"1]}"),
        container(b'{"a":[' + b"1e1," * 490_000 + b"1]}"),
        container(b"{" + b" " * (17 * 2**20) + b"}"),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
    ],
    ids=lambda data: data[8:40].decode("ascii", "replace"),
)
def test_a_header_that_lies_is_refused_within_a_second(tmp_path, data):
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    start = time.process_time()
    refusals = "damaged: .*Copy the file|cannot use the header|truncated|checksum|bytes, got|plain safetensors|schema"
    with pytest.raises(InputError, match=refusals):
        checkpoint.load_weights(path)
    assert time.process_time() - start < 1


def test_more_than_is_read_is_not_written(tmp_path):
    for tensors, header in (
        (dict.fromkeys(map(str, range(20_001)), torch.empty(0)), {}),
        ({}, {"a": "x" * 2**24}),
        ({}, {"a": [1] * 500_000}),
    ):
        with pytest.raises(InputError, match="cannot use the header: expected at most 16777216 bytes, 20000"):
            checkpoint.save_weights(tmp_path / "a", tensors, header)
    assert os.listdir(tmp_path) == []


# Faults while saving.


def save_two_steps(folder):
    shutil.rmtree(folder, ignore_errors=True)
    for step in (1, 2):
        save(folder, step)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("again", [False, True])
def test_a_failure_at_any_call_of_a_save_is_a_storage_error_and_the_old_step_loads(tmp_path, monkeypatch, code, again):
    new = 2 if again else 3

    def work(when):
        checkpoint.save_checkpoint(tmp_path / "last", new, tensors_of(3), state_of(3))

    def check(when, raised, log):
        assert raised, f"call {when} ({log[-1]}) failed in silence"
        assert os.strerror(code) in raised and "bytes needed" in raised and "bytes free" in raised
        assert "step-0000000" in raised and "\n" not in raised
        assert temporaries(tmp_path) == []
        loaded = checkpoint.load_checkpoint(tmp_path / "last")
        assert loaded.refused == ()
        assert loaded.state in (state_of(2), state_of(3)) and same(loaded.tensors, tensors_of(loaded.state["epoch"]))
        outcomes.add(loaded.state["epoch"])
        save_two_steps(tmp_path / "last")

    outcomes = set()
    save_two_steps(tmp_path / "last")
    points = each_fault(monkeypatch, failing(code), work, check)
    assert points > 20 and outcomes == {2, 3}
    print(f"{points} points")


@pytest.mark.parametrize(("new", "renames"), [(3, 2), (2, 3)])
def test_a_rename_of_a_save_that_fails_after_it_took_place_loses_no_step(tmp_path, monkeypatch, new, renames):
    def work(when):
        checkpoint.save_checkpoint(tmp_path / "last", new, tensors_of(3), state_of(3))

    def check(when, raised, log):
        assert raised and "No such file or directory" in raised and "step-0000000" in raised and "\n" not in raised
        loaded = checkpoint.load_checkpoint(tmp_path / "last")
        assert loaded.refused == () and loaded.state == state_of(3) and same(loaded.tensors, tensors_of(3))
        save(tmp_path / "last", 4)
        assert is_step(checkpoint.load_checkpoint(tmp_path / "last"), 4) and temporaries(tmp_path) == []
        save_two_steps(tmp_path / "last")

    save_two_steps(tmp_path / "last")
    assert each_fault(monkeypatch, failing_after(errno.ENOENT), work, check, ("rename", "replace")) == renames


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_call_of_a_save_leaves_the_old_step_or_the_new_one(tmp_path, again):
    new = 2 if again else 3

    def check(when):
        loaded = checkpoint.load_checkpoint(tmp_path / "last")
        assert loaded.refused == ()
        assert loaded.state in (state_of(2), state_of(3)) and same(loaded.tensors, tensors_of(loaded.state["epoch"]))
        outcomes.add(loaded.state["epoch"])
        save(tmp_path / "last", 4)
        assert is_step(checkpoint.load_checkpoint(tmp_path / "last"), 4) and temporaries(tmp_path) == []
        save_two_steps(tmp_path / "last")

    outcomes = set()
    save_two_steps(tmp_path / "last")
    points = each_kill(lambda _: checkpoint.save_checkpoint(tmp_path / "last", new, tensors_of(3), state_of(3)), check)
    assert points > 20 and outcomes == {2, 3}
    print(f"{points} points")


def test_a_real_full_disk_is_a_storage_error_and_the_old_step_loads(tiny_disk):
    small, large = {"a": torch.randn(50_000)}, {"a": torch.randn(250_000)}
    checkpoint.save_checkpoint(tiny_disk, 1, small, {})
    checkpoint.save_weights(tiny_disk / "best.safetensors", {"a": torch.ones(10)}, {"epoch": 1})
    with pytest.raises(StorageError, match=r"No space left on device \(100.* bytes needed, .* Free disk space"):
        checkpoint.save_checkpoint(tiny_disk, 2, large, {})
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save_weights(tiny_disk / "best.safetensors", large, {"epoch": 2})
    assert same(checkpoint.load_checkpoint(tiny_disk).tensors, small) and steps(tiny_disk) == [
        "best.safetensors",
        "step-00000001",
    ]
    assert checkpoint.load_weights(tiny_disk / "best.safetensors")[1] == {"epoch": 1}


def test_every_file_is_flushed_before_the_step_gets_its_name(tmp_path, monkeypatch):
    save(tmp_path, 1)
    spy = FaultyOs(0, None)
    monkeypatch.setattr(atomic_files, "os", spy)
    save(tmp_path, 2)
    file, folder = ["open", "write", "fsync", "close"], ["open", "fsync", "close"]
    assert spy.log == ["mkdir", *file, *file, *file, *folder, "rename", *folder]


def test_what_is_not_read_back_as_written_is_a_storage_error(tmp_path, monkeypatch):
    save(tmp_path, 1)
    real = atomic_files.rename

    def rename(source, target):
        real(source, target)
        data = (target / "tensors.safetensors").read_bytes()
        (target / "tensors.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    monkeypatch.setattr(atomic_files, "rename", rename)
    with pytest.raises(
        StorageError, match="expected the bytes that were written, got others: .*tensors.safetensors: expected checksum"
    ):
        save(tmp_path, 2)
    assert steps(tmp_path) == ["step-00000001"]


# Rotation.


def test_the_newest_steps_are_kept_by_number_not_by_name(tmp_path):
    for step in (99_999_998, 99_999_999, 100_000_000, 100_000_001):
        save(tmp_path, step, keep=3)
    assert steps(tmp_path) == ["step-100000000", "step-100000001", "step-99999999"]
    assert is_step(checkpoint.load_checkpoint(tmp_path), 100_000_001)
    save(tmp_path, 100_000_002, keep=1)
    assert steps(tmp_path) == ["step-100000002"]


def test_damaged_steps_do_not_count_towards_those_kept(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (save(tmp_path, 3) / "state.json").write_text("{}")
    save(tmp_path, 4)
    assert steps(tmp_path) == ["step-00000002", "step-00000003", "step-00000004"], "1 went with 3, 3 is no second"
    (tmp_path / "step-00000004" / "MANIFEST.json").unlink()
    assert is_step(checkpoint.load_checkpoint(tmp_path), 2)


def test_a_damaged_step_that_looks_newer_never_displaces_a_good_one(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000900")
    for step in (2, 3):
        save(tmp_path, step, keep=1)
        loaded = checkpoint.load_checkpoint(tmp_path)
        assert is_step(loaded, step) and "step-00000900" in loaded.refused[0]
    assert steps(tmp_path) == ["step-00000003", "step-00000900"]


def test_a_step_is_kept_by_the_save_that_wrote_it_even_where_newer_ones_stand(tmp_path):
    for step in (200, 300):
        save(tmp_path, step)
    save(tmp_path, 100)
    assert steps(tmp_path) == ["step-00000100", "step-00000200", "step-00000300"]


def test_a_step_saved_again_replaces_itself(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2)
    for epoch in (5, 6):
        path = checkpoint.save_checkpoint(tmp_path, 2, tensors_of(epoch), state_of(epoch))
        assert path.name == "step-00000002" and steps(tmp_path) == ["step-00000001", "step-00000002"]
        assert checkpoint.load_checkpoint(tmp_path).state == state_of(epoch)
    path.rename(tmp_path / "step-00000002.1")  # as a kill just before the last rename leaves it
    assert checkpoint.load_checkpoint(tmp_path).state == state_of(6)
    save(tmp_path, 2)
    assert steps(tmp_path) == ["step-00000001", "step-00000002"] and is_step(checkpoint.load_checkpoint(tmp_path), 2)


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_the_newest_whole_step_is_the_one_that_loads(tmp_path, seed, monkeypatch):
    """Saves, kills, full disks and rot in any order; `good` is what must still be there."""
    chance, good, step = random.Random(seed), set(), 0
    done = {"saved": 0, "killed": 0, "failed": 0, "damaged": 0}

    def here():
        return {int(name[5:13]) for name in os.listdir(tmp_path) if name.startswith("step-")}

    for _ in range(120):
        action = chance.choice(["save", "save", "kill", "fail", "damage"])
        if action == "damage":
            if len(good) > 1:
                victim = chance.choice(sorted(good))
                name, cut = chance.choice(FILES), chance.random() < 0.5
                for path in tmp_path.glob(f"step-{victim:08d}*"):  # a kill may have left two of one step
                    data = bytearray((path / name).read_bytes())
                    place = chance.randrange(len(data))
                    (path / name).write_bytes(data[:place] if cut else data[:place] + b"~~~~" + data[place + 4 :])
                good.discard(victim)
                done["damaged"] += 1
        else:
            step += chance.randint(0 if good and step not in here() - good else 1, 2)
            when = chance.randint(1, 40)
            if action == "save":
                save(tmp_path, step)
            elif action == "kill":

                def child(when=when, step=step):
                    atomic_files.os = FaultyOs(when, killing)
                    save(tmp_path, step)

                done["killed"] += forked(child) != 0
            else:
                with monkeypatch.context() as patch:
                    patch.setattr(atomic_files, "os", FaultyOs(when, failing(errno.ENOSPC)))
                    try:
                        save(tmp_path, step)
                    except StorageError:
                        done["failed"] += 1
            placed = any(p.name.startswith(f"step-{step:08d}") for p in tmp_path.iterdir())
            good = set(sorted(good | ({step} if placed else set()))[-2:])
            done["saved"] += placed
        if good:
            loaded = checkpoint.load_checkpoint(tmp_path)
            assert is_step(loaded, max(good)), (action, good, loaded.refused)
            assert good <= here(), "rotation took a good one"
    assert min(done.values()) > 5, done


def test_a_run_folder_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(StorageError, match="cannot save step 1: expected the folder .*weights, got none"):
        checkpoint.save_checkpoint(tmp_path / "run" / "weights" / "last", 1, {}, {})
    assert not list(tmp_path.iterdir())
