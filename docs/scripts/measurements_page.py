"""The page of all measurements, as Markdown, from benchmarks/results/: the newest table of each kind, with its figure.

    python docs/scripts/measurements_page.py

A file is called DATE-KIND.md; its figure, if there is one, KIND.svg or KIND.png.
"""

import re
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
HEAD = """# Measurements

All measured values of skipway, generated from `benchmarks/results/`: the newest table of each kind. Other pages link
here and repeat no value. Each table has its date, hardware, versions and number of runs. Only ratios within one table
compare, because the speed of shared machines drifts between sessions. `benchmarks/log.md` lists the attempts that did
not help.
"""
GROUPS = {
    "Photographs": ("photographs-flowers", "photographs-flowers-one-core", "photographs-ants_bees")
    + ("photographs-clothing", "transfer", "from-scratch", "from-scratch-without-amx", "mirror-test"),
    "Small images": ("small-images", "whole-commands", "time-to-accuracy"),
    "Accuracy on tables": ("tables",),
    "Data": ("tables-of-images", "labels-and-numbers", "large-set", "table-reading-100000", "table-reading-1000000"),
    "Training speed": ("training-step-resnet18-32", "training-step-resnet20-32", "training-step-resnet50-224-16")
    + ("drop-path", "loader", "first-step", "processes", "checkpoint", "kernel-ratios", "kernel-overhead"),
    "Inference": ("inference-1", "inference-16", "inference-engines", "inference-accuracy"),
    "Memory": ("depth-fp32",),
    "Growth": ("growth", "growth-variants", "grown-outputs"),
    "Examples": ("example-notes", "example-fastbook", "example-depth"),
    "Faults": ("faults-kills", "faults-files", "faults-disks", "faults-races", "faults-limits", "faults-long-run"),
}
PROFILE = re.compile(r"^\w+: [\w:]+ \d+%.*$", re.M)


def newest() -> dict[str, Path]:
    """Return {kind: file}, with the newest file of each kind; a quick one counts only if there is no other."""
    files = {}
    for path in sorted(RESULTS.glob("*.md")):
        kind = path.stem[len("2026-01-01-") :]
        files[kind] = path
    full = {kind for kind in files if not kind.endswith("-quick")}
    return {kind.removesuffix("-quick"): files[kind] for kind in files if kind in full or kind[:-6] not in full}


def figures() -> list[Path]:
    """Return the figures of the shown kinds."""
    return [path for path in sorted(RESULTS.iterdir()) if path.suffix in (".svg", ".png") and path.stem in newest()]


def page() -> str:
    """Return the page."""
    files = newest()
    grouped = [kind for kinds in GROUPS.values() for kind in kinds]
    others = tuple(kind for kind in files if kind not in grouped)
    lines = [HEAD]
    for heading, kinds in {**GROUPS, "Other": others}.items():
        kinds = tuple(kind for kind in kinds if kind in files)
        if kinds:
            lines += [f"## {heading}", *(_section(kind, files[kind]) for kind in kinds)]
    return "\n\n".join(lines) + "\n"


def _section(kind: str, path: Path) -> str:
    """Return the table of one kind under a heading, its profile folded, its figure below."""
    title, _, body = path.read_text(encoding="utf-8").removeprefix("# ").partition("\n")
    profile = [f"    - {line}" for line in PROFILE.findall(body)]
    body = re.sub(r"\n{3,}", "\n\n", PROFILE.sub("", body)).strip()
    lines = [f"### {title} {{ #{kind} }}", body]
    if profile:
        lines.append("\n".join(['??? note "Time by operator"', "", *profile]))
    lines += [f"![{title}](figures/{figure.name})" for figure in figures() if figure.stem == kind]
    return "\n\n".join(lines)


if __name__ == "__main__":
    print(page())
