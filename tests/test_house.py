"""The package keeps its own rules: order of packages, acyclic imports, budgets, absolute imports."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "skipway"

# Lowest first: a package imports only from those above it in this list, inside functions too.
PACKAGES = [
    *("errors", "utils", "kernels", "report", "nn", "data", "distributed", "training", "models", "weights"),
    *("model_factory", "probe", "export", "grow", "runs", "commands", "estimators", "cli", "__main__"),
]
LINES = 400
LONGER = {}  # file -> why it may be longer than LINES
MULTI_FOR_COMPREHENSIONS = 20


def module_name(path, package=PACKAGE):
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files():
    return {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}


FILES = source_files()
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imported_modules(tree, files):
    """Every skipway module that a tree imports, wherever in it the import is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "skipway":
            stem = node.module.removeprefix("skipway").removeprefix(".")
            for alias in node.names:
                inner = f"{stem}.{alias.name}".removeprefix(".")
                yield inner if inner in files else stem
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "skipway":
                    yield alias.name.removeprefix("skipway").removeprefix(".")


def package_of(module):
    return module.split(".")[0]


def is_face(module):
    return FILES[module].name == "__init__.py" if module in FILES else not module


def allowed(importer, imported):
    """Whether `importer` may import `imported`: a file of its own package, or of a lower one."""
    return PACKAGES.index(package_of(imported)) <= PACKAGES.index(package_of(importer))


def test_every_package_has_its_place():
    assert sorted({package_of(name) for name in FILES}) == sorted(PACKAGES)


def test_a_package_imports_only_from_lower_packages():
    wrong = [
        f"{name} imports {target or 'skipway'}"
        for name, tree in TREES.items()
        for target in imported_modules(tree, FILES)
        if not target or not allowed(name, target)
    ]
    assert not wrong


@pytest.mark.parametrize(
    "importer, imported",
    [
        ("errors", "nn.skip"),
        ("training.loop", "models.network"),
        ("nn.skip", "data.image_spec"),
        ("grow.verify", "runs"),
    ],
)
def test_the_order_of_packages_bites(importer, imported):
    assert not allowed(importer, imported)


def import_graph(trees, files):
    return {name: {t for t in imported_modules(tree, files) if t != name} for name, tree in trees.items()}


