"""The named residual networks: each is one row of options of `ResNetPlan`.

Sources: see `skipway.models.resnet`; anti-aliased networks, Zhang 2019, arXiv:1904.11486; BiT, Kolesnikov et al. 2019,
arXiv:1912.11370; SENet-154, Hu et al. 2017, arXiv:1709.01507; pruned ECA-ResNets, Aflalo et al. 2020, arXiv:2002.08258;
the other names, timm.
"""

from typing import Any

__all__ = ["NETWORKS"]

_FOUR = (64, 128, 256, 512)
_THREE = (16, 32, 64)

_DEPTHS: dict[int, dict[str, Any]] = {
    10: {"block": "basic", "layers": (1, 1, 1, 1)},
    14: {"block": "bottleneck", "layers": (1, 1, 1, 1)},
    18: {"block": "basic", "layers": (2, 2, 2, 2)},
    26: {"block": "bottleneck", "layers": (2, 2, 2, 2)},
    34: {"block": "basic", "layers": (3, 4, 6, 3)},
    50: {"block": "bottleneck", "layers": (3, 4, 6, 3)},
    101: {"block": "bottleneck", "layers": (3, 4, 23, 3)},
    152: {"block": "bottleneck", "layers": (3, 8, 36, 3)},
    200: {"block": "bottleneck", "layers": (3, 24, 36, 3)},
    269: {"block": "bottleneck", "layers": (3, 30, 48, 8)},
}
_VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "c": {"stem": "deep"},
    "d": {"stem": "deep", "shortcut": "pool"},
    "s": {"stem": "deep", "stem_channels": 128},
    "t": {"stem": "tiered", "shortcut": "pool"},
}
_SE, _ECA = {"attention": "se"}, {"attention": "eca"}
_AVG, _BLUR = {"aa_layer": "avg"}, {"aa_layer": "blurpool"}


def _rows(pattern: str, depths: dict[int, str], **options: Any) -> dict[str, dict[str, Any]]:
    """Return one row for each variant ("-" is the plain one) of each depth, named by `pattern`."""
    rows = {}
    for depth, variants in depths.items():
        for letter in variants:
            variant = letter.strip("-")
            rows[pattern.format(f"{depth}{variant}")] = {**_DEPTHS[depth], **_VARIANTS[variant], **options}
    return rows


def _cifar(blocks: int, block: str = "basic", factor: int = 1, **options: Any) -> dict[str, Any]:
    return {
        "block": block,
        "layers": (blocks,) * 3,
        "widths": tuple(width * factor for width in _THREE),
        "stem": "small",
        "num_classes": 10,
        **options,
    }


def _deep_xresnet(depth: int, more: int) -> dict[str, Any]:
    """Return the row of a depth with `more` additional stages of one block each."""
    layers, widths = (*_DEPTHS[depth]["layers"], *[1] * more), (*_FOUR, *[256] * more)
    return {**_DEPTHS[depth], **_VARIANTS["d"], "layers": layers, "widths": widths}


def _bit(depth: int, factor: int) -> dict[str, Any]:
    """Return the row of a BiT network, `factor` times as wide."""
    row = {**_DEPTHS[depth], "block": "preact_bottleneck", "widths": tuple(factor * width for width in _FOUR)}
    return {**row, "stem": "fixed", "norm": "group", "weight_standardization": True}


