"""The documents run: Python blocks are executed, commands and files that they name exist."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(page, code, id=f"{page.name}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]


@pytest.mark.parametrize("page, code", BLOCKS)
def test_every_python_block_runs(page, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page.name, "exec"), {"__name__": "__main__"})


def flags():
    from skipway.cli.train_options import RecipeFlags

    return {"--" + name.replace("_", "-") for name in RecipeFlags.__dataclass_fields__}


def commands():
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S):
            lines = [line.split("#")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
            yield from (line.partition("-m ")[2] or line if "-m skipway" in line else line for line in lines if line)


def test_every_command_and_flag_that_the_documents_name_exists():
    from skipway.cli.app import app

    known = flags() | {
        "--resume",
        "--output",
        "--config",
        "--csv",
        "--strict",
        "--top",
        "--tta",
        "--nproc",
        "--split",
        "--allow-changed-data",
        "--constraint",
        *("--to", "--blocks", "--widen", "--only", "--engine", "--precision"),
    }
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    found = list(commands())
    assert found
    for line in found:
        words = line.split()
        assert words[0] in ("skipway", "make", "pip"), line
        assert words[0] != "make" or words[1] in targets, line
        assert words[0] != "skipway" or words[1] in app, line
        assert {w for w in words if w.startswith("--")} <= known, line


def test_every_file_that_the_documents_name_exists():
    for page in PAGES:
        for name in re.findall(r"`((?:skipway|tests|benchmarks|examples|docs)/[\w/.-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_the_readme_gives_two_set_up_commands_on_its_first_screen():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:30])
    assert re.findall(r"^make (\w+)", first, re.M) == ["demo", "test"]


WITH_EXAMPLES = [p for p in sorted((ROOT / "skipway").rglob("*.py")) if ">>>" in p.read_text()]


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda p: p.stem)
def test_the_examples_in_docstrings_give_what_they_say(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
