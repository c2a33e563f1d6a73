"""The catalogue's gadgets: pickles that would do something when loaded, each of which makes a file to prove it."""

import _io
import bdb
import bz2
import code
import codecs
import collections
import ctypes
import functools
import gzip
import importlib
import io
import itertools
import lzma
import marshal
import operator
import os
import pathlib
import pickle
import pkgutil
import posix
import profile
import py_compile
import runpy
import shutil
import struct
import subprocess
import tarfile
import timeit
import trace
import urllib.request
import warnings
import zipfile

import numpy as np
import pandas
import pytest
import safetensors.torch
import torch

from skipway.errors import InputError
from skipway.weights import unpickle_worker
from skipway.weights.read_foreign_checkpoint import read_state


class Call:
    """Pickled as a call of `function`, which may be what another Call gives, as may the arguments."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __call__(self):
        raise AssertionError("only there so that pickle takes a Call for a function")

    def __reduce__(self):
        return self.parts


def source(canary):
    return f"__import__('os').mkdir({str(canary)!r})"


def stored(canary, content):
    """A file beside the canary, for what reads its gadget from one."""
    beside = canary.with_name("beside")
    beside.write_bytes(content)
    return str(beside)


def in_legacy(canary):
    buffer = io.BytesIO()
    torch.save(Call(os.mkdir, str(canary)), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def function_of(canary):
    return Call(function_type(), Call(marshal.loads, marshal.dumps(compile(source(canary), "", "eval"))), {})


def function_type():
    return Call(getattr, module("types"), "FunctionType")


def module(name):
    return Call(importlib.import_module, name)


# Each: how its file is made, from the canary's path.
GADGETS = {
    "os.system": lambda c: Call(os.system, f"touch {c}"),
    "posix.mkdir": lambda c: Call(posix.mkdir, str(c)),
    "os.makedirs": lambda c: Call(os.makedirs, str(c)),
    "os.mkfifo": lambda c: Call(os.mkfifo, str(c)),
    "os.mknod": lambda c: Call(os.mknod, str(c)),
    "os.symlink": lambda c: Call(os.symlink, "/", str(c)),
    "os.link": lambda c: Call(os.link, stored(c, b""), str(c)),
    "os.rename": lambda c: Call(os.rename, stored(c, b""), str(c)),
    "os.replace": lambda c: Call(os.replace, stored(c, b""), str(c)),
    "os.open": lambda c: Call(os.close, Call(os.open, str(c), os.O_CREAT)),
    "os.spawnlp": lambda c: Call(os.spawnlp, os.P_WAIT, "touch", "touch", str(c)),
    "os.spawnv": lambda c: Call(os.spawnv, os.P_WAIT, "/bin/sh", ["sh", "-c", f"touch {c}"]),
    "os.popen": lambda c: Call(Call(getattr, Call(os.popen, f"touch {c}"), "read")),
    "subprocess.call": lambda c: Call(subprocess.call, ["touch", str(c)]),
    "subprocess.run": lambda c: Call(subprocess.run, ["touch", str(c)]),
    "subprocess.check_call": lambda c: Call(subprocess.check_call, ["touch", str(c)]),
    "subprocess.check_output": lambda c: Call(subprocess.check_output, ["touch", str(c)]),
    "subprocess.getoutput": lambda c: Call(subprocess.getoutput, f"touch {c}"),
    "subprocess.getstatusoutput": lambda c: Call(subprocess.getstatusoutput, f"touch {c}"),
    "builtins.eval": lambda c: Call(eval, source(c)),
    "builtins.exec": lambda c: Call(exec, source(c)),
    "builtins.compile": lambda c: Call(exec, Call(compile, source(c), "", "exec")),
    "builtins.open": lambda c: Call(open, str(c), "w"),
    "builtins.__import__": lambda c: Call(Call(getattr, Call(__import__, "os"), "mkdir"), str(c)),
    "builtins.getattr": lambda c: Call(Call(getattr, module("os"), "mkdir"), str(c)),
    "builtins.map": lambda c: Call(list, Call(map, os.mkdir, [str(c)])),
    "builtins.filter": lambda c: Call(tuple, Call(filter, os.mkdir, [str(c)])),
    "io.open": lambda c: Call(io.open, str(c), "w"),
    "io.FileIO": lambda c: Call(io.FileIO, str(c), "w"),
    "_io.open_code": lambda c: Call(_io.open, str(c), "ab"),
    "codecs.open": lambda c: Call(codecs.open, str(c), "w"),
    "gzip.open": lambda c: Call(gzip.open, str(c), "w"),
    "bz2.open": lambda c: Call(bz2.open, str(c), "w"),
    "lzma.open": lambda c: Call(lzma.open, str(c), "w"),
    "zipfile.ZipFile": lambda c: Call(zipfile.ZipFile, str(c), "w"),
    "tarfile.open": lambda c: Call(tarfile.open, str(c), "w"),
    "pathlib.Path.touch": lambda c: Call(Call(getattr, Call(pathlib.PosixPath, str(c)), "touch")),
    "pathlib.Path.mkdir": lambda c: Call(Call(getattr, pathlib.Path, "mkdir"), c),
    "shutil.copyfile": lambda c: Call(shutil.copyfile, stored(c, b""), str(c)),
    "shutil.copy": lambda c: Call(shutil.copy, stored(c, b""), str(c)),
    "shutil.move": lambda c: Call(shutil.move, stored(c, b""), str(c)),
    "urllib.request.urlretrieve": lambda c: Call(urllib.request.urlretrieve, f"file://{stored(c, b'')}", str(c)),
    "runpy.run_path": lambda c: Call(runpy.run_path, stored(c, source(c).encode())),
    "py_compile.compile": lambda c: Call(py_compile.compile, stored(c, b"1"), str(c)),
    "timeit.timeit": lambda c: Call(timeit.timeit, "pass", source(c), timeit.default_timer, 1),
    "profile.Profile.run": lambda c: Call(Call(getattr, Call(profile.Profile), "run"), source(c)),
    "bdb.Bdb.run": lambda c: Call(Call(getattr, Call(bdb.Bdb), "runeval"), source(c), {}),
    "trace.Trace.run": lambda c: Call(Call(getattr, Call(trace.Trace, 0, 0), "run"), source(c)),
    "code.InteractiveInterpreter.runsource": lambda c: Call(
        Call(getattr, Call(code.InteractiveInterpreter), "runsource"), source(c)
    ),
    "pkgutil.resolve_name": lambda c: Call(Call(pkgutil.resolve_name, "os:mkdir"), str(c)),
    "importlib.import_module": lambda c: Call(Call(operator.attrgetter("mkdir"), module("os")), str(c)),
    "operator.methodcaller": lambda c: Call(operator.methodcaller("mkdir", str(c)), module("os")),
    "functools.partial": lambda c: Call(functools.partial(os.mkdir, str(c))),
    "functools.partial sorted": lambda c: Call(functools.partial(sorted, key=os.mkdir), [str(c)]),
    "functools.reduce": lambda c: Call(functools.reduce, os.mkdir, [str(c), 0o700]),
    "itertools.starmap": lambda c: Call(list, Call(itertools.starmap, os.mkdir, [(str(c),)])),
    "types.FunctionType": lambda c: Call(Call(function_type(), Call(compile, source(c), "", "exec"), {})),
    "marshal.loads": lambda c: Call(function_of(c)),
    "pickle.loads": lambda c: Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(c)), 2)),
    "pickle._loads": lambda c: Call(pickle._loads, pickle.dumps(Call(os.mkdir, str(c)), 2)),
    "pickle.Unpickler": lambda c: Call(
        Call(getattr, Call(pickle._Unpickler, Call(io.BytesIO, pickle.dumps(Call(os.mkdir, str(c)), 2))), "load")
    ),
    "ctypes.CDLL": lambda c: Call(Call(getattr, Call(ctypes.CDLL, None), "mkdir"), str(c).encode(), 0o700),
    "pandas.read_pickle": lambda c: Call(pandas.read_pickle, stored(c, pickle.dumps(Call(os.mkdir, str(c)))), None),
    "numpy.load": lambda c: Call(
        functools.partial(np.load, allow_pickle=True), stored(c, pickle.dumps(Call(os.mkdir, str(c)), 2))
    ),
    "numpy.memmap": lambda c: Call(np.memmap, str(c), "uint8", "w+", 0, (1,)),
    "numpy.ndarray.tofile": lambda c: Call(Call(getattr, np.ones(1), "tofile"), str(c)),
    "numpy.core.multiarray._reconstruct": lambda c: np.array([Call(os.mkdir, str(c))], dtype=object),
    "torch.save": lambda c: Call(torch.save, [], str(c)),
    "torch.load": lambda c: Call(functools.partial(torch.load, weights_only=False), stored(c, in_legacy(c))),
    "torch.storage._load_from_bytes": lambda c: Call(torch.storage._load_from_bytes, in_legacy(c)),
    "torch.Tensor.numpy().tofile": lambda c: Call(
        Call(getattr, Call(Call(getattr, torch.ones(1), "numpy")), "tofile"), str(c)
    ),
    "safetensors.torch.save_file": lambda c: Call(safetensors.torch.save_file, {}, str(c)),
    "in an OrderedDict": lambda c: collections.OrderedDict(a=torch.ones(1), b=Call(os.mkdir, str(c))),
    "beside a state_dict": lambda c: {"state_dict": {"a": torch.ones(1)}, "args": Call(os.mkdir, str(c))},
    "in an optimiser": lambda c: {"model": {"a": torch.ones(1)}, "optimizer": [{"lr": Call(os.mkdir, str(c))}]},
}


def payloads(canary, gadget):
    """The gadget as torch.save writes it, old and new, and as a bare pickle."""
    for legacy in (False, True):
        buffer = io.BytesIO()
        torch.save(GADGETS[gadget](canary), buffer, _use_new_zipfile_serialization=not legacy)
        yield buffer.getvalue()
    yield pickle.dumps(GADGETS[gadget](canary), 2)


def sings(canary):
    return os.path.lexists(canary)


def hush(canary):
    if os.path.isdir(canary) and not os.path.islink(canary):
        os.rmdir(canary)
    else:
        os.unlink(canary)


@pytest.mark.parametrize("gadget", GADGETS)
def test_a_gadget_works_where_pickles_are_run_and_not_here(gadget, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "bad.pth"
    contents = list(payloads(canary, gadget))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that the gadgets leave open
        for content in contents[:2]:
            GADGETS[gadget](canary)  # the file beside it, which some of them move
            torch.load(io.BytesIO(content), weights_only=False)
            assert sings(canary), "this gadget does nothing, so that its refusal would prove nothing"
            hush(canary)
    for content in contents:
        path.write_bytes(content)
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            list(unpickle_worker.read(str(path)))
        assert not sings(canary)


def test_there_are_gadgets_enough():
    assert len(GADGETS) >= 70


# How pickle's instructions call: with the canary's path in place of %b.
FORMS = {
    "INST": b"(S'%b'\nios\nmkdir\n.",
    "OBJ": b"(cos\nmkdir\nS'%b'\no.",
    "REDUCE": b"cos\nmkdir\n(S'%b'\ntR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93(S'%b'\ntR.",
    "dotted": b"\x80\x04\x8c\x05torch\x8c\x08os.mkdir\x93(S'%b'\ntR.",
    "memo": b"cos\nmkdir\nq\x00h\x00(S'%b'\ntR.",
    "two pickles in one": b"cos\nmkdir\n(S'%b'\ntR0].",
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_call_is_refused(form, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "bad.pth"
    payload = FORMS[form] % os.fsencode(canary)
    pickle.loads(payload)
    assert sings(canary)
    hush(canary)
    head = b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
    for content in (head + payload, (tmp_path / "new.pth").read_bytes()):
        path.write_bytes(content)
        with pytest.raises((pickle.UnpicklingError, ValueError)):
            list(unpickle_worker.read(str(path)))
        assert not sings(canary)


def test_a_gadget_in_a_sound_checkpoint_is_refused_with_its_name(tmp_path):
    canary = tmp_path / "canary"
    torch.save(GADGETS["beside a state_dict"](canary), tmp_path / "bad.pth")
    with pytest.raises(InputError, match="bad.pth as plain tensors: it refers to (posix|os).mkdir, which"):
        read_state(tmp_path / "bad.pth")
    assert not sings(canary)


# Lies in the headers of safetensors, each refused in less than a second.


def entry(shape, begin, end):
    return f'{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}'


@pytest.mark.parametrize(
    "header",
    [
        "{" + ",".join(f'"t{i}":{entry([0], 0, 0)}' for i in range(10**5)) + "}",
        '{"a":' + entry([2**63], 0, 8) + "}",
        '{"a":' + entry([2**31, 2**31, 2**31], 0, 8) + "}",
        '{"a":' + entry([2], 0, 8) + ',"b":' + entry([1], 4, 8) + "}",
        '{"a":' + entry([0], 0, 8) + "}",
        '{"a":' + entry([2], 8, 0) + "}",
        '{"a":' + entry([2], -8, 0) + "}",
        '{"a":' + entry([1], 4, 8) + "}",
        '{"a":' + entry([2], 0, 8) + ',"a":' + entry([2], 0, 8) + "}",
        '{"a":' + "[" * 10**5 + "}",
        '{"a":' + '{"b":' * 10**5 + "}",
        '{"__metadata__":{"a":"' + "x" * (17 * 2**20) + '"}}',
        '{"__metadata__":{' + ",".join(f'"{i}":""' for i in range(6 * 10**5)) + "}}",
        '{"a":' + entry("[NaN]", 0, 8) + "}",
        '{"a":7}',
        '{"a":{"shape":[2]}}',
        "{]",
        "{\xff}",
    ],
    ids=range(18),
)
def test_headers_that_lie_are_refused_at_once(header, tmp_path):
    text = header.encode("latin-1")
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    began = os.times()
    with pytest.raises(InputError, match="damaged: |cannot use the header") as refused:
        read_state(path)
    ended = os.times()
    assert sum(ended[:2]) - sum(began[:2]) < 1 and len(str(refused.value).splitlines()) == 1
