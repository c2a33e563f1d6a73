import ctypes
import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from faulty_disk import FaultyOs, each_fault, each_kill, failing, failing_after, forked, temporaries
from processes import run_python

from skipway.errors import InputError, NotFiniteError, StorageError
from skipway.utils import atomic_files, file_locks

resource = pytest.importorskip("resource", reason="faults are injected with fork and signals, which Windows has not")
fcntl = pytest.importorskip("fcntl")


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    atomic_files.write_file(path, b"old")
    atomic_files.write_file(path, b"")
    assert path.read_bytes() == b""
    atomic_files.write_file(path, b"new" * 1000)
    assert path.read_bytes() == b"new" * 1000
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("name", "reason"), [("pipe", "expected a regular file, got a device"), ("", "Is a directory")]
)
@pytest.mark.parametrize("is_link", [False, True])
def test_a_file_never_takes_the_place_of_a_device_or_a_folder(tmp_path, monkeypatch, name, reason, is_link):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StorageError, match=f"cannot write .*: {reason}"):
        atomic_files.write_file(Path("link" if is_link else name), b"new")
    assert sorted(os.listdir()) == ["link", "pipe"] and stat.S_ISFIFO(os.stat("pipe").st_mode)
    assert os.path.islink("link")


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    spy = FaultyOs(0, None)
    monkeypatch.setattr(atomic_files, "os", spy)
    atomic_files.write_file(tmp_path / "a.bin", b"data")
    assert spy.log == ["open", "write", "fsync", "close", "replace", "open", "fsync", "close"]


def test_a_write_that_takes_one_byte_at_a_time_still_writes_all(tmp_path, monkeypatch):
    spy = FaultyOs(0, None)
    monkeypatch.setattr(FaultyOs, "write", lambda self, fd, data: os.write(fd, data[:1]), raising=False)
    monkeypatch.setattr(atomic_files, "os", spy)
    atomic_files.write_file(tmp_path / "a.bin", b"0123456789")
    assert (tmp_path / "a.bin").read_bytes() == b"0123456789"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.EBUSY])
def test_a_failure_at_any_call_of_a_write_is_a_storage_error_and_leaves_no_temporary_file(tmp_path, monkeypatch, code):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def check(when, raised, log):
        assert raised, f"call {when} ({log[-1]}) failed in silence"
        assert str(path) in raised and os.strerror(code) in raised
        assert "3 bytes needed" in raised and "bytes free)" in raised and "-o" in raised
        assert path.read_bytes() == (b"new" if "replace" in log[:-1] and log[when - 1] != "replace" else b"old")
        assert temporaries(tmp_path) == []
        path.write_bytes(b"old")

    assert each_fault(monkeypatch, failing(code), lambda _: atomic_files.write_file(path, b"new"), check) == 8


def test_a_kill_at_any_call_of_a_write_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    seen = set()

    def check(when):
        seen.add(path.read_bytes())
        path.write_bytes(b"old")

    assert each_kill(lambda _: atomic_files.write_file(path, b"new"), check) == 8
    assert seen == {b"old", b"new"}
    atomic_files.write_file(path, b"newest")
    assert os.listdir(tmp_path) == ["a.bin"], "the next write tidies what the killed ones left"


def test_what_living_processes_are_writing_is_not_swept(tmp_path):
    mine, parents, dead = (tmp_path / f".a.tmp-0-{pid}" for pid in (os.getpid(), os.getppid(), 2**40))
    for path in (mine, parents, tmp_path / ".a.tmp-x", tmp_path / "b"):
        path.write_bytes(b"")
    (dead / "inner").mkdir(parents=True)
    atomic_files.sweep(tmp_path, ".a.tmp-")
    assert sorted(os.listdir(tmp_path)) == sorted([parents.name, ".a.tmp-x", "b"])
    atomic_files.sweep(tmp_path / "missing", ".a.tmp-")


def test_a_process_of_another_user_lives(monkeypatch):
    def denied(pid, number):
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "kill", denied)
    assert file_locks.is_process_alive(1)


def test_on_windows_no_folder_is_flushed(tmp_path, monkeypatch):
    class Windows(FaultyOs):
        name = "nt"

    spy = Windows(0, None)
    monkeypatch.setattr(atomic_files, "os", spy)
    atomic_files.sync_folder(tmp_path)
    assert spy.log == []


