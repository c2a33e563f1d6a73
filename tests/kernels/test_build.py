import ctypes
import os
import re
import shutil

import pytest
from processes import environment, run_python

from skipway.kernels import build

needs_compiler = pytest.mark.skipif(build._compiler() is None, reason="no C compiler")


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return 42; }\n")
    build.library.cache_clear()
    yield file
    build.library.cache_clear()


def kept(source):
    return sorted((source.parent / "cache" / "skipway").glob("*.so"))


def library_again(source):
    """What a process that starts later loads."""
    build.library.cache_clear()
    return build.library(source)


@needs_compiler
def test_a_file_is_compiled_once_and_kept(source):
    assert build.library(source).answer() == 42
    (made,) = kept(source)
    before = made.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library(source).answer() == 42
    assert kept(source) == [made] and made.stat().st_mtime_ns == before


@needs_compiler
def test_another_source_is_another_library(source):
    build.library(source)
    build.library.cache_clear()
    source.write_text("int answer(void) { return 43; }\n")
    assert build.library(source).answer() == 43
    assert len(kept(source)) == 2


@needs_compiler
@pytest.mark.skipif(not build.has_openmp(), reason="no OpenMP")
def test_threads_are_those_of_torch(source):
    source.write_text("#include <omp.h>\nint most(void) { return omp_get_max_threads(); }\n")
    code = (
        "import pathlib, sys, torch, skipway.kernels.build as native; torch.set_num_threads(3); "
        "print(native.library(pathlib.Path(sys.argv[1])).most())"
    )
    done = run_python(code, source)
    assert done.stdout.strip() == "3", done.stderr


@needs_compiler
@pytest.mark.parametrize(
    "broken, reason",
    [
        ("no compiler", ""),
        ("bad source", "the C compiler failed: .*answer.c:1:.* error: "),
        ("bad library", "undefined symbol"),
        ("open folder", "cache/skipway is writable by other users"),
        ("closed folder", "File exists: .*cache"),
        ("another owner", "cache/skipway belongs to another user"),
        ("linked folder", "cache/skipway is a link"),
        ("bad command", "the environment variable CC is not a valid command: No closing quotation"),
        ("elsewhere", "no C kernels on win32"),
    ],
)
def test_without_a_library_there_is_none_and_the_reason_is_the_true_one(source, monkeypatch, broken, reason):
    folder = source.parent / "cache" / "skipway"
    if broken == "no compiler":
        monkeypatch.setenv("PATH", str(source.parent))
        monkeypatch.delenv("CC", raising=False)
    elif broken == "bad source":
        source.write_text("int answer(void) { return }\n")
    elif broken == "bad library":
        monkeypatch.setattr(ctypes, "CDLL", lambda path: (_ for _ in ()).throw(OSError("undefined symbol")))
    elif broken == "open folder":
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    elif broken == "closed folder":
        (source.parent / "cache").write_text("a file where the folder should be")
    elif broken == "another owner":
        monkeypatch.setattr(build.os, "geteuid", lambda: os.getuid() + 1)
    elif broken == "linked folder":
        elsewhere = source.parent / "elsewhere"
        elsewhere.mkdir()
        (source.parent / "cache").mkdir()
        folder.symlink_to(elsewhere)
    elif broken == "bad command":
        monkeypatch.setenv("CC", "gcc '-DX=1")
    else:
        monkeypatch.setattr(build.sys, "platform", "win32")
    assert build.library(source) is None
    assert re.search(reason, build.missing_reason(source)) and bool(reason) == bool(build.missing_reason(source))


@pytest.mark.parametrize(
    ("machine", "processor"), [("arm64", "-mcpu=apple-m1"), ("x86_64", "-march=native")], ids=["arm", "intel"]
)
def test_the_options_of_macos_have_no_openmp(monkeypatch, machine, processor):
    monkeypatch.setattr(build.sys, "platform", "darwin")
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    compile_flags, link_flags = build._flags()
    assert processor in compile_flags and "-fopenmp" not in compile_flags and link_flags == ("-dynamiclib",)


@needs_compiler
def test_the_compiler_can_be_chosen(source, monkeypatch):
    monkeypatch.setenv("CC", "gcc -DANSWER=7" if shutil.which("gcc") else "cc -DANSWER=7")
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert build.library(source).answer() == 7


def truncate(library):
    os.truncate(library, library.stat().st_size // 2)


def put_other_code_there(library):
    other = library.with_name("other.c")
    other.write_text("int answer(void) { return 666; }\n")
    build.subprocess.run([*build._compiler(), "-shared", "-fPIC", str(other), "-o", str(library)], check=True)


def leave_a_pipe(library):
    library.unlink()
    os.mkfifo(library)


def leave_a_link(library):
    library.rename(library.with_name("elsewhere.so"))
    library.symlink_to("elsewhere.so")


@needs_compiler
@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        put_other_code_there,
        leave_a_pipe,
        leave_a_link,
        lambda library: library.write_bytes(b""),
        lambda library: library.chmod(0o666),
        lambda library: library.with_name(library.name + ".sha256").unlink(),
        lambda library: library.with_name(library.name + ".sha256").write_bytes(b"\xff" * 64),
    ],
)
def test_a_library_that_is_not_as_it_was_written_is_compiled_again(source, spoil):
    build.library(source)
    (made,) = kept(source)
    whole = made.read_bytes()
    spoil(made)
    assert library_again(source).answer() == 42 and build.missing_reason(source) == ""
    assert made.read_bytes() == whole and not made.is_symlink() and made.stat().st_mode & 0o077 == 0
    assert library_again(source).answer() == 42


@needs_compiler
def test_a_truncated_library_does_not_kill_the_next_process(source):
    code = (
        "import sys, pathlib, skipway.kernels.build as build; source = pathlib.Path(sys.argv[1]); "
        "print(build.library(source).answer())"
    )
    assert run_python(code, source, env=environment()).stdout == "42\n"
    (made,) = kept(source)
    os.truncate(made, 4096)
    done = run_python(code, source, env=environment())
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


@needs_compiler
def test_two_libraries_of_a_process_are_two(source):
    other = source.with_name("other.c")
    other.write_text("int other(void) { return 7; }\n")
    for _ in range(2):
        build.library.cache_clear()
        first, second = build.library(source), build.library(other)
        assert (first.answer(), second.other()) == (42, 7)
        with pytest.raises(AttributeError):
            first.other  # noqa: B018


@needs_compiler
def test_an_upgraded_compiler_is_another_one(source, tmp_path, monkeypatch):
    compiler, command = tmp_path / "cc", build._compiler()[0]
    compiler.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    build.library(source)
    compiler.write_text(f'#!/bin/sh\n\nexec {command} "$@"\n')
    assert library_again(source).answer() == 42 and len(kept(source)) == 2


@needs_compiler
def test_a_write_that_fails_leaves_nothing_behind(source, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "replace", full)
    assert build.library(source) is None
    assert "No space left" in build.missing_reason(source)
    assert list((source.parent / "cache" / "skipway").iterdir()) == []
