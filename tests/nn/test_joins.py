import copy
import re

import pytest
import torch
from torch import nn

from skipway.errors import InputError, ShapeError
from skipway.nn.join_errors import need_equal_shapes
from skipway.nn.joins import JOINS, Gate, Scale, add, append, concat, make_join, multiply
from skipway.nn.parallel import Parallel
from skipway.nn.shape_inference import output_shape
from skipway.nn.skip import Skip

SHAPES = [(4, 3), (4, 3, 5), (4, 3, 5, 6), (4, 3, 5, 6, 2)]
EQUAL = {"add": lambda: add, "multiply": lambda: multiply, "gate": lambda: Gate(3), "scale": lambda: Scale(3)}


@pytest.mark.parametrize("shape", SHAPES)
def test_each_join_is_its_formula_on_every_number_of_axes(shape):
    branch, shortcut = torch.randn(2, *shape)
    assert torch.equal(add(branch, shortcut), branch + shortcut)
    assert torch.equal(multiply(branch, shortcut), branch * shortcut)
    assert torch.equal(concat(branch, shortcut), torch.cat([branch, shortcut], 1))
    scale = Scale(3, init=0.5)
    assert torch.allclose(scale(branch, shortcut), 0.5 * branch + shortcut)
    gate = Gate(3)
    weight, bias = gate.transform.weight, gate.transform.bias
    column = (1, 3) + (1,) * (len(shape) - 2)
    t = torch.sigmoid(torch.einsum("oi,bi...->bo...", weight, shortcut) + bias.view(column))
    assert torch.allclose(gate(branch, shortcut), t * branch + (1 - t) * shortcut, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_scale_multiplies_each_channel_by_its_own_number(shape):
    scale = Scale(3)
    scale.scale.data.copy_(torch.tensor([1.0, 2.0, 3.0]))
    branch = torch.ones(shape)
    assert torch.equal(
        scale(branch, torch.zeros(shape)).amax(dim=tuple(d for d in range(len(shape)) if d != 1)),
        torch.tensor([1.0, 2.0, 3.0]),
    )


def test_add_and_multiply_take_any_number_of_branches():
    a, b, c = torch.randn(3, 2, 5)
    assert torch.equal(add(a, b, c), a + b + c) and torch.equal(multiply(a, b, c), a * b * c)
    assert add(a) is a


def test_concat_puts_the_branch_first():
    branch, shortcut = torch.ones(2, 1), torch.zeros(2, 2)
    assert concat(branch, shortcut)[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize("join", EQUAL)
@pytest.mark.parametrize(
    "branch, shortcut",
    [
        ((4, 1), (4, 5)),
        ((4, 1, 2, 2), (4, 32, 2, 2)),
        ((8, 1), (8,)),
        ((1, 3), (8, 3)),
        ((4, 3, 5), (4, 3, 1)),
        ((), (4, 3)),
        ((4, 3), (1, 4, 3)),
    ],
)
def test_no_join_broadcasts(join, branch, shortcut):
    for one, other in ((branch, shortcut), (shortcut, branch)):
        with pytest.raises(ShapeError, match=rf"`{join}`: expected equal shapes, got .* \(body first\)\. ") as no:
            EQUAL[join]()(torch.ones(one), torch.ones(other))
        assert f"{one} and {other}" in str(no.value)


@pytest.mark.parametrize(
    "branch, shortcut, dim, fix",
    [
        ((4, 1), (4, 5), None, 'Set shortcut="project"'),
        ((4, 8, 9, 9), (4, 3, 9, 9), None, 'Set shortcut="project"'),
        ((4, 5, 8), (4, 5, 3), -1, 'Set shortcut="project"'),
        ((4, 8, 5), (4, 3, 5), 1, 'Set shortcut="project"'),
        ((4, 3, 8, 8), (4, 3, 16, 16), None, 'Set shortcut="project" on the Skip, which then has stride 2'),
        ((4, 6, 5, 5), (4, 3, 9, 9), None, 'Set shortcut="project" on the Skip, which then has stride 2'),
        ((4, 3, 30, 30), (4, 3, 32, 32), None, "Pad the convolutions"),
        ((4, 6, 30, 30), (4, 3, 32, 32), None, "Pad the convolutions"),
        ((4, 30, 8), (4, 32, 8), -1, "Pad the convolutions"),
        ((4, 3, 64, 64), (4, 3, 32, 32), None, "pass a module as the shortcut"),
        ((4, 30, 8), (4, 32, 8), None, "If axis 1 holds channels"),
        ((8, 1), (8,), None, "Return as many axes"),
        ((4, 2, 3), (4, 3), None, "Return as many axes"),
        ((1, 3), (8, 3), None, "Keep the size of axis 0"),
    ],
)
def test_a_misfit_names_the_fix_for_what_differs(branch, shortcut, dim, fix):
    with pytest.raises(ShapeError, match="expected equal shapes") as no:
        need_equal_shapes("add", (torch.ones(branch), torch.ones(shortcut)), dim)
    assert fix in str(no.value) and ("project" in fix or "project" not in str(no.value))


@pytest.mark.parametrize(
    "branch, shortcut", [((4, 3), (5, 3)), ((4, 3, 2), (4, 3, 1)), ((4, 3), (4, 3, 1)), ((8,), (8,)), ((4, 3), ())]
)
def test_concat_refuses_what_differs_beside_the_channels(branch, shortcut):
    with pytest.raises(ShapeError, match=r"`concat`: expected shapes that differ only on axis 1, got .* Pad or pool"):
        concat(torch.ones(branch), torch.ones(shortcut))


@pytest.mark.parametrize("join", [*JOINS, add, nn.Bilinear(3, 3, 3)])
def test_no_join_changes_what_it_is_given(join):
    join = make_join(join, 3)
    branch, shortcut = torch.randn(2, 4, 3)
    before = branch.clone(), shortcut.clone()
    join(branch, shortcut)
    assert torch.equal(branch, before[0]) and torch.equal(shortcut, before[1])


def test_a_new_scale_makes_an_identity_with_a_gradient():
    skip = Skip(nn.Linear(3, 3), join="scale")
    x = torch.randn(5, 3)
    assert torch.equal(skip(x), x)
    skip(x).square().sum().backward()
    assert skip.join.scale.grad.abs() > 0


def test_a_new_gate_keeps_most_of_its_input():
    gate = Gate(16)
    gate.transform.weight.data.zero_()
    out = gate(torch.zeros(2, 16), torch.ones(2, 16))
    assert torch.allclose(out, torch.full((2, 16), 1 - torch.sigmoid(torch.tensor(-2.0)).item()))


def test_scale_and_gate_of_other_sizes_name_the_mend():
    with pytest.raises(ShapeError, match=r"`scale`: expected 3 channels, got a branch of .* Use Scale\(4\)"):
        Scale(3)(torch.ones(2, 4), torch.ones(2, 4))
    with pytest.raises(ShapeError, match=r"`gate`: expected 3 channels, got a shortcut of .* Use Gate\(4\)"):
        Gate(3)(torch.ones(2, 4), torch.ones(2, 4))


def test_a_gate_without_a_size_says_how_to_give_it_one():
    with pytest.raises(ShapeError, match="Skip: `gate` has an uninferred number of channels. Call skipway"):
        Skip(nn.Linear(3, 3), join="gate")(torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_shape_pass_gives_a_gate_its_size_on_the_network_s_dtype(dtype):
    skip = Skip(nn.Linear(3, 3), join="gate").to(dtype)
    assert repr(skip.join) == "Gate()"
    assert output_shape(skip, (2, 3)) == (2, 3)
    assert type(skip.join.transform.weight) is nn.Parameter and skip.join.transform.weight.dtype == dtype
    assert repr(skip.join) == "Gate(3)" and skip.join.transform.bias.eq(-2).all()
    assert skip(torch.ones(2, 3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize(
    "join, text",
    [
        (Gate(), "Gate()"),
        (Gate(3), "Gate(3)"),
        (Gate(3, bias=-1), "Gate(3, bias=-1)"),
        (Gate(bias=1), "Gate(bias=1)"),
        (Scale(), "Scale()"),
        (Scale(3, 1e-5), "Scale(3, init=1e-05)"),
    ],
)
def test_a_join_prints_as_the_code_that_makes_it(join, text):
    assert repr(join) == text and repr(eval(text)) == text


def test_a_join_by_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"unknown join 'ad' \(did you mean add\?\): expected add, concat"):
        Skip(nn.Linear(3, 3), join="ad")


@pytest.mark.parametrize("join", [3, None, Gate, nn.Bilinear])
def test_a_join_that_is_no_function_of_two_tensors_is_refused(join):
    with pytest.raises(InputError, match=r"join: expected a name or a callable that takes \(branch, shortcut\), got"):
        Parallel(join, nn.Identity())


def test_a_scale_for_each_channel_is_filled_in_by_the_shape_pass():
    with pytest.raises(InputError, match='Scale: expected channels to be an int, "each" or None, got'):
        Scale("every")
    skip = Skip(nn.Linear(3, 3), join="layerscale")
    with pytest.raises(ShapeError, match="`scale` has an uninferred number of channels. Call skipway.output_shape"):
        skip(torch.ones(2, 3))
    assert output_shape(skip, (2, 3)) == (2, 3) and torch.equal(skip.join.scale, torch.full((3,), 1e-5))
    assert repr(skip.join) == "Scale(3, init=1e-05)" and not skip.join.scale.is_meta


def test_append_is_concat_with_what_was_kept_first():
    branch, shortcut = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    assert torch.equal(append(branch, shortcut), torch.cat([shortcut, branch], 1))


@pytest.mark.parametrize("join, key", [("layerscale", "join.scale"), ("gate", "join.transform.bias")])
def test_a_state_fills_a_join_without_a_size_as_the_shape_pass_would(join, key):
    filled = Skip(nn.Linear(3, 3), join=join).double()
    output_shape(filled, (2, 3))
    nn.init.normal_(filled.get_parameter(key))
    for copied in (False, True):
        empty = Skip(nn.Linear(3, 3), join=join).double()
        empty = copy.deepcopy(empty) if copied else empty
        assert empty.load_state_dict(empty.state_dict()) and key not in empty.state_dict()
        empty.load_state_dict(filled.state_dict())
        x = torch.randn(2, 3, dtype=torch.float64)
        assert torch.equal(empty(x), filled(x)) and type(empty.get_parameter(key)) is nn.Parameter
        assert repr(empty) == repr(filled) == repr(copy.deepcopy(empty))


@pytest.mark.parametrize("join, other", [("layerscale", "scale"), ("gate", "add"), ("add", "gate")])
def test_a_state_of_another_join_is_refused_by_torch_and_fills_nothing(join, other):
    given = Skip(nn.Linear(3, 3), join=make_join(other, 3))
    skip = Skip(nn.Linear(3, 3), join=join)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        skip.load_state_dict({**given.state_dict(), "join.more": torch.ones(1)})
    assert list(skip.state_dict()) == ["body.weight", "body.bias"]


@pytest.mark.parametrize("join", [Gate(3), Scale(3), Gate(), Scale("each")])
def test_a_join_by_channels_needs_a_batch(join):
    with pytest.raises(ShapeError, match=r"`(gate|scale)`: expected \(B, C, \*\), got \(3,\). Add a batch axis"):
        Skip(nn.Linear(3, 3), join=join)(torch.ones(3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("join", ["add", "gate", "scale", "layerscale"])
def test_a_join_keeps_the_memory_format(join, layout):
    branch, shortcut = (torch.randn(2, 3, 4, 5).contiguous(memory_format=layout) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert make_join(join, 3)(branch, shortcut).is_contiguous(memory_format=layout)
    assert make_join(join, 3)(branch, shortcut).is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    "body, shape",
    [
        (nn.Linear(4, 6), (2, 4)),
        (nn.Linear(4, 6), (2, 5, 4)),
        (nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 4)), (1, 6, 6, 8)),
        (nn.Conv1d(3, 6, 3, padding=1), (2, 3, 9)),
        (nn.Conv1d(3, 3, 3, 3, 1), (2, 3, 9)),
        (nn.Conv2d(3, 8, 3, 2, 1), (2, 3, 16, 16)),
        (nn.Conv2d(3, 3, 3, 2, 1), (2, 3, 17, 17)),
        (nn.Conv3d(2, 4, 3, 2, 1), (1, 2, 8, 8, 8)),
    ],
)
def test_the_advised_shortcut_works(body, shape):
    with pytest.raises(ShapeError, match="expected equal shapes") as refused:
        Skip(body)(torch.randn(shape))
    advised = re.search(r'Set shortcut="(\w+)"', str(refused.value))
    skip = Skip(body, advised[1])
    output_shape(skip, shape)
    assert skip(torch.randn(shape)).shape == body(torch.randn(shape)).shape
