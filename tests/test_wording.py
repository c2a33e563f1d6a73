"""The wording of all texts: help, errors, console lines, docstrings, comments, report and docs."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "skipway").rglob("*.py"))
KERNELS = sorted((ROOT / "skipway").rglob("*.c"))
TEMPLATES = sorted((ROOT / "skipway").rglob("*.html"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
MAX_WORDS = 40  # in a sentence

# Words of no field, with the one that is meant.
BANNED = {
    r"pictures?": "image",
    r"mend(s|ed|ing)?": "fix",
    r"beside": "next to, alongside",
    r"go(es)? on|going on|went on": "resume, continue",
    r"anew": "again",
    r"likeliest": "most likely",
    r"so many": "this many",
    r"figures?": "metric, value, plot",
    r"judg(e|es|ed|ing)": "evaluate",
    r"(?:^|(?<=[;.:] ))gives?|given back": "return, pass",
    r"told|tells?": "configured, set; print, name",
    r"bears?": "handle, support",
    r"minds?|minded": "warning",
    r"sa(y|ys|id|ying)": "print, report, warn",
    r"open size": "uninferred size",
    r"shape pass": "shape inference",
    r"rooms?|houses?|floors?|roads?": "package, layer, module, pipeline; space",
    r"look(s|ed|ing)? (at|into)": "analysis, inspect",
    r"stand(s|ing)? (in|for|at|on)": "is",
    r"nobody": "no user, nothing",
    r"colour(s|ed)?|grey|behaviour|favour\w*|(optim|normal|initial|summar)is(e[ds]?|ers?|ing|ation)": "US spelling",
}
FIRST_WORDS = ("What", "Whether", "How", "Where", "Which", "Of", "That")
SINGULAR = re.compile(r"\b1 (epochs|images|rows|classes|folds|files|seconds|threads|processes|steps|samples|runs)\b")


def python_texts(path):
    """Return (place, text) of the docstrings, other strings of several words, and comments of a file."""
    source = path.read_text()
    tree = ast.parse(source)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "N" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")


def page_texts(path):
    """Return (place, text) of the paragraphs, list items and table cells of a Markdown page, without code."""
    text = re.sub(r"^( *)(`{3,}|~{3,}).*?^\1\2", "", path.read_text(), flags=re.S | re.M)
    text = re.sub(r"`[^`]*`", "N", re.sub(r"\]\([^)]*\)", "]", text))
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#|]|\d+\.|===|!!!))", text):
        for cell in block.split("|") if block.lstrip().startswith("|") else [block]:
            yield " ".join(block.split())[:40], cell


def template_texts(path):
    """Return (place, text) of the text of a template, without tags, styles and expressions."""
    text = re.sub(r"<style>.*?</style>|<script.*?</script>", "", path.read_text(), flags=re.S)
    strings = " . ".join(re.findall(r'"([^"<>{}]* [^"<>{}]*)"', " ".join(re.findall(r"{[{%].*?[}%]}", text, re.S))))
    text = re.sub(r"{[{%].*?[}%]}", "N", text, flags=re.S)
    for block in [strings, *re.split(r"</?(?:p|div|h\d|li|td|th|dt|dd|figcaption|section|summary)[^>]*>", text)]:
        yield " ".join(block.split())[:40], re.sub(r"<[^>]*>", "", block)


def texts():
    for paths, read in ((SOURCES, python_texts), (PAGES, page_texts), (TEMPLATES, template_texts)):
        for path in paths:
            for place, text in read(path):
                if len(text.split()) > 1:
                    yield f"{path.relative_to(ROOT)}:{place}", text
    for path in KERNELS:
        for comment in re.findall(r"/\*.*?\*/", path.read_text(), re.S):
            yield f"{path.relative_to(ROOT)}", comment


TEXTS = list(texts())


@pytest.mark.parametrize("words, better", BANNED.items(), ids=[better for better in BANNED.values()])
def test_no_text_has_words_that_the_field_does_not_use(words, better):
    pattern = re.compile(rf"(?<![\w./-])(?:{words})(?![\w/-])", re.I)
    found = [f"{place}: {' '.join(text.split())[:100]}" for place, text in TEXTS if pattern.search(text)]
    assert not found, f"better: {better}\n" + "\n".join(found)


def sentences(text):
    """Return the sentences of a text; a blank line, a list item and an entry of Args end one too."""
    for block in re.split(r"\n\s*\n|\n\s*(?=[-*|>]|\w[\w, *]*: |Args:|Returns:|Raises:)", text):
        yield from re.split(r"(?<=[.!?:;])\s+", block)


def test_no_sentence_is_longer_than_a_reader_can_hold():
    found = []
    for place, text in TEXTS:
        for sentence in sentences(text):
            if len(re.findall(r"[A-Za-z][\w'-]*", sentence)) > MAX_WORDS:
                found.append(f"{place}: {' '.join(sentence.split())[:160]}")
    assert not found, "\n".join(found)


def test_docstrings_start_with_what_a_thing_does():
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                first = (ast.get_docstring(node) or "x").split()[0]
                if first in FIRST_WORDS:
                    found.append(f"{path.relative_to(ROOT)}: {getattr(node, 'name', 'module')}: {first}")
    assert not found, "\n".join(found)


def test_counts_of_one_are_singular():
    found = [f"{place}: {text}" for place, text in TEXTS if SINGULAR.search(text)]
    assert not found, "\n".join(found)
