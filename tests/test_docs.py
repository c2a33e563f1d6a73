"""The documents run: Python blocks are executed, commands, options and files that they name exist."""

import doctest
import importlib
import os
import re
import runpy
import shlex
import shutil
from pathlib import Path
from textwrap import dedent

import cyclopts
import pytest
import yaml
from small_runs import image_folder
from table_files import homes, written

import skipway as sw
from skipway.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
TUTORIALS = DOCS / "tutorials"  # tests/test_notebooks.py runs them
OTHER_TOOLS = {"--constraint", "--signal=TERM@120", "--node-rank"}  # of pip, SLURM and torchrun


def page_name(page):
    return str(page.relative_to(ROOT))


def blocks(page, language):
    """The code blocks of a page in a language, those in tabs included."""
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^\1```", page.read_text(encoding="utf-8"), re.S | re.M)
    return [dedent(code) for _, code in fenced]


WITH_CODE = [page for page in PAGES if page.parent != TUTORIALS and blocks(page, "python")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The folder that the pages assume: photos/, homes.csv, and runs/last, a model of the photos."""
    folder = tmp_path_factory.mktemp("workspace")
    image_folder(folder / "photos", 12, side=32, kinds=("cat", "dog"))
    written(folder / "homes.csv", homes(60, 0)[["size", "price"]])
    sw.train(folder / "photos", "resnet20", epochs=1, threads=1, output=folder / "runs", name="photos-resnet20")
    return folder


@pytest.mark.parametrize("page", WITH_CODE, ids=page_name)
def test_every_python_block_runs(page, workspace, tmp_path, monkeypatch):
    """The blocks of a page run in order, in one namespace."""
    shutil.copytree(workspace, tmp_path / "workspace", symlinks=True)
    monkeypatch.chdir(tmp_path / "workspace")
    namespace = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, page_name(page), "exec"), namespace)


def commands(page):
    """The commands of a page, as lists of words."""
    for block in blocks(page, "console"):
        lines = block.replace("\\\n", " ").splitlines()
        yield from (words for line in lines if (words := shlex.split(line, comments=True)))


def unknown_option(words):
    """What the parser reports about a command of skipway, if anything."""
    if "-m" in words and "skipway" in words:  # by torchrun
        words = words[words.index("skipway") :]
    try:
        app.parse_args(words[1:], print_error=False, exit_on_error=False)
    except cyclopts.CycloptsError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_that_the_documents_name_exists(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(page):
        assert words[0] in ("skipway", "torchrun", "make", "pip"), words
        assert words[0] != "make" or words[1] in targets, words
        assert words[0] not in ("skipway", "torchrun") or unknown_option(words) is None, words


def test_the_check_of_commands_bites():
    assert not unknown_option(["skipway", "train", "photos/", "--epochs", "3"])
    assert not unknown_option(["torchrun", "-m", "skipway", "train", "photos/"])
    assert "--epoch" in unknown_option(["skipway", "train", "photos/", "--epoch", "3"])
    assert unknown_option(["skipway", "train", "photos/", "--epochs", "three"])
    assert unknown_option(["skipway", "trian", "photos/"])


def flags():
    """Every option of every command, from the parser."""
    page = runpy.run_path(str(DOCS / "scripts" / "cli_page.py"))["page"]()
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page))


def test_every_option_that_the_documents_name_exists():
    known = flags() | OTHER_TOOLS
    assert {"--epochs", "--install-completion", "--tag", "--widen"} <= known
    for page in PAGES:
        text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        named = {word for code in re.findall(r"`([^`\n]+)`", text) for word in code.split() if word.startswith("--")}
        programs = {code.split()[-1] for code in re.findall(r"`(make [^`]+)`", text)}
        unknown = {word for word in named if word.partition("=")[0] not in known and word not in known} - programs
        assert not unknown, f"{page_name(page)} names {sorted(unknown)}"


def test_the_reference_of_the_command_line_has_every_command_and_option():
    page = runpy.run_path(str(DOCS / "scripts" / "cli_page.py"))["page"]()
    names = [name for name in app if not name.startswith("-")]
    assert set(re.findall(r"^## (\w[\w-]*)$", page, re.M)) >= set(names)
    for name in set(names) - {"weights"}:  # which has commands of its own
        section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", page, re.S | re.M)[1]
        options = {option for argument in app[name].assemble_argument_collection() for option in argument.names}
        missing = {option for option in options if option.startswith("--") and f"`{option}" not in section}
        assert not {option for option in missing if not option.startswith("--no-")}, name
        assert f"skipway {name}" in section


def test_the_measurements_have_the_newest_table_of_every_kind_and_its_figure():
    script = runpy.run_path(str(DOCS / "scripts" / "measurements_page.py"))
    page, files = script["page"](), script["newest"]()
    results = ROOT / "benchmarks" / "results"
    kinds = {re.sub("-quick$", "", path.stem[11:]) for path in results.glob("*.md")}
    assert set(files) == kinds
    for kind, path in files.items():
        assert page.count(f"{{ #{kind} }}") == 1 and path.read_text(encoding="utf-8").splitlines()[2][:10] in page
    for path in [*results.glob("*.svg"), *results.glob("*.png")]:
        assert f"(figures/{path.name})" in page


def test_links_to_a_measurement_have_its_table():
    kinds = runpy.run_path(str(DOCS / "scripts" / "measurements_page.py"))["newest"]()
    for page in PAGES:
        for kind in re.findall(r"measurements\.md#([\w-]+)", page.read_text(encoding="utf-8")):
            assert kind in kinds, f"{page_name(page)} links to {kind}"


def test_every_public_name_is_in_the_reference():
    pages = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "python").glob("*.md"))
    documented = set(re.findall(r"^::: (skipway\.[\w.]+)$", pages, re.M))
    packages = {"export", "grow", "nn", "probe", "weights"}
    assert documented >= {f"skipway.{name}" for name in sw.__all__ if name not in packages}
    for package in packages - {"nn"}:
        names = set(importlib.import_module(f"skipway.{package}").__all__) - {"summary"}
        assert documented >= {f"skipway.{package}.{name}" for name in names}


