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
