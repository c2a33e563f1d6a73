"""The drawing is read back as XML: what stands in it and where, and that nothing is missing or covered."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.data.image_spec import Spec
from skipway.errors import InputError, ShapeError
from skipway.model_factory import create_model
from skipway.models import registry
from skipway.models.network import build_meta_network
from skipway.nn.chain import Chain
from skipway.nn.dense import Dense
from skipway.nn.parallel import Parallel
from skipway.nn.reversible import Coupling, Reversible
from skipway.nn.skip import Skip, named_skips
from skipway.probe.diagram import diagram
from skipway.probe.svg_text import ARCS, BLUE, GREEN, VERMILION, fit_text

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

SVG = "{http://www.w3.org/2000/svg}"
NAMES = [
    "resnet18",
    "resnet50",
    "resnet152",
    "resnetv2_50",
    "resnext50_32x4d",
    "seresnet50",
    "resnet20",
    "resnet110",
    "wide_resnet28_10",
    "revnet38",
    "densenet121",
    "resmlp",
    "resnet9",
    "resnet9m",
]


def read(svg):
    root = ElementTree.fromstring(svg)
    assert {e.tag.removeprefix(SVG) for e in root.iter()} <= {
        "svg",
        "title",
        "desc",
        "rect",
        "path",
        "text",
        "g",
        "circle",
        "polygon",
    }
    return root


def texts(root):
    return ["".join(e.itertext()) for e in root.iter(f"{SVG}text")]


def boxes(root, corner):
    """(left, top, right, bottom) of all rectangles with such corners: 4 of layers, 2 of bars, 7 of cards."""
    found = [e.attrib for e in root.iter(f"{SVG}rect") if e.get("rx") == str(corner)]
    sides = [[float(a[name]) for name in ("x", "y", "width", "height")] for a in found]
    return [(x, y, x + w, y + h) for x, y, w, h in sides]


def arcs(root, color, dashed):
    """How many arcs of that kind are drawn, without the one in the legend."""
    found = [e for e in root.iter(f"{SVG}path") if e.get("stroke") == color and e.get("stroke-width") == "2"]
    return max(0, sum((e.get("stroke-dasharray") is not None) == dashed for e in found) - 1)


def counted(root):
    """Blocks that are drawn, and those that are told in a number."""
    return len(boxes(root, 7)), sum(int(t[2:]) for t in texts(root) if re.fullmatch(r"\+ \d+", t))


@pytest.mark.parametrize("name", NAMES)
def test_every_block_is_drawn_or_counted_and_fits_the_page(name):
    svg = diagram(name)
    root = read(svg)
    drawn, told = counted(root)
    network = build_meta_network(registry.plan_of(name))
    assert drawn + told == sum(isinstance(m, Skip | Coupling) for m in network.modules()) and drawn > 0
    assert f"{sum(p.numel() for p in network.parameters()):,} parameters" in texts(root)[1]
    width, height = float(root.get("width")), float(root.get("height"))
    assert width <= 1110 and height <= 1200
    for left, top, right, bottom in (*boxes(root, 4), *boxes(root, 2), *boxes(root, 7), *boxes(root, 6)):
        assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert min(float(e.get("font-size")) for e in root.iter(f"{SVG}text")) >= 11
    assert not re.search(r"href|url\(|@import|<!|<script|<style", svg) and "http" not in svg.replace(SVG[1:-1], "")


@pytest.mark.parametrize(
    "name, solid, dashed, dense",
    [("resnet18", 5, 3, 0), ("resnet50", 9, 4, 0), ("resnetv2_18", 5, 3, 0), ("densenet121", 0, 0, 8)],
)
def test_arcs_tell_identities_from_projections_and_dense_connections(name, solid, dashed, dense):
    root = read(diagram(name))
    assert (arcs(root, BLUE, False), arcs(root, VERMILION, True), arcs(root, GREEN, False)) == (solid, dashed, dense)
    assert texts(root).count("project") == dashed
    legend = " ".join(texts(root))
    assert ("projection: " in legend, "dense: " in legend, "concat" in legend) == (dashed > 0, dense > 0, dense > 0)


def test_other_shortcuts_and_joins_are_called_what_they_are():
    said = texts(read(diagram(create_model("resnet20", join="gate"))))
    assert said.count("pad") == 2 and said.count("g") == 10 and "gate (highway)" in said and "add" not in said
    assert texts(read(diagram("xresnet18"))).count("pool, project") == 3
    skips = [
        Skip(nn.Linear(3, 3), nn.Linear(3, 3), join="multiply"),
        Skip(nn.Linear(3, 3), nn.Softsign(), join=lambda a, b: a),
    ]
    said = texts(read(diagram(Chain(*skips))))
    assert {"Linear", "Softsign", "×", "f"} <= set(said) and "custom join" in said


def test_a_row_says_what_leaves_it_and_what_it_holds():
    said = texts(read(diagram("resnet50", (1, 3, 128, 96))))
    assert said[:2] == ["resnet50", "25,557,032 parameters · 16 shortcuts · input 3 × 128 × 96"]
    at = said.index("stage3")
    assert said[at : at + 4] == ["stage3", "1024 × 8 × 6", "6 blocks", "7,098,368 parameters"]
    assert (
        said.count("3×3/2") == 4 and said.count("1024") == 3
    )  # one in the stem's pool, one in each stage after the first
    assert "+ 3" in said and "equal blocks" in said
    assert "similar blocks" in texts(read(diagram("densenet121")))
    assert "reversible" in texts(read(diagram("revnet38")))


def test_a_plan_a_name_and_a_network_are_drawn_alike():
    network = create_model("resnet20", 2, in_chans=1)
    assert diagram(network) == diagram(network.plan) != diagram("resnet20") == diagram(create_model("resnet20"))
    assert "input 1 × 32 × 32" in diagram(network) and "input 64<" in diagram("resmlp")
    network.spec = Spec(1, 24, 28, (0.5,), (0.5,), ("cat", "dog"))
    assert "input 1 × 24 × 24" in diagram(network) and "input 1 × 8 × 8" in diagram(network, (1, 1, 8, 8))


def test_it_is_read_out_as_title_and_description():
    root = read(diagram("resnet18"))
    assert root.get("role") == "img" and root.find(f"{SVG}title").text == "resnet18"
    described = root.find(f"{SVG}desc").text
    assert described.startswith("11,689,512 parameters, 8 shortcuts, input 3 × 224 × 224. From input to output: stem: ")
    assert "stage4: 512 × 7 × 7, 2 blocks, 8,393,728 parameters" in described
    tips = [e.text for e in root.iter(f"{SVG}title")]
    assert any(t.startswith("stage2.0.body.conv1: Conv2d(64, 128, kernel_size=(3, 3)") for t in tips)
    assert any(t.endswith("73,728 parameters, output 128 × 28 × 28") for t in tips)


def test_a_network_without_a_plan_needs_no_shape_and_says_what_is_open():
    network = Chain(Dense(None, 8, torch.relu), Skip(nn.LazyLinear(8), "auto"))
    said = texts(read(diagram(network)))
    assert said[:2] == ["Chain", "uninferred sizes · 1 shortcut"] and "auto" in said
    said = texts(read(diagram(network, (2, 3))))
    assert said[1] == "104 parameters · 1 shortcut · input 3" and "auto" not in said and "8" in said
    with pytest.raises(ShapeError, match=r"expected \(\*, 3\), got \(2, 5\)"):
        diagram(network, (2, 5))
    assert texts(read(diagram(nn.Linear(2, 3))))[1] == "9 parameters · 0 shortcuts"
    assert texts(read(diagram(nn.ReLU(), (4,))))[:3] == [
        "ReLU",
        "no parameters · 0 shortcuts · input scalar",
        "the network",
    ]


def test_runs_of_layers_that_repeat_are_told_in_a_number():
    layers = [layer for _ in range(60) for layer in (nn.Linear(16, 16), nn.ReLU())]
    root = read(diagram(nn.Sequential(nn.Flatten(), *layers, nn.Linear(16, 2))))
    assert texts(root).count("linear") == 3 and "+ 58 ×" in texts(root) and "these 2" in texts(root)
    assert texts(read(diagram(nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])))).count("linear") == 3
    said = texts(read(diagram(nn.Sequential(*[nn.Linear(4, 4) for _ in range(5)]))))
    assert said.count("linear") == 2 and "+ 3" in said and "equal layers" in said


class Block(nn.Module):
    """As users write them."""

    def __init__(self):
        super().__init__()
        self.second, self.first = nn.Linear(5, 4), nn.Linear(4, 5)

    def forward(self, x):
        return x + self.second(self.first(x).relu())


def test_a_module_of_the_users_is_a_frame_with_its_layers_in_the_order_of_their_calls():
    network = Chain(nn.Linear(4, 4), Block(), Block(), nn.MultiheadAttention(4, 2))
    said = texts(read(diagram(network[:3], (2, 4))))
    at = said.index("Block")
    assert said[at : at + 5] == ["Block", "linear", "5", "linear", "4"] and said.count("Block") == 2
    assert "0 to 2" in said and "2 blocks" in said and "MultiheadAttention" in texts(read(diagram(network)))
    assert "0.25" in texts(read(diagram(network[:3], (2, 4), values={"1": 0.25, "2": 1})))
    large = Block()
    large.first = Chain(*(Skip(nn.Linear(4, 4)) for _ in range(3)))
    said = texts(read(diagram(Chain(nn.Linear(4, 4), encoder=large))))
    assert said[said.index("encoder.first") + 1] == "3 blocks" and "encoder.second" in said
    large.first = Chain(*(nn.Linear(4, width) for width in range(10, 20)))
    said = texts(read(diagram(Chain(nn.Linear(4, 4), encoder=large))))
    assert said[said.index("encoder") + 1] == "Block"


def test_many_rows_that_look_the_same_are_one():
    def layers(count):
        return Chain(*(Chain(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(count)), nn.Linear(4, 1))

    said = texts(read(diagram(layers(40))))
    assert "0 to 40" in said and "+ 38" in said and said.count("4") == 2
    assert {"0", "1", "2", "3", "4", "5", "6"} <= set(texts(read(diagram(layers(6)))))


def test_one_row_for_each_stage_however_deep_it_stands():
    blocks = [Chain(*(Skip(nn.Linear(4, 4)) for _ in range(2))) for _ in range(2)]
    said = texts(read(diagram(Chain(nn.Linear(4, 4), features=Chain(*blocks), head=nn.Linear(4, 1)), (1, 4))))
    assert [t for t in said if t in ("0", "features.0", "features.1", "head")] == [
        "0",
        "features.0",
        "features.1",
        "head",
    ]


def test_branches_lie_beside_each_other_and_an_identity_is_a_line():
    network = Chain(
        Parallel("concat", nn.Conv2d(3, 8, 1), Chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 9, 3)), nn.Identity())
    )
    root = read(diagram(network))
    tops = sorted({top for _, top, _, _ in boxes(root, 4)})
    assert len(tops) >= 2 and arcs(root, BLUE, False) == 1 and "Identity" not in texts(root)


def test_what_is_wider_than_a_line_is_opened_into_lines():
    def layers(count):
        return Chain(*(nn.Linear(4, 100 + number) for number in range(count)))

    network = Chain(Parallel("concat", layers(30), nn.Identity(), layers(3)), Skip(layers(30), nn.Linear(4, 129)))
    root = read(diagram(Chain(network, Coupling(layers(12), layers(12)))))
    said = texts(root)
    assert float(root.get("width")) <= 1110 and said.count("linear") == 30 + 3 + 30 + 12 + 12
    assert {"1 of 3", "2 of 3", "3 of 3", "Identity", "Linear", "f", "g"} <= set(said)
    assert arcs(root, VERMILION, True) == 1 and arcs(root, BLUE, False) == 2


def test_a_unet_is_drawn_with_its_arcs_inside_each_other():
    from unet import unet

    root = read(diagram(unet(1, 3), (1, 1, 64, 64)))
    assert arcs(root, GREEN, False) == 3 and texts(root).count("AsLargeAs") == 3 and texts(root).count("‖") == 4
    deep = read(diagram(unet(1, 3, (8, 8, 8, 8, 8, 8)), (1, 1, 64, 64)))
    assert arcs(deep, GREEN, False) == 6 and float(deep.get("width")) <= 1110  # the outer ones down the side


HOSTILE = "</svg><script>alert('&')</script>\"\x01\u202e\ufffe\U0001f600"


def test_names_are_text_whatever_is_in_them():
    kind = type(HOSTILE, (nn.Module,), {"forward": lambda self, x: x})
    holder = type(HOSTILE, (nn.Module,), {"forward": lambda self, x: self.inside(x)})()
    holder.inside = nn.Linear(4, 4)
    network = Chain(**{HOSTILE: nn.Linear(4, 4), "stage": Chain(**{HOSTILE: Skip(kind(), kind()), "b": holder})})
    network = type(HOSTILE, (Chain,), {})(**dict(network.named_children()))
    svg = diagram(network, (1, 4), values={f"stage.{HOSTILE}": 1})
    root = read(svg)
    assert "<script" not in svg and not re.search("[\x00-\x08\u202e\ufffe]", svg)
    shown = [t for t in (*texts(root), *(e.text for e in root.iter(f"{SVG}title"))) if "<script>" in t]
    assert len(shown) > 6 and all(t.count("</svg>") >= 1 for t in shown)


@pytest.mark.parametrize(
    "text, most, wanted",
    [("a<b", 9, "a&lt;b"), ("&&&&", 3, "&amp;&amp;…"), ("a\nb\x00", 20, "a\\x0ab\\x00"), ("\ufffe", 5, "\ufffd")],
)
def test_texts_are_cut_before_they_are_escaped(text, most, wanted):
    assert fit_text(text, most) == wanted


# Values


def cards(root):
    return [e.get("fill") for e in root.iter(f"{SVG}rect") if e.get("rx") == "7"]


def test_values_tint_the_blocks_and_are_written_below_them():
    values = {"stage1.0": 0.5, "stage1.1": 2, "stage2.0": torch.tensor(4.5)}
    root = read(diagram("resnet18", values=values))
    ground, top = "#ffffff", "#f2a86b"
    white, between, orange, *others = cards(root)
    assert (white, orange, set(others)) == (ground, top, {ground}) and ground > between > top
    assert {"0.5", "2", "4.5", "value of a block, from 0.5 to 4.5"} <= set(texts(root))
    assert cards(read(diagram("resnet18", values={"stage1.0": 3}))) == [ground] * 8


def test_blocks_told_in_a_number_say_between_what_their_values_lie():
    network = build_meta_network(registry.plan_of("resnet152"))
    values = {path: number for number, (path, _) in enumerate(named_skips(network))}
    said = texts(read(diagram(network, values=values)))
    assert {"6 to 10", "14 to 46"} <= set(said)
    assert said[said.index("14 to 46") - 2 :][:2] == ["+ 33", "equal blocks"]


def test_values_by_the_paths_of_skips_belong_to_the_blocks_around_them():
    network = build_meta_network(registry.plan_of("resnetv2_18"))
    values = {path: 1.5 for path, _ in named_skips(network)}
    assert any(path.endswith(".skip") for path in values)
    assert texts(read(diagram(network, values=values))).count("1.5") == 8


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"stage1.9": 1},
            r"expected paths of drawn blocks \(stage1.0, .*, got 'stage1.9' \(did you mean .*\)\. Pass",
        ),
        ({"head": 1}, "invalid values: expected paths of drawn blocks .*, got 'head'"),
        ({"stage1": 1}, "invalid values: expected paths of drawn blocks .*, got 'stage1'"),
        ({"stage1.0": float("nan")}, "invalid values: expected a finite number for the block 'stage1.0', got nan"),
        ({"stage1.0": "much"}, "expected a finite number for the block 'stage1.0', got 'much'"),
        ({"stage1.0": float("inf")}, "expected a finite number for the block 'stage1.0', got inf"),
    ],
)
def test_values_that_cannot_be_shown_are_refused(given, message):
    with pytest.raises(InputError, match=message) as caught:
        diagram("resnet18", values=given)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_is_refused():
    with pytest.raises(
        InputError, match="cannot draw a diagram: expected a module, a plan or an architecture name, got int"
    ):
        diagram(3)
    with pytest.raises(InputError, match=r"unknown architecture 'resnet19' \(did you mean resnet9"):
        diagram("resnet19")
    with pytest.raises(InputError, match=r"expected paths of drawn blocks \(none here\), got 'a'\. Pass"):
        diagram(nn.Linear(2, 2), values={"a": 1})


def test_a_network_is_as_it_was():
    network = create_model("resnet20").train()
    before = {name: (id(t), t.clone()) for name, t in network.state_dict(keep_vars=True).items()}
    diagram(network)
    assert network.training
    for name, tensor in network.state_dict(keep_vars=True).items():
        assert id(tensor) == before[name][0] and torch.equal(tensor, before[name][1])


# Any tree


def trees(leaves):
    several = st.lists(leaves, min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.just("chain"), several),
        st.tuples(st.sampled_from(["add", "concat", "gate", "module"]), several),
        st.tuples(st.just("parallel"), several),
        st.tuples(st.just("coupling"), st.lists(leaves, min_size=2, max_size=2)),
        st.tuples(st.just("own"), several),
    )


def built(tree, names):
    """A tree of layers, each leaf with a number of its own."""
    if tree is None:
        names.append(f"outputs {100 + len(names)}")
        return nn.Linear(4, int(names[-1].split()[1]))
    kind, parts = tree
    parts = [built(part, names) for part in parts]
    if kind == "chain":
        return Chain(*parts)
    if kind == "parallel":
        return Parallel("add", *parts)
    if kind == "coupling":
        return Reversible(Coupling(*parts))
    if kind == "own":
        own = Block()
        own.first = own.second = None
        own.parts = nn.ModuleList(parts)
        return own
    return Skip(parts, nn.Linear(4, 4) if kind == "module" else None, join="add" if kind == "module" else kind)


@settings(max_examples=80)
@given(st.lists(st.recursive(st.none(), trees, max_leaves=40), min_size=1, max_size=4))
def test_every_layer_of_any_tree_is_drawn_once_and_covers_no_other(parts):
    names = []
    network = Chain(*(built(part, names) for part in parts))
    root = read(diagram(network))
    said = texts(root)
    assert [said.count(name.split()[1]) for name in names] == [1] * len(names)
    layers = [box for box in boxes(root, 4) if box[3] - box[1] == 34]
    assert len(layers) == len(names)
    for number, (left, top, right, bottom) in enumerate(layers):
        assert 0 <= left and right <= float(root.get("width")) and bottom <= float(root.get("height"))
        for a, b, c, d in layers[:number]:
            assert c <= left or right <= a or d <= top or bottom <= b
    assert arcs(root, VERMILION, True) == sum(skip.shortcut is not None for _, skip in named_skips(network))


def test_each_kind_of_arc_has_its_own_looks():
    assert len(set(ARCS.values())) == len(ARCS)