def test_every_environment_variable_of_the_code_is_on_its_page():
    page = (DOCS / "reference" / "environment-variables.md").read_text(encoding="utf-8")
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "skipway").rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[|\.setdefault\()\"(\w+)\"", source))
    own = set(re.findall(r"\bSKIPWAY_[A-Z]+\b", source))
    assert {name for name in read | own if f"`{name}`" not in page} <= {"TORCH_CPP_LOG_LEVEL"}


def test_every_file_that_the_documents_name_exists():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`((?:skipway|tests|benchmarks|examples|docs)/[\w/.-]+)`", text):
            assert (ROOT / name).exists(), f"{page_name(page)} names {name}"


def linked_files(page):
    """The files that a page links to."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    return [Path(os.path.normpath(page.parent / link)) for link in links]


GENERATED = {"cli.md", "models.md", "measurements.md", "import_graph.svg"}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_between_pages_have_their_file(page):
    """`make docs` checks anchors too; this holds for README.md, and without MkDocs."""
    for path in linked_files(page):
        is_notebook = path.suffix == ".ipynb" and path.with_suffix(".md").exists()
        assert path.exists() or path.name in GENERATED or is_notebook, path


def test_the_navigation_has_every_page():
    def files(entry):
        if isinstance(entry, str):
            return {entry}
        entries = entry.values() if isinstance(entry, dict) else entry
        return set().union(*map(files, entries))

    listed = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written_pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert listed == written_pages | {"reference/cli.md", "reference/models.md", "reference/measurements.md"}


def test_the_readme_gives_two_set_up_commands_on_its_first_screen():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert re.findall(r"^make (\w+)", first, re.M) == ["demo", "test"]


WITH_EXAMPLES = [p for p in sorted((ROOT / "skipway").rglob("*.py")) if ">>>" in p.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_in_docstrings_give_what_they_say(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


def test_the_results_of_the_readme_are_those_of_the_tables_that_it_links():
    rows = re.findall(r"^\| \[[^\]]+\]\((benchmarks/results/[^)]+)\) \| ([^|]+) \| ([^|]+) \|", README, re.M)
    assert len(rows) == 4
    for path, *cells in rows:
        table = (ROOT / path).read_text(encoding="utf-8")
        for value in re.findall(r"\d[\d,.]*%?", " ".join(cells).replace("int8", "").replace("bf16", "")):
            assert value in table, f"{value} is not in {path}"
    step = (ROOT / "benchmarks/results/2026-11-21-training-step-resnet18-32.md").read_text(encoding="utf-8")
    plain, ours = (float(re.search(rf"^\| {way} \| ([\d.]+)", step, re.M)[1]) for way in ("plain", "ours"))
    assert f"{plain / ours:.2f} times as long as plain PyTorch" in README