def test_a_real_full_disk_is_a_storage_error_and_keeps_the_old_file(tiny_disk):
    path = tiny_disk / "a.bin"
    atomic_files.write_file(path, b"o" * 300_000)
    with pytest.raises(StorageError, match=r"No space left on device \(900000 bytes needed, .* Free disk space"):
        atomic_files.write_file(path, b"n" * 900_000)
    assert path.read_bytes() == b"o" * 300_000 and os.listdir(tiny_disk) == ["a.bin"]
    (tiny_disk / "filler").write_bytes(b"x" * atomic_files.free_bytes(tiny_disk))
    with pytest.raises(StorageError, match="No space left"):
        atomic_files.check_writable(tiny_disk)


def test_a_limit_on_file_sizes_is_a_storage_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_files.write_file(path, b"old")

    def child():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        with pytest.raises(StorageError, match="ulimit -f"):
            atomic_files.write_file(path, b"n" * 50_000)

    assert forked(child) == 0
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_read_only_disk_is_found_before_the_first_step(tiny_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for folder in (tiny_disk, tiny_disk / "runs" / "new"):
        with pytest.raises(StorageError, match="Read-only file system.*Remount the disk writable"):
            atomic_files.check_writable(folder)


def test_a_folder_of_another_user_is_found_before_the_first_step():
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)

        def child():
            if os.geteuid() == 0:
                os.setuid(65534)
            with pytest.raises(StorageError, match="Permission denied.*Make it writable for this user"):
                atomic_files.check_writable(Path(name))

        assert forked(child) == 0
        assert os.listdir(name) == []


def test_a_file_where_a_folder_is_needed_is_found_before_the_first_step(tmp_path):
    (tmp_path / "runs").write_text("")
    for folder in (tmp_path / "runs", tmp_path / "runs" / "one"):
        with pytest.raises(StorageError, match="Move away the file that has the name of a folder in this path"):
            atomic_files.check_writable(folder)


def test_a_writable_folder_is_created_and_left_empty(tmp_path, monkeypatch):
    atomic_files.check_writable(tmp_path / "a" / "b")
    atomic_files.check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []
    monkeypatch.chdir(tmp_path)
    atomic_files.check_writable(Path("c"))
    assert os.path.isdir(tmp_path / "c")