def _preact(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the same rows with norm and activation first."""
    return {name: {**row, "block": f"preact_{row['block']}"} for name, row in rows.items()}


# What pruning left: the inner channels of each block, stage by stage, and the output channels of the stages.
_PRUNED: dict[int, dict[str, tuple[int, ...]]] = {
    50: {
        "inner_widths": (
            *(47, 18, 52, 22, 64, 35),
            *(85, 37, 107, 80, 120, 85, 125, 87),
            *(198, 126, 255, 232, 256, 233, 253, 235, 256, 225, 256, 239),
            *(492, 237, 512, 500, 512, 490),
        ),
        "out_widths": (19, 171, 818, 2022),
    },
    101: {
        "inner_widths": (
            *(45, 25, 53, 20, 60, 27),
            *(81, 24, 93, 49, 102, 54, 122, 78),
            *(101, 25, 239, 160, 234, 156, 250, 176, 253, 191, 251, 175, 230, 128, 244, 154, 244, 159, 238, 97),
            *(244, 149, 253, 181, 245, 119, 255, 216, 256, 201, 253, 149, 254, 141, 256, 190, 256, 217, 255, 156),
            *(256, 155, 256, 232, 256, 214),
            *(499, 289, 512, 512, 512, 502),
        ),
        "out_widths": (26, 142, 278, 2042),
    },
}
_RS = {"stem": "deep_conv", "shortcut": "pool", "attention": "se", "attention_ratio": 0.25, "block": "bottleneck"}

NETWORKS: dict[str, dict[str, Any]] = {
    **_rows("resnet{}", {10: "-t", 14: "t", 18: "-d", 26: "-dt", 34: "-d", 50: "-cdst"}),
    **_rows("resnet{}", {101: "-cds", 152: "-cds", 200: "-d"}),
    **_rows("resnet{}_v1", {50: "-", 101: "-", 152: "-", 200: "-"}, block="bottleneck_v1"),
    **_rows("resnet{}_gn", {50: "-"}, norm="group"),
    **_preact(_rows("resnetv2_{}", {18: "-d", 34: "-d", 50: "-dt", 101: "-d", 152: "-d", 200: "-"})),
    **_preact(_rows("resnetv2_{}_gn", {50: "d"}, norm="group")),
    **_preact(_rows("resnetv2_{}_evos", {50: "d"}, norm="evonorm")),
    **_preact(_rows("resnetv2_{}_frn", {50: "d"}, norm="frn")),
    **{
        f"resnetv2_{depth}x{factor}_bit": _bit(depth, factor)
        for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4))
    },
    **_rows("resnetaa{}", {34: "d", 50: "-d", 101: "d"}, **_AVG),
    **_rows("resnetblur{}", {18: "-", 50: "-d", 101: "d"}, **_BLUR),
    **_rows("xresnet{}", dict.fromkeys((18, 34, 50, 101, 152), "-"), **_VARIANTS["d"]),
    **{f"xresnet{depth}_deep": _deep_xresnet(depth, more=2) for depth in (18, 34, 50)},
    **{f"xresnet{depth}_deeper": _deep_xresnet(depth, more=4) for depth in (18, 34, 50)},
    "xresnet18_deeper": {**_deep_xresnet(18, more=4), "layers": (2, 2, *[1] * 6)},
    **_rows("wide_resnet{}_2", {50: "-", 101: "-"}, base_width=128),
    **_rows("resnext{}_32x4d", {50: "-d", 101: "-"}, cardinality=32, base_width=4),
    **_rows("resnext{}_32x8d", {101: "-"}, cardinality=32, base_width=8),
    **_rows("resnext{}_32x16d", {101: "-"}, cardinality=32, base_width=16),
    **_rows("resnext{}_32x32d", {101: "-"}, cardinality=32, base_width=32),
    **_rows("resnext{}_64x4d", {101: "-"}, cardinality=64, base_width=4),
    **_rows("seresnet{}", {18: "-", 34: "-", 50: "-t", 101: "-", 152: "-d", 200: "d", 269: "d"}, **_SE),
    **_rows("seresnext{}_32x4d", {26: "dt", 50: "-", 101: "-"}, cardinality=32, base_width=4, **_SE),
    **_rows("seresnext{}_32x8d", {101: "-d"}, cardinality=32, base_width=8, **_SE),
    **_rows("seresnext{}_64x4d", {101: "-"}, cardinality=64, base_width=4, **_SE),
    **_rows("seresnetaa{}", {50: "d"}, **_SE, **_AVG),
    **_rows("seresnextaa{}_32x8d", {101: "d"}, cardinality=32, base_width=8, **_SE, **_AVG),
    "seresnextaa201d_32x8d": {
        **{**_DEPTHS[200], "layers": (3, 24, 36, 4), "stem": "deep", "stem_channels": 128, "shortcut": "pool"},
        **{"cardinality": 32, "base_width": 8, **_SE, **_AVG},
    },
    "senet154": {
        **{**_DEPTHS[152], **_VARIANTS["s"], "cardinality": 64, "base_width": 4, **_SE},
        **{"block_reduce_first": 2, "down_kernel_size": 3},
    },
    **_rows("ecaresnet{}", {26: "t", 50: "dt", 101: "d", 200: "d", 269: "d"}, **_ECA),
    **{f"ecaresnet{n}d_pruned": {**_DEPTHS[n], **_VARIANTS["d"], **_ECA, **kept} for n, kept in _PRUNED.items()},
    **_rows("ecaresnext{}_32x4d", {26: "t", 50: "t"}, cardinality=32, base_width=4, **_ECA),
    "ecaresnetlight": {"block": "bottleneck", "layers": (1, 1, 11, 3), "shortcut": "pool", **_ECA},
    "resnetrs50": {"layers": (3, 4, 6, 3), **_RS},
    "resnetrs101": {"layers": (3, 4, 23, 3), **_RS},
    "resnetrs152": {"layers": (3, 8, 36, 3), **_RS},
    "resnetrs200": {"layers": (3, 24, 36, 3), **_RS},
    "resnetrs270": {"layers": (4, 29, 53, 4), **_RS},
    "resnetrs350": {"layers": (4, 36, 72, 4), **_RS},
    "resnetrs420": {"layers": (4, 44, 87, 4), **_RS},
    "test_resnet": {
        **{"block": ("basic", "basic", "bottleneck", "basic"), "layers": (1, 1, 1, 1), "widths": (32, 48, 48, 96)},
        **{"stem": "deep", "shortcut": "pool"},
    },
    **{f"resnet{6 * n + 2}": _cifar(n, shortcut="pad") for n in (3, 5, 7, 9, 18, 200)},
    "resnetv2_110": _cifar(18, "preact_basic"),
    **{f"resnetv2_{9 * n + 2}": _cifar(n, "preact_bottleneck") for n in (18, 111)},
    "revnet38": _cifar(3, "preact_basic", reversible=True, widths=(32, 64, 112)),
    "revnet110": _cifar(9, "preact_basic", reversible=True, widths=(32, 64, 128)),
    "revnet164": _cifar(9, "preact_bottleneck", reversible=True, widths=(32, 64, 128), stem_channels=128),
    **{
        f"wide_resnet{depth}_{factor}": _cifar((depth - 4) // 6, "preact_basic", factor, stem_channels=16)
        for depth, factor in ((16, 8), (22, 8), (28, 10), (28, 12), (40, 1), (40, 2), (40, 4))
    },
}
