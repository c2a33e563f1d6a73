"""Build the wheel and the sdist, use the wheel from another folder, and hold the packaging files to each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from processes import HANG

from skipway.data.sources.optional_readers import EXTRA_OF

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_BEHIND = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")
NOT_SOURCE = {".git", ".venv", "build", "dist", "runs"}  # at the top: skipway/runs is a package
FOR_DEVELOPERS = {"dev", "release"}  # extras of the Makefile's targets, which no code uses


def _not_source(folder, names):
    """Names in `folder` that working in the tree has left behind."""
    return LEFT_BEHIND(folder, names) | (NOT_SOURCE & set(names) if Path(folder) == ROOT else set())


def files_under(folder, root):
    return {path.relative_to(root).as_posix() for path in (root / folder).rglob("*") if path.is_file()}


def run_python(*arguments, cwd, **environment):
    """Run this interpreter in `cwd` and return what it prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the source tree, since building leaves files in it."""
    folder = tmp_path_factory.mktemp("source") / "skipway"
    shutil.copytree(ROOT, folder, ignore=_not_source)
    return folder


@pytest.fixture(scope="module")
def released(source, tmp_path_factory):
    """The folder with the sdist and with the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("released")
    run_python("-m", "build", "--no-isolation", "--outdir", folder, source, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(released, tmp_path_factory):
    """The folder into which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = released.glob("*.whl")
    run_python("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder, wheel, cwd=released)
    return folder


def run_installed(installed, folder, *arguments):
    """Run Python in `folder` with the installed wheel in front of every other skipway."""
    return run_python(
        *arguments,
        cwd=folder,
        PYTHONPATH=str(installed),
        XDG_CACHE_HOME=str(folder / "cache"),
        OMP_NUM_THREADS="1",
        SKIPWAY_KERNELS="on",
    )


def wheel_names(folder):
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        return set(wheel.namelist())


def sdist_names(folder):
    (path,) = folder.glob("*.tar.gz")
    with tarfile.open(path) as sdist:
        return {member.name.partition("/")[2] for member in sdist if member.isfile()}


def test_the_wheel_holds_the_package_and_nothing_else(source, released):
    files = files_under("skipway", source)
    assert {Path(name).suffix for name in files} >= {".py", ".c", ".html"} and "skipway/py.typed" in files
    assert {name for name in wheel_names(released) if ".dist-info/" not in name} == files


def test_a_wheel_built_without_the_sdist_is_the_same(source, released, tmp_path):
    run_python("-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    assert wheel_names(tmp_path) == wheel_names(released)


def test_the_sdist_holds_what_its_tests_need(source, released):
    names = sdist_names(released)
    for folder in ("skipway", "tests", "docs", "examples", "benchmarks", ".github"):
        assert names >= files_under(folder, source)
    assert names >= {path.name for path in source.glob("*.*") if path.is_file()} - {".gitignore"}
    assert names >= {"LICENSE", "Makefile"}


USE = """
import sys
from pathlib import Path
import torch
import skipway as sw

network = sw.create_model("resnet20", num_classes=3)
logits = network(torch.randn(2, 3, 32, 32))
assert logits.shape == (2, 3)
logits.sum().backward()

run = sw.train("wine", epochs=2)
assert "<html" in Path(run.report).read_text(encoding="utf-8")

home = Path(sys.argv[1]).resolve() / "skipway"
for name, module in list(sys.modules.items()):
    if name.partition(".")[0] == "skipway":
        assert Path(module.__file__).resolve().is_relative_to(home), module.__file__
"""


def test_the_wheel_trains_and_reports_from_another_folder(installed, tmp_path):
    run_installed(installed, tmp_path, "-c", USE, installed)
    assert list(tmp_path.glob("runs/*/report.html"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The folder in which the installed wheel keeps compiled kernels."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def environment(installed, cache):
    """The lines of `skipway env`."""
    return run_installed(installed, cache, "-m", "skipway", "env").splitlines()


def test_the_wheel_compiles_its_kernels_or_does_without(environment, installed, cache):
    assert f"{'skipway':<16}{version('skipway')}" in environment
    (state,) = [line.removeprefix("kernels").strip() for line in environment if line.startswith("kernels ")]
    compiled = {path.stem.rpartition("-")[0] for path in cache.rglob("*.so")}
    if state == "on":
        assert compiled and compiled <= {path.stem for path in installed.rglob("*.c")}
    else:
        assert state == "on, without a C compiler" and not compiled


def extras_in_code():
    """Names of the extras in every `MissingExtra("name", ...)` of the package, and of those that read image files."""
    yield from EXTRA_OF.values()
    for path in sorted((ROOT / "skipway").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("MissingExtra"):
                yield ast.literal_eval(node.args[0])


def test_the_code_names_every_extra_and_no_other():
    assert set(extras_in_code()) == set(PROJECT["optional-dependencies"]) - FOR_DEVELOPERS


def test_env_lists_every_extra(environment):
    listed = {line.split()[0] for line in environment if line.split()[1:2] == ["extra"]}
    assert listed == set(PROJECT["optional-dependencies"]) - FOR_DEVELOPERS


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_pages_name_extras_that_exist(page):
    named = re.findall(r"(?:skipway|'\.)\[([\w,-]+)\]", page.read_text(encoding="utf-8"))
    assert set(",".join(named).split(",")) - {""} <= set(PROJECT["optional-dependencies"])


def locked():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {normalized(name): pin for name, pin in pairs}


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_has_every_requirement():
    requirements = [*PROJECT["dependencies"], *sum(PROJECT["optional-dependencies"].values(), [])]
    names = {normalized(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}
    assert names <= locked().keys()


def test_pre_commit_runs_the_locked_ruff():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    installs = {name for repo in config["repos"] for hook in repo["hooks"] for name in hook["additional_dependencies"]}
    assert f"ruff=={locked()['ruff']}" in installs and all("==" in name for name in installs)


def test_ci_covers_the_python_versions_of_the_metadata():
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    classifiers = [f"Programming Language :: Python :: {python}" for python in job["strategy"]["matrix"]["python"]]
    assert classifiers == [line for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.", line)]
    assert PROJECT["requires-python"] == f">={job['strategy']['matrix']['python'][0]}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    keys = ("title", "version", "license")
    assert [citation[key] for key in keys] == [PROJECT[key] for key in ("name", "version", "license")]
