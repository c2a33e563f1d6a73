"""The house keeps its own rules: import arrows, budgets, absolute imports, and an error text behind every raise."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "skipway"

# Lowest floor first. On one floor a file imports only what stands to its left; rooms on one floor import no other room.
FLOORS = [
    [["errors", "spec", "shapes", "native", "kernels", "recipe", "signals", "console", "memory", "utils.devices"]],
    [["joins", "shortcuts", "drop_path", "show", "again", "skip", "reversible", "recomputation"]],
    [["blocks", "codes", "fused"]],
    [
        ["models.plan", "models.mlp", "models.resnet", "models.resnet9", "models.densenet", "models.registry"],
        [
            *(
                "data.images",
                "data.files",
                "data.source",
                "data.folder",
                "data.parquet",
                "data.hub",
                "data.csv_text",
                "data.table",
            ),
            "data.sources",
            *("data.pack", "data.split", "data.pixels", "data.augment", "data.distort", "data.loader"),
            *("data.columns", "data.table_spec", "data.target", "data.table_set"),
            "data.row_loader",
        ],
        [
            "training.ranks",
            "training.schedule",
            "training.optimizers",
            "training.metrics",
            "training.task",
            "training.durable",
            "training.checkpoint",
            "training.shards",
            "training.trainer",
            "training.range_test",
            "training.loop",
            "training.halving",
        ],
    ],
    [
        [
            *("network", "foreign_child", "foreign", "keymaps", "weights", "stored", "pretrained"),
            *(
                "features",
                "zoo",
                "channels",
                "widened",
                "inserted",
                "grown_plans",
                "grown_proof",
                "grown_optimizer",
                "grow",
            ),
            *("probe.mistakes", "probe.receptive", "probe.summary", "probe.measure"),
            *("probe.flow", "probe.lesion", "probe.landscape"),
            *("probe.ink", "probe.page", "probe.signs", "probe.diagram"),
            *("plots", "panels", "depth_plots", "compare_plot", "scatter"),
            *("preparation", "onnx_file", "openvino_engine", "export"),
            *("report_pictures", "run_reader", "report_tables", "report"),
        ]
    ],
    [
        [
            *(
                "decide",
                "beginning",
                "launch",
                "runfolder",
                "resume",
                "picture_job",
                "table_job",
                "job",
                "growing",
                "comparison",
                "samples",
                "probing",
                "engines",
                "exporting",
                "outcome",
            ),
            *("watching", "rates", "table_use", "run", "use", "estimators"),
        ]
    ],
    [["terminal", "cli_after", "cli"]],
]
LINES = 400
LONGER = {}  # file -> why it may be longer than LINES


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield name, path


def place(name):
    for height, rooms in enumerate(FLOORS):
        for room, names in enumerate(rooms):
            if name in names:
                return height, room, names.index(name)
    raise AssertionError(f"{name} stands on no floor: add it to FLOORS")


def imported(path):
    """Every skipway module that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module and node.module.split(".")[0] == "skipway":
                stem = node.module.removeprefix("skipway").removeprefix(".")
                for alias in node.names:
                    inner = f"{stem}.{alias.name}".removeprefix(".")
                    yield inner if (PACKAGE / (inner.replace(".", "/") + ".py")).exists() else stem
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "skipway":
                    yield alias.name.removeprefix("skipway").removeprefix(".")


def arrow_points_down(importer, target):
    if importer.endswith("__init__"):
        return True
    (high, room, column), (low, other, left) = place(importer), place(target)
    return low < high or (low == high and room == other and left < column)


def test_every_import_arrow_points_down():
    wrong = [
        f"{name} -> {target or '__init__'}"
        for name, path in modules()
        if name != "__main__"
        for target in imported(path)
        if not target or target.endswith("__init__") or not arrow_points_down(name, target)
    ]
    assert not wrong


@pytest.mark.parametrize(
    "importer, target",
    [("errors", "skip"), ("training.loop", "data.pack"), ("models.mlp", "models.registry"), ("zoo", "run")],
)
def test_the_arrow_check_bites(importer, target):
    assert not arrow_points_down(importer, target)


def test_files_stay_within_their_budget():
    long = {n: len(p.read_text().splitlines()) for n, p in modules() if len(p.read_text().splitlines()) > LINES}
    assert {n: lines for n, lines in long.items() if n not in LONGER} == {}
    assert set(LONGER) <= set(long), "an exception that is no longer needed"


def raises():
    """(where, literal pieces of the message) of every raise with a message in the package."""
    for name, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                pieces = [
                    c.value
                    for a in node.exc.args
                    for c in ast.walk(a)
                    if isinstance(c, ast.Constant) and isinstance(c.value, str)
                ]
                if pieces:
                    yield f"{name}:{node.lineno}", pieces


def plain(text):
    return re.sub(r"[^\w ]+", "", re.sub(r"\\.", "", text))


def windows(pieces, size=3):
    for piece in pieces:
        words = plain(piece).split()
        yield from (" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1)) if words)


def test_every_raise_is_matched_by_a_test():
    said = " ".join(plain(p.read_text()) for p in (ROOT / "tests").glob("test_*.py"))
    silent = [where for where, pieces in raises() if not any(w in said for w in windows(pieces) if len(w) > 6)]
    assert not silent, f"no test matches the text of: {silent}"


def test_the_project_speaks_of_the_project_alone():
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if (
            path.is_file()
            and not {".git", ".venv", "runs"} & set(parts)
            and path.suffix in {".py", ".md", ".toml", ".html"}
        ):
            if path != Path(__file__) and re.search(r"/work/|\.\./shared|issue #?\d", path.read_text(), re.I):
                found.append(str(path))
    assert not found
