"""The table of all architectures, as Markdown, from the registry.

python docs/scripts/model_page.py
"""

from skipway.models import registry
from skipway.utils.format_text import join_sizes

HEAD = """# Model table

Every architecture that `--model` and `sw.create_model` accept, generated from the registry. `skipway models` prints
the same list. Parameters are counted with the classes of the paper. [Architectures](architectures.md) describes the
families, their papers and their options.
"""
TITLES = {
    "resnet": "ResNet and its variants",
    "inverted_residual": "MobileNetV2, EfficientNet and EfficientNet-Lite",
    "convnext": "ConvNeXt",
    "densenet": "DenseNet",
    "resmlp": "Residual MLP",
    "resnet9": "ResNet-9",
}
SHOWN = ("block", "layers", "stem", "num_classes")


def page() -> str:
    """Return the page."""
    lines = [HEAD]
    for family, kind in registry.FAMILIES.items():
        lines += [f"## {TITLES[family]}", "", "| name | parameters | blocks per stage | classes | other options |"]
        lines += ["| --- | ---: | --- | ---: | --- |"]
        lines += [_row(name) for name in registry.names() if name in kind.rows]
        lines += [""]
    return "\n".join(lines)


def _row(name: str) -> str:
    plan = registry.plan_of(name)
    defaults = registry.FAMILIES[plan["family"]].plan().as_dict()
    changed = [f"`{key}={plan[key]!r}`" for key in defaults if key not in SHOWN and plan[key] != defaults[key]]
    options = [f"`{key}={plan[key]!r}`" for key in ("block", "stem") if key in plan]
    cells = (
        f"`{name}`",
        f"{registry.count_parameters(plan):,}",
        join_sizes(plan["layers"]),
        str(plan["num_classes"]),
        ", ".join(options + changed),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page())
