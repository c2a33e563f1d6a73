import ctypes
import shutil

import pytest
from processes import run_python

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
    return sorted((source.parent / "cache" / "skipway").iterdir())


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
def test_threads_are_those_of_torch(source):
    source.write_text("#include <omp.h>\nint most(void) { return omp_get_max_threads(); }\n")
    code = (
        "import pathlib, sys, torch, skipway.kernels.build as native; torch.set_num_threads(3); "
        "print(native.library(pathlib.Path(sys.argv[1])).most())"
    )
    done = run_python(code, source)
    assert done.stdout.strip() == "3", done.stderr


@pytest.mark.parametrize(
    "broken", ["no compiler", "bad source", "bad library", "open folder", "closed folder", "elsewhere"]
)
def test_without_a_library_there_is_none(source, monkeypatch, broken):
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
    else:
        monkeypatch.setattr(build.sys, "platform", "darwin")
    assert build.library(source) is None


@needs_compiler
def test_the_compiler_can_be_chosen(source, monkeypatch):
    monkeypatch.setenv("CC", "gcc -DANSWER=7" if shutil.which("gcc") else "cc -DANSWER=7")
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert build.library(source).answer() == 7