def test_every_call_of_the_check_may_fail_and_leaves_nothing(tmp_path, monkeypatch):
    def check(when, raised, log):
        assert raised and "cannot write " in raised
        assert temporaries(tmp_path) == []
        shutil.rmtree(tmp_path / "a", ignore_errors=True)

    def work(when):
        atomic_files.check_writable(tmp_path / "a" / "b")

    assert each_fault(monkeypatch, failing(errno.EIO), work, check) == 12


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS])
def test_a_file_system_that_flushes_no_folders_is_no_error_and_one_that_flushes_no_files_is(
    tmp_path, monkeypatch, code
):
    path = tmp_path / "a.bin"
    monkeypatch.setattr(atomic_files, "os", FaultyOs(2, failing(code), counted=("fsync",)))
    atomic_files.write_file(path, b"old")
    monkeypatch.setattr(atomic_files, "os", FaultyOs(1, failing(code), counted=("fsync",)))
    with pytest.raises(StorageError, match=re.escape(f"a.bin: {os.strerror(code)} (")):
        atomic_files.write_file(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_rename_that_fails_after_it_took_place_leaves_the_new_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr(atomic_files, "os", FaultyOs(1, failing_after(errno.ENOENT), counted=("replace",)))
    with pytest.raises(StorageError, match=r"cannot write .*a.bin: No such file or directory \(3 bytes needed"):
        atomic_files.write_file(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["a.bin"]


def test_the_room_on_a_disk_is_known_for_paths_that_are_not_there_yet(tmp_path, monkeypatch):
    assert atomic_files.free_bytes(tmp_path / "a" / "b" / "c") > 0

    def gone(path):
        raise OSError(errno.EIO, "gone")

    monkeypatch.setattr(shutil, "disk_usage", gone)
    assert atomic_files.free_bytes(tmp_path) == 0


def test_the_checksum_is_sha_256():
    assert atomic_files.sha256(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_json_is_readable_keeps_its_order_and_comes_back(tmp_path):
    values = {"b": [1, 2.5, None, True], "a": {"é": "ß", "bytes that are not UTF-8": "a\udcff"}, "c": {"plain": "é"}}
    atomic_files.write_json(tmp_path / "a.json", values)
    data = (tmp_path / "a.json").read_bytes()
    assert data.startswith(b'{\n "b": [') and atomic_files.from_json(data) == values
    atomic_files.write_json(tmp_path / "a.json", values["c"])
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_holds_no_number_that_is_not_finite(tmp_path, value):
    with pytest.raises(NotFiniteError, match=r"cannot encode .*a\.json as strict JSON"):
        atomic_files.write_json(tmp_path / "a.json", {"loss": value})
    assert os.listdir(tmp_path) == []


def test_json_holds_plain_values_only(tmp_path):
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {(1, 2): 3}, deep):
        with pytest.raises(InputError, match=r"cannot encode .*a\.json as JSON: .*Pass plain values"):
            atomic_files.write_json(tmp_path / "a.json", value)


@pytest.mark.parametrize(
    "text, reason",
    [
        (b'{"a": 1, "a": 2}', "a key occurs twice"),
        (b"[NaN]", "the number NaN is not finite"),
        (b"[-Infinity]", "is not finite"),
        (b"[1e999]", "the number 1e999 is not finite"),
        (b"[" * 1_000_000, "the values are nested too deeply"),
        (b'{"a":' * 1_000_000, "the values are nested too deeply"),
        (b"[" + b"9" * 100_000 + b"]", "integer string conversion"),
        (b"\xff", "codec can't decode"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_we_would_not_write_is_not_read(text, reason):
    with pytest.raises(ValueError, match=reason):
        atomic_files.from_json(text)


def test_a_second_lock_is_refused_with_the_pid_and_host_of_the_first(tmp_path):
    with atomic_files.Lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / ".lock").read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with pytest.raises(
            InputError, match=f"process {os.getpid()} on host .*Wait for it, or choose another --name.$"
        ):
            atomic_files.Lock(tmp_path / "run").__enter__()
    with atomic_files.Lock(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path / "run") == []


class FakeMsvcrt:
    """Lock bytes as Windows does: by open file, from the current position on, until it is closed."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor, mode, count):
        assert mode == FakeMsvcrt.LK_NBLCK
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, count, 0)
        try:
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


def be_windows(patch):
    patch.setattr(file_locks, "fcntl", None)
    patch.setattr(atomic_files, "fcntl", None)
    patch.setattr(file_locks, "msvcrt", FakeMsvcrt)


needs_byte_locks = pytest.mark.skipif(not hasattr(fcntl, "F_OFD_SETLK"), reason="the fake needs locks of Linux")


def hold(folder, ready):
    """A child that holds the lock until it is killed."""
    child = os.fork()
    if child == 0:
        try:
            with atomic_files.Lock(folder):
                os.write(ready, b"1")
                while True:
                    signal.pause()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize("windows", [False, pytest.param(True, marks=needs_byte_locks)])
def test_a_lock_of_another_process_is_refused_and_taken_over_when_that_was_killed(tmp_path, monkeypatch, windows):
    if windows:
        be_windows(monkeypatch)
    reading, writing = os.pipe()
    child = hold(tmp_path, writing)
    assert os.read(reading, 1) == b"1"
    with pytest.raises(InputError, match=f"another run is using it .process {child} on host .*choose another --name"):
        atomic_files.Lock(tmp_path).__enter__()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".lock").exists()
    with atomic_files.Lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert os.listdir(tmp_path) == []
    os.close(reading)
    os.close(writing)


@needs_byte_locks
def test_windows_locks_a_byte_behind_the_content_and_has_errors_of_its_own(tmp_path, monkeypatch):
    be_windows(monkeypatch)
    with open(tmp_path / "a", "w+b") as one, open(tmp_path / "a", "r+b") as other:
        one.write(b"note")
        file_locks.lock_exclusively(one.fileno())
        assert one.tell() == 4 and os.lseek(one.fileno(), 0, os.SEEK_CUR) < 5
        with pytest.raises(BlockingIOError):
            file_locks.lock_exclusively(other.fileno())

    def unsupported(descriptor, mode, count):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(FakeMsvcrt, "locking", unsupported)
    with pytest.raises(StorageError, match="Invalid argument"):
        atomic_files.Lock(tmp_path).__enter__()


@pytest.mark.parametrize(
    "handle, error, code, alive", [(0, 87, 0, False), (0, 5, 0, True), (7, 0, 259, True), (7, 0, 1, False)]
)
def test_windows_knows_which_processes_have_ended(tmp_path, monkeypatch, handle, error, code, alive):
    class Kernel:
        OpenProcess = mock.Mock(return_value=handle)
        CloseHandle = mock.Mock()

        @staticmethod
        def GetExitCodeProcess(_, place):
            place._obj.value = code

    be_windows(monkeypatch)
    monkeypatch.setattr(ctypes, "WinDLL", lambda *_, **__: Kernel, raising=False)
    monkeypatch.setattr(ctypes, "get_last_error", lambda: error, raising=False)
    (tmp_path / ".tmp-a-0123-77").write_bytes(b"")
    atomic_files.sweep(tmp_path, ".tmp-a-")
    assert (tmp_path / ".tmp-a-0123-77").exists() is alive
    Kernel.OpenProcess.assert_called_once_with(0x1000, False, 77)


def test_macos_flushes_the_cache_of_the_drive(tmp_path, monkeypatch):
    calls = []

    def call(descriptor, number):
        calls.append(number)
        raise OSError(errno.ENOTSUP, "Operation not supported")  # as on network disks

    monkeypatch.setattr(atomic_files, "fcntl", SimpleNamespace(F_FULLFSYNC=51, fcntl=call))
    atomic_files.write_file(tmp_path / "a", b"text")
    assert (tmp_path / "a").read_bytes() == b"text" and calls == [51, 51]  # of the file and of the folder


def test_a_lock_holds_where_the_working_directory_changes_and_in_forked_children(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_files.Lock(Path("run")) as lock:
        os.chdir(tmp_path / "elsewhere")
        assert forked(lambda: lock.__exit__(None, None, None)) == 0
        with pytest.raises(InputError, match="another run is using it"):
            atomic_files.Lock(tmp_path / "run").__enter__()
    assert os.listdir(tmp_path / "run") == []


def test_a_lock_file_that_its_holder_removes_just_then_is_not_taken_for_ours(tmp_path, monkeypatch):
    real, removed = file_locks.fcntl.flock, []

    def flock(descriptor, operation):
        if not removed:
            removed.append(os.unlink(tmp_path / ".lock"))
        real(descriptor, operation)

    monkeypatch.setattr(file_locks.fcntl, "flock", flock)
    with atomic_files.Lock(tmp_path), pytest.raises(InputError, match="another run is using it"):
        atomic_files.Lock(tmp_path).__enter__()


def test_a_lock_that_cannot_be_written_is_a_storage_error_and_is_let_go(tmp_path, monkeypatch):
    def check(when, raised, log):
        assert raised and "cannot write " in raised and ".lock: " in raised

    def work(when):
        with atomic_files.Lock(tmp_path):
            pass

    assert each_fault(monkeypatch, failing(errno.ENOSPC), work, check, ("open", "write")) == 2

    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(file_locks.fcntl, "flock", unsupported)
    with pytest.raises(StorageError, match="No locks available"):
        atomic_files.Lock(tmp_path).__enter__()


def test_the_module_loads_where_there_is_no_fcntl():
    code = "import sys; sys.modules['fcntl'] = None; from skipway.utils import cache_folder, file_locks; "
    code += "print(cache_folder.fcntl, file_locks.fcntl)"
    assert run_python(code, check=True).stdout == "None None\n"


def test_a_discarded_folder_is_gone_and_a_failed_flush_leaves_none_of_it(tmp_path, monkeypatch):
    for when in (0, 1, 2, 3, 4):
        (tmp_path / "a" / "b").mkdir(parents=True)
        with monkeypatch.context() as patch:
            patch.setattr(atomic_files, "os", FaultyOs(when, failing(errno.EIO)))
            try:
                atomic_files.discard(tmp_path / "a")
            except OSError:
                assert when
        assert os.listdir(tmp_path) == (["a"] if when == 1 else [])
        shutil.rmtree(tmp_path / "a", ignore_errors=True)