def cycle_of(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_files_are_acyclic():
    assert cycle_of(import_graph(TREES, FILES)) == []


def test_the_check_for_cycles_bites():
    sources = {"nn.a": "from skipway.nn import b", "nn.b": "def f():\n    from skipway.nn.a import g"}
    assert cycle_of(import_graph({name: ast.parse(text) for name, text in sources.items()}, sources))


def test_files_import_from_files_and_a_face_only_hands_names_on():
    wrong = [
        f"{name} imports from the face of {target}"
        for name, tree in TREES.items()
        for target in imported_modules(tree, FILES)
        if is_face(target)
    ]
    assert not wrong
    for name, tree in TREES.items():
        if is_face(name):
            kinds = {type(node) for node in tree.body} - {ast.ImportFrom, ast.Expr, ast.Assign}
            assert not kinds, f"{name} does more than hand names on: {kinds}"


def test_imports_are_absolute():
    relative = [n for n, t in TREES.items() for node in ast.walk(t) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative


def test_files_stay_within_their_budget():
    long = {name: lines for name, path in FILES.items() if (lines := len(path.read_text().splitlines())) > LINES}
    assert {name: lines for name, lines in long.items() if name not in LONGER} == {}
    assert set(LONGER) <= set(long), "an exception that is no longer needed"


def nested_conditionals(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            inner = [n for part in ast.iter_child_nodes(node) for n in ast.walk(part) if isinstance(n, ast.IfExp)]
            if inner:
                yield node.lineno


def test_no_conditional_expression_is_nested():
    assert not [f"{name}:{line}" for name, tree in TREES.items() for line in nested_conditionals(tree)]
    assert list(nested_conditionals(ast.parse("a if b else c if d else e")))


def multi_for_comprehensions(tree):
    comprehensions = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    return [n.lineno for n in ast.walk(tree) if isinstance(n, comprehensions) and len(n.generators) > 1]


def test_few_comprehensions_have_several_fors():
    found = [f"{name}:{line}" for name, tree in TREES.items() for line in multi_for_comprehensions(tree)]
    assert len(found) < MULTI_FOR_COMPREHENSIONS, found


# Every error has a test of its text

HOLE = "\0"  # a value in the text of an error, or in a test whatever may stand in its place
WORDS = 3  # in a row that prove that a test means an error, if no other error has them


def literal_text(node):
    """The text of a string, with holes for what is only known when the program runs."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else HOLE
    if isinstance(node, ast.JoinedStr):
        return "".join(map(literal_text, node.values))
    if isinstance(node, ast.BinOp):
        return literal_text(node.left) + literal_text(node.right)
    return HOLE


def words_and_holes(text):
    return re.findall(r"[\w-]+|\0", re.sub(r"[\w'-]*\0[\w'-]*", f" {HOLE} ", text))


def error_classes(trees):
    names = {"SkipwayError"}
    classes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in classes:  # until the bases of bases are found
        names |= {c.name for c in classes if names & {base.id for base in c.bases if isinstance(base, ast.Name)}}
    return names


def error_messages(trees):
    """The texts of all errors that the trees make, raised at once or returned."""
    names = error_classes(trees)
    calls = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    messages = {literal_text(call.args[-1]) for call in calls if call.func.id in names and call.args}
    return sorted(message for message in messages if set(words_and_holes(message)) - {HOLE})


def strings_of_test(tree):
    """The strings of a test file but its docstrings; what a pattern leaves open is a hole."""
    skipped = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    skipped |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
            open_parts = r"\\[dwsDWS][+*?]*|\.[*+]\??|\[[^\]]*\][+*?]*|\\x[0-9a-f]{2}|[|^$]"
            yield re.sub(open_parts, f" {HOLE} ", literal_text(node)).replace("\\", "")


def windows(message):
    """Each WORDS words in a row, with the holes between them."""
    parts = words_and_holes(message)
    places = [place for place, part in enumerate(parts) if part != HOLE]
    size = min(WORDS, len(places))
    return [parts[places[i] : places[i + size - 1] + 1] for i in range(len(places) - size + 1)]


def window_pattern(window):
    pattern, joint = "", r"(?<![\w-])"
    for part in window:
        if part == HOLE:
            joint = r"(?:[^\w-].{0,80}?)?[^\w-]"
        else:
            pattern, joint = pattern + joint + re.escape(part), r"[^\w-]+"
    return re.compile(pattern + r"(?![\w-])", re.S)


class TextsByWord:
    """Texts, to be searched quickly for words in a row."""

    def __init__(self, texts):
        self.texts, self.places = list(texts), {}
        for place, text in enumerate(self.texts):
            for word in set(re.findall(r"[\w-]+", text)):
                self.places.setdefault(word, set()).add(place)

    def count(self, window):
        places = set.intersection(*(self.places.get(word, set()) for word in window if word != HOLE))
        return sum(bool(window_pattern(window).search(self.texts[place])) for place in places)


def untested_errors(messages, strings):
    """The messages of which no test has words that no other message has; or any words, if it has none of its own."""
    all_messages, all_strings = TextsByWord(messages), TextsByWord(strings)
    untested = []
    for message in messages:
        parts = windows(message)
        own = [window for window in parts if all_messages.count(window) == 1] or parts
        if not any(all_strings.count(window) for window in own):
            untested.append(message)
    return untested


def test_every_error_is_matched_by_a_test():
    files = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    strings = [text for path in files for text in strings_of_test(ast.parse(path.read_text()))]
    messages = error_messages(TREES.values())
    assert len(messages) > 300 and untested_errors(messages, strings) == []


@pytest.mark.parametrize(
    "test, is_matched",
    [
        ('raises(InputError, match="lr must be positive, not -1")', True),
        ('raises(InputError, match=r"lr must be positive, not .*; give")', True),
        ('assert str(error) == f"lr must be positive, not {lr}"', True),
        ('raises(InputError, match="ema must be positive, not -1")', False),  # the words of another error
        ('raises(InputError, match="expected a rate above 0, got -1")', False),  # those before the text was changed
        ('raises(InputError, match="lr must")', False),
        ("raises(InputError)", False),
        ('"""lr must be positive, not -1"""', False),
    ],
)
def test_the_check_for_untested_errors_bites(test, is_matched):
    source = """
class OddError(SkipwayError): ...
def f(x, y):
    if x:
        raise OddError(f"lr must be positive, not {x}; give another")
    return SkipwayError(f"ema must be positive, not {y}")
"""
    messages = error_messages([ast.parse(source)])
    strings = [*strings_of_test(ast.parse(test)), "ema must be positive"]
    assert len(messages) == 2
    assert (untested_errors(messages, strings) == []) is is_matched


def test_the_formatter_lays_out_every_line():
    marked = [p for p in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")] if p != Path(__file__)]
    assert not [str(p) for p in marked if re.search(r"# fmt: (skip|off)", p.read_text())]


def test_the_project_speaks_of_the_project_alone():
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if (
            path.is_file()
            and not {".git", ".venv", "runs"} & set(parts[:1])
            and path.suffix in {".py", ".md", ".toml", ".html", ".yml", ".cff"}
        ):
            if path != Path(__file__) and re.search(r"/work/|\.\./shared|issue #?\d", path.read_text(), re.I):
                found.append(str(path))
    assert not found
